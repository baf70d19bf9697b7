"""Evaluate a run or a model folder on the run's own validation split or on any other text."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from seq2chat.config import DataConfig, Recipe, check
from seq2chat.device import pick_device, pick_precision
from seq2chat.models.bert import BERT
from seq2chat.models.folder import CausalLM, Model
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.batch import Batch, evaluation_batches
from seq2chat.text.corpus import load_corpus
from seq2chat.text.masked import masked_evaluation_batches
from seq2chat.text.parallel import Pairs, excerpt, pair_batches, read_pairs
from seq2chat.text.plain import BLOCK
from seq2chat.text.shards import shards_in_memory
from seq2chat.text.split import split_parts
from seq2chat.text.text_tokenizer import TextTokenizer
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

# More characters than a token has on average, so that a sample of the text is large enough.
CHARACTERS_PER_TOKEN = 8
# A sample of fewer blocks would hardly be spread over the text.
MIN_CHARACTERS = 64 * BLOCK

Watch = Callable[[Iterable[Batch], int], Iterable[Batch]]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The batches to evaluate a model on, their number, and the loss to compute."""

    batches: Iterable[Batch]
    n_batches: int
    measure: Callable[[Any, Batch], Loss]


@dataclasses.dataclass(frozen=True)
class Window:
    """The size of an evaluation: sequences per batch, tokens per sequence, and the total number of
    tokens. None is the default number."""

    batch_size: int
    context: int
    tokens: int | None


def evaluate_text(
    path: Path,
    data: dict[str, Any],
    batch_size: int,
    context: int | None,
    tokens: int | None,
    watch: Watch,
) -> Evaluation:
    """Return the loss of the model in `path`, a run or model folder, on the text that `data` names.

    `data` holds options of `DataConfig`, for example {"corpus": "my.txt"}. If it is empty, the
    run's own validation split is evaluated.

    A GPT predicts every token once, in windows of `context` tokens that don't overlap. A BERT
    predicts 15 % of the tokens. A translation model predicts every target token from the source and
    the preceding target tokens. `tokens` is the number of tokens to evaluate, spread over the text,
    where 0 means all. By default another text is evaluated in full, and a run's own split as far as
    in the last validation of the run.

    `watch(batches, number)` returns the batches unchanged and can display the progress. Raises
    `UserError` for text or folders that can't be used, and if the text of the run has changed,
    since a new split may contain training text.
    """
    check(batch_size > 0, f"batch_size is {batch_size}; write a positive number.")
    check(tokens is None or tokens >= 0, f"tokens is {tokens}; write 0 or more.")
    model, tokenizer = load_checkpoint(path)
    check(
        model.config.objective != "score",
        f"{path} is a reward model, which predicts no tokens; evaluate the policy that it scores.",
    )
    is_translation = isinstance(model, Seq2Seq | Transformer)
    check(
        context is None or not is_translation,
        f"context is {context}, but a translation model reads whole sentences; leave it out.",
    )
    longest = model.config.context
    context = longest if context is None else context
    check(
        0 < context <= longest,
        f"context is {context}; write a number from 1 to {longest}, the model's own.",
    )
    window = Window(batch_size, context, tokens)
    is_run = (path / "config.toml").exists()
    recipe = open_run(path).recipe() if is_run or not data else Recipe()
    if data:
        check_kind_of_text(data, model)
        options = vars(recipe.data) | {"corpus": "", "source": "", "target": ""} | data
        measurement = _other_text(DataConfig(**options), model, tokenizer, window)
    else:
        measurement = _own_split(path, recipe, model, tokenizer, window)
    device = pick_device()
    model.to(device).compute_dtype = pick_precision(recipe.train.precision, device).dtype
    batches = watch(measurement.batches, measurement.n_batches)
    return evaluate(model, measurement.measure, batches, token_lengths(tokenizer))


