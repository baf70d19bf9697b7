"""Measuring a run or a model folder: on the run's own validation split, or on any other text."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from seq2chat.config import DataConfig, Recipe, check
from seq2chat.device import pick_device, pick_precision
from seq2chat.models.bert import BERT
from seq2chat.models.folder import Model, require_family
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.batch import Batch, evaluation_batches
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.corpus import load_corpus
from seq2chat.text.masked import masked_evaluation_batches
from seq2chat.text.parallel import Pairs, excerpt, pair_batches, read_pairs
from seq2chat.text.plain import BLOCK
from seq2chat.text.shards import shards_in_memory
from seq2chat.text.split import split_parts
from seq2chat.text.tokenizers import Tokenizer
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.checkpoint import find_checkpoint, load_checkpoint
from seq2chat.training.evaluation import Evaluation, evaluate, token_lengths
from seq2chat.training.language_modeling import causal_lm
from seq2chat.training.masked_lm import masked_lm
from seq2chat.training.nll import Loss
from seq2chat.training.run_folder import open_run
from seq2chat.training.tasks import check_tokenizer, load_text, make_task
from seq2chat.training.translation import translation

# More than a token has on average, so that a sample of the text is large enough.
CHARACTERS_PER_TOKEN = 8
LEAST_CHARACTERS = 64 * BLOCK  # a sample of fewer blocks is hardly spread over the text

Watch = Callable[[Iterable[Batch], int], Iterable[Batch]]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Batches to measure a model on, their number, and the loss that is measured."""

    batches: Iterable[Batch]
    n_batches: int
    measure: Callable[[Any, Batch], Loss]


def evaluate_text(
    path: Path,
    data: dict[str, Any],
    batch_size: int,
    context: int | None,
    tokens: int | None,
    watch: Watch,
) -> Evaluation:
    """Loss of the run or model folder `path` on the text that `data` names, options of
    `DataConfig`; on the run's own validation split where that is empty.

    A GPT scores every token once, in windows of `context` tokens that don't overlap; a BERT guesses
    15 % of them; a translation model scores every target token given the source and the target
    before it. `tokens` spread over the text are measured, all of them with 0; the default is all of
    a text, and of a run's own split what its last validation takes. `watch(batches, number)` passes
    the batches on, for a progress display. Raises `UserError` for text or folders that can't be
    used, and for a split that is no longer the one the run held out.
    """
    check(batch_size > 0, f"--batch-size is {batch_size}; write a positive number.")
    check(tokens is None or tokens >= 0, f"--tokens is {tokens}; write 0 or more.")
    model, tokenizer = load_checkpoint(path)
    require_family(model, "gpt", "bert", "seq2seq", "transformer")
    is_translation = isinstance(model, Seq2Seq | Transformer)
    check(
        context is None or not is_translation,
        "--context is for models of running text; a translation model reads whole sentences.",
    )
    longest = model.config.context
    context = longest if context is None else context
    check(
        0 < context <= longest, f"--context is {context}; write at most {longest}, the model's own."
    )
    is_run = (path / "config.toml").exists()
    recipe = open_run(path).recipe() if is_run or not data else Recipe()
    if data:
        parallel = "source" in data or "target" in data
        check(
            parallel == is_translation,
            f"A {model.config.family} is measured on"
            f" {'--source and --target' if is_translation else '--data'}.",
        )
        options = DataConfig(
            **vars(recipe.data) | {"corpus": "", "source": "", "target": ""} | data
        )
        measured = _other_text(options, model, tokenizer, batch_size, context, tokens or 0)
    else:
        measured = _own_split(path, recipe, model, tokenizer, batch_size, context, tokens)
    device = pick_device()
    model.to(device).compute_dtype = pick_precision(recipe.train.precision, device).dtype
    batches = watch(measured.batches, measured.n_batches)
    return evaluate(model, measured.measure, batches, token_lengths(tokenizer))


def _own_split(
    path: Path,
    recipe: Recipe,
    model: Model,
    tokenizer: Tokenizer,
    batch_size: int,
    context: int,
    tokens: int | None,
) -> Measurement:
    """Return the validation split of a run, which must be what it was in training."""
    check(
        recipe.align is None,
        f"{path} is a run of {recipe.method}, whose validation needs more than a text; name a text"
        " with --data.",
    )
    train = recipe.train
    shape = dataclasses.replace(recipe.model, context=context)
    recipe = dataclasses.replace(
        recipe, model=shape, train=dataclasses.replace(train, batch_size=batch_size)
    )
    check_tokenizer(recipe, tokenizer)
    task = make_task(recipe, load_text(recipe), tokenizer, model)
    progress = find_checkpoint(path) / "trainer" / "progress.json"
    began_with = json.loads(progress.read_text(encoding="utf-8"))["data"]
    text = recipe.data.source or recipe.data.corpus
    check(
        began_with == task.loader.fingerprint + task.origin,
        f"{text} is no longer the text that {path} was trained on, so its validation split may hold"
        " text the model has seen; put it back, or name a text with --data.",
    )
    limit = train.final_eval_tokens if tokens is None else tokens
    size = min(limit, task.validation_tokens) if limit else task.validation_tokens
    n_batches = max(1, round(size / (batch_size * context)))
    return Measurement(task.validation_batches(limit), n_batches, task.validation_loss)


def _other_text(
    data: DataConfig,
    model: Model,
    tokenizer: Tokenizer,
    batch_size: int,
    context: int,
    tokens: int,
) -> Measurement:
    """Return the whole of another text, or about so many `tokens` spread over it."""
    if isinstance(model, Seq2Seq | Transformer):
        assert isinstance(tokenizer, ByteBPE)
        lines = read_pairs(Path(data.source), Path(data.target))[0]
        pairs, too_long = Pairs.encode(lines, tokenizer, context)
        check(
            not too_long,
            f"{len(too_long)} pairs have more than the model's {context} tokens; leave them out: "
            f"{excerpt(too_long)}.",
        )
        return Measurement(
            pair_batches(pairs, batch_size, tokens), -(-len(pairs) // batch_size), translation
        )
    characters = max(CHARACTERS_PER_TOKEN * tokens, LEAST_CHARACTERS) if tokens else 0
    parts = split_parts(
        load_corpus(data.corpus, data.field), val_fraction=0.0, characters=characters
    )
    shards = shards_in_memory(parts, tokenizer)
    size = min(tokens, shards.n_tokens) if tokens else shards.n_tokens - 1
    n_batches = -(-size // (batch_size * context))
    if isinstance(model, BERT):
        assert isinstance(tokenizer, WordPiece)
        batches = masked_evaluation_batches(shards, context, batch_size, tokenizer, tokens)
        return Measurement(batches, n_batches, masked_lm)
    batches = evaluation_batches(shards, context, batch_size, data.document_mask, tokens)
    return Measurement(batches, n_batches, causal_lm)
