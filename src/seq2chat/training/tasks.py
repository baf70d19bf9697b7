"""Tasks: all in which language modelling, translation and masked language modelling differ for the
training loop."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from seq2chat.config import (
    BERTConfig,
    GPTConfig,
    Recipe,
    Seq2SeqConfig,
    TransformerConfig,
    UserError,
    check,
)
from seq2chat.generation.decode import generate
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.text.batch import IGNORED, Batch, Loader, evaluation_batches
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.corpus import Corpus, load_corpus
from seq2chat.text.masked import MaskedLoader, masked_evaluation_batches
from seq2chat.text.parallel import (
    PairLoader,
    Pairs,
    ParallelCorpus,
    excerpt,
    load_parallel,
    pair_batches,
)
from seq2chat.text.shards import Shards, cached_shards, open_shards
from seq2chat.text.split import TOKENIZER_CHARACTERS, tokenizer_texts
from seq2chat.text.tokenizers import Tokenizer, load_tokenizer
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.objective import Loss, causal_lm, masked_lm, translation

SHOWN = 2  # sentences of the validation split, translated as a sample

Say = Callable[[str], None]
Objective = Callable[[Any, Any], Loss]


@runtime_checkable
class Dealer(Protocol):
    """What deals training data: samples are counted, and batch and order are functions of data,
    seed and that count."""

    fingerprint: str

    @property
    def epoch_tokens(self) -> int: ...
    def epoch_batches(self, batch_size: int) -> float: ...
    def n_samples(self, first_sample: int, batch_size: int) -> int: ...
    def batch(self, first_sample: int, batch_size: int) -> Any: ...


@dataclass(frozen=True)
class Task:
    """What is learned from what.

    `objective` is trained and `measure` reported, in nats per `unit`. `validation(limit)` yields
    the batches of the validation split, or of about `limit` tokens spread over it where that is not
    0; all of it has `validation_tokens`. `sample(model)` is a text to look at. `origin` is the
    fingerprint of the models that the task began with and of the text that is mixed in.

    What only some tasks have: `step(job)` does an optimizer step of its own kind, whose metrics
    named in `shown` are for the display; `report(model, limit)` measures more than the loss at each
    validation; `publish()` is the model that a checkpoint holds where it is not the one trained;
    `modules` are then all that is trained or remembered, by name, the model among them; and
    `optimizers` are its own.
    """

    objective: Objective
    measure: Objective | None
    loader: Dealer
    validation: Callable[[int], Iterable[Batch]]
    validation_tokens: int
    sample: Callable[[Any], str]
    unit: str = "token"
    step: Callable[[Any], Any] | None = None
    shown: Sequence[str] = ()
    report: Callable[[Any, int], dict[str, float]] | None = None
    publish: Callable[[], Any] | None = None
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    optimizers: Sequence[torch.optim.Optimizer] | None = None
    origin: str = ""


def load_text(recipe: Recipe, doing: Say) -> Corpus | ParallelCorpus:
    """Return the text that the recipe learns from. Raises UserError if there is none of the right
    kind."""
    name = recipe.data.corpus

    def progress(done: int, total: int) -> None:
        doing(f"downloading {name}: {done / 1e6:.1f} MB")

    if isinstance(recipe.model, Seq2SeqConfig | TransformerConfig):
        return load_parallel(recipe.data, progress)
    return load_corpus(name, recipe.data.field, progress)


def make_tokenizer(
    recipe: Recipe, text: Corpus | ParallelCorpus, say: Say, doing: Say
) -> Tokenizer:
    """Return the recipe's tokenizer: one that exists, or one trained on the training split of
    `text`."""
    if recipe.tokenizer.path:
        return load_tokenizer(Path(recipe.tokenizer.path))
    doing("training the tokenizer")
    if isinstance(text, ParallelCorpus):
        texts = text.texts()
    else:
        # A text too large for its budget is sampled, and a quarter of that sample is time enough
        # for its tokenizer.
        limit = min(recipe.data.max_characters // 4 or TOKENIZER_CHARACTERS, TOKENIZER_CHARACTERS)
        texts = tokenizer_texts(text, recipe.data.val_fraction, limit)
    options = recipe.tokenizer
    if isinstance(recipe.model, BERTConfig):
        accents = None if options.strip_accents == "auto" else options.strip_accents == "on"
        tokenizer = WordPiece.train(texts, options.vocab_size, options.lowercase != "off", accents)
    else:
        tokenizer = ByteBPE.train(texts, options.vocab_size)
    say(f"tokenizer: {tokenizer.vocab_size} tokens, trained on the training split of {text.name}")
    return tokenizer


def make_task(
    recipe: Recipe,
    text: Corpus | ParallelCorpus,
    tokenizer: Tokenizer,
    say: Say,
    doing: Say,
) -> Task:
    """Return the task of the recipe's model on `text`. Raises UserError if tokenizer or text do not
    suit it."""
    match recipe.model, text, tokenizer:
        case GPTConfig(), Corpus(), ByteBPE():
            train, val = _shards(recipe, text, tokenizer, doing)
            _say_split(train, val, say)
            return _language_modelling(recipe, train, val, tokenizer)
        case BERTConfig(), Corpus(), WordPiece():
            train, val = _shards(recipe, text, tokenizer, doing)
            _say_split(train, val, say)
            _say_unknown(train, tokenizer, say)
            return _masked_language_modelling(recipe, train, val, tokenizer)
        case ((Seq2SeqConfig() | TransformerConfig()), ParallelCorpus(), ByteBPE()):
            return _translation(recipe, text, tokenizer, say)
    needed = "WordPiece" if isinstance(recipe.model, BERTConfig) else "byte-level BPE"
    raise UserError(
        f"{recipe.tokenizer.path} is no {needed} tokenizer, which a {recipe.model.family} reads."
    )


def _language_modelling(recipe: Recipe, train: Shards, val: Shards, tokenizer: ByteBPE) -> Task:
    assert isinstance(recipe.model, GPTConfig)
    context, batch_size, end = recipe.model.context, recipe.train.batch_size, val.eos_id
    prompt = tokenizer.encode(recipe.train.prompt)

    def validation(limit: int) -> Iterator[Batch]:
        return evaluation_batches(val, context, batch_size, recipe.data.document_mask, limit)

    def sample(model: Any) -> str:
        sampling = SamplingConfig(max_tokens=200, temperature=0.8, seed=recipe.train.seed)
        [[completion]] = generate(model, [[end, *prompt]], sampling, [end])
        return recipe.train.prompt + tokenizer.decode(
            token for token in completion.tokens if token != end
        )

    loader = Loader(train, context, recipe.train.seed, recipe.data.document_mask)
    return Task(causal_lm, causal_lm, loader, validation, val.n_tokens, sample)


def _translation(recipe: Recipe, text: ParallelCorpus, tokenizer: ByteBPE, say: Say) -> Task:
    assert isinstance(recipe.model, Seq2SeqConfig | TransformerConfig)
    context = recipe.model.context
    sides = [Pairs.encode(lines, tokenizer, context) for lines in (text.train, text.val)]
    (train, val), too_long = (
        (pairs for pairs, _ in sides),
        [line for _, lines in sides for line in lines],
    )
    say(
        f"{len(train):,} pairs to train on, {len(val):,} to validate"
        + (f"; left out {text.n_blank:,} with a blank side" if text.n_blank else "")
        + (
            f"; left out {len(too_long):,} of more than {context} tokens: {excerpt(too_long)}"
            if too_long
            else ""
        )
    )

    def sample(model: Any) -> str:
        sources = [[*val.source[i].tolist(), val.eos_id] for i in range(min(SHOWN, len(val)))]
        greedy = SamplingConfig(max_tokens=100, temperature=0.0)
        out = generate(model, [[val.eos_id]] * len(sources), greedy, [val.eos_id], sources=sources)
        translations = [tokenizer.decode(t for t in c.tokens if t != val.eos_id) for [c] in out]
        given = [
            [tokenizer.decode(side[i].tolist()) for side in (val.source, val.target)]
            for i in range(len(out))
        ]
        shown = zip(translations, given, strict=True)
        return "\n".join(
            f"  {source}\n→ {translation}\n= {target}" for translation, (source, target) in shown
        )

    objective = partial(translation, label_smoothing=recipe.train.label_smoothing)
    loader, n_tokens = (
        PairLoader(train, recipe.train.seed),
        sum(len(target) + 1 for target in val.target),
    )
    return Task(
        objective,
        translation,
        loader,
        lambda limit: pair_batches(val, recipe.train.batch_size, limit),
        n_tokens,
        sample,
    )


def _masked_language_modelling(
    recipe: Recipe, train: Shards, val: Shards, tokenizer: WordPiece
) -> Task:
    assert isinstance(recipe.model, BERTConfig)
    check(
        recipe.model.masked_lm,
        "model.masked_lm is false, and a BERT learns through that head; leave it out.",
    )
    context, batch_size = recipe.model.context, recipe.train.batch_size
    loader = MaskedLoader(
        train,
        context,
        recipe.train.seed,
        tokenizer,
        recipe.data.mask_share,
        recipe.model.next_sentence,
    )

    def validation(limit: int) -> Iterator[Batch]:
        return masked_evaluation_batches(val, context, batch_size, tokenizer, limit)

    @torch.inference_mode()
    def sample(model: Any) -> str:
        batch = next(masked_evaluation_batches(val, context, 1, tokenizer)).to(model.device)
        asked = batch.labels[0] != IGNORED
        was_training = model.training
        guesses = (
            model.eval()
            .logits(model.hidden(batch.target, batch.target_mask)[0][asked])
            .argmax(-1)
            .tolist()
        )
        model.train(was_training)
        whole = torch.where(asked, batch.labels[0], batch.target[0])
        pairs = zip(guesses, batch.labels[0][asked].tolist(), strict=True)
        told = ", ".join(
            f"{tokenizer.token(label)} → {tokenizer.token(guess)}" for guess, label in pairs
        )
        return f"{tokenizer.decode(whole.tolist())}\n{told}"

    return Task(masked_lm, masked_lm, loader, validation, val.n_tokens, sample)


def _say_split(train: Shards, val: Shards, say: Say) -> None:
    share = val.n_characters / (train.n_characters + val.n_characters)
    say(
        f"{train.n_tokens:,} tokens of {train.n_documents:,} documents to train on, "
        f"{val.n_tokens:,} of {val.n_documents:,} to validate ({share:.1%} of the text)"
    )


def _say_unknown(shards: Shards, tokenizer: WordPiece, say: Say) -> None:
    """Say which share of the tokens is [UNK], in a thousand places of the text."""
    places = np.linspace(0, shards.n_tokens - 1, min(1000, shards.n_tokens)).astype(int).tolist()
    sample = np.concatenate(
        [shards.read(place, min(100, shards.n_tokens - place)) for place in places]
    )
    share = float(np.mean(sample == tokenizer.unk_id))
    advice = (
        "; raise tokenizer.vocab_size, so that more characters have room" if share > 0.01 else ""
    )
    say(f"[UNK] stands for {share:.2%} of the tokens{advice}")


def _shards(
    recipe: Recipe, corpus: Corpus, tokenizer: Tokenizer, doing: Say
) -> tuple[Shards, Shards]:
    folder = cached_shards(
        corpus,
        tokenizer,
        recipe.data.val_fraction,
        progress=lambda n: doing(f"tokenizing: {n:,} characters"),
        characters=recipe.data.max_characters,
    )
    return open_shards(folder, "train"), open_shards(folder, "val")