def check_kind_of_text(data: dict[str, Any], model: Model) -> None:
    """Raise UserError unless `data` names sentence pairs for a translation model, and running text
    for any other."""
    is_parallel = "source" in data or "target" in data
    family = model.config.family
    if isinstance(model, Seq2Seq | Transformer):
        check(
            is_parallel,
            f"A {family} is evaluated on sentence pairs; give a source and a target, not data.",
        )
    else:
        check(
            not is_parallel,
            f"A {family} is evaluated on running text; give data, not a source and a target.",
        )


def _own_split(
    path: Path, recipe: Recipe, model: Model, tokenizer: Tokenizer, window: Window
) -> Measurement:
    """Return the validation split of a run. Raises UserError if its text has changed since the
    training."""
    check(
        recipe.align is None,
        f"{path} is a run of {recipe.method}, whose validation needs more than a text; give a "
        "text as data.",
    )
    recipe = recipe.with_options("model", context=window.context)
    recipe = recipe.with_options("train", batch_size=window.batch_size)
    check_tokenizer(recipe, tokenizer)
    task = make_task(recipe, load_text(recipe), tokenizer, model)
    progress = find_checkpoint(path) / "trainer" / "progress.json"
    fingerprint = json.loads(progress.read_text(encoding="utf-8"))["data"]
    text = recipe.data.source or recipe.data.corpus
    check(
        fingerprint == task.loader.fingerprint + task.origin,
        f"{text} is no longer the text that {path} was trained on, so its validation split may hold"
        " text the model has seen; put it back, or give a text as data.",
    )
    limit = recipe.train.final_eval_tokens if window.tokens is None else window.tokens
    size = min(limit, task.validation_tokens) if limit else task.validation_tokens
    n_batches = max(1, round(size / (window.batch_size * window.context)))
    return Measurement(task.validation_batches(limit), n_batches, task.validation_loss)


def _other_text(
    data: DataConfig, model: Model, tokenizer: Tokenizer, window: Window
) -> Measurement:
    """Return the whole of another text, or about `window.tokens` tokens spread over it."""
    tokens = window.tokens or 0
    if isinstance(model, Seq2Seq | Transformer):
        assert isinstance(tokenizer, TextTokenizer)
        return _sentence_pairs(data, tokenizer, window.batch_size, window.context, tokens)
    characters = max(CHARACTERS_PER_TOKEN * tokens, MIN_CHARACTERS) if tokens else 0
    corpus = load_corpus(data.corpus, data.field)
    check(not corpus.parts, f"{data.corpus} is a mixture; measure its texts one by one.")
    shards = shards_in_memory(
        split_parts(corpus, val_fraction=0.0, characters=characters), tokenizer
    )
    size = min(tokens, shards.n_tokens) if tokens else shards.n_tokens - 1
    n_batches = math.ceil(size / (window.batch_size * window.context))
    if isinstance(model, BERT):
        assert isinstance(tokenizer, WordPiece)
        batches = masked_evaluation_batches(
            shards, window.context, window.batch_size, tokenizer, tokens
        )
        return Measurement(batches, n_batches, masked_lm)
    assert isinstance(model, CausalLM)
    batches = evaluation_batches(
        shards, window.context, window.batch_size, data.document_mask, tokens
    )
    return Measurement(batches, n_batches, causal_lm)


def _sentence_pairs(
    data: DataConfig, tokenizer: TextTokenizer, batch_size: int, context: int, tokens: int
) -> Measurement:
    lines, _ = read_pairs(Path(data.source), Path(data.target))
    pairs, too_long = Pairs.encode(lines, tokenizer, context)
    check(
        not too_long,
        f"{len(too_long)} pairs have more than the model's {context} tokens; leave them out: "
        f"{excerpt(too_long)}.",
    )
    n_batches = math.ceil(len(pairs) / batch_size)
    return Measurement(pair_batches(pairs, batch_size, tokens), n_batches, translation)
