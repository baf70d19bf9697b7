"""The task of a recipe: its text, its tokenizer, and the objective of its model family."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import chain
from math import ceil
from pathlib import Path

from seq2chat.config import Recipe, UserError
from seq2chat.log import Log, ignore
from seq2chat.models.bert import BERT
from seq2chat.models.folder import CausalLM, Model
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.corpus import Corpus, load_corpus
from seq2chat.text.mixed import TrainingText, joined
from seq2chat.text.parallel import ParallelCorpus, load_parallel
from seq2chat.text.shards import Shards, cached_shards, open_shards
from seq2chat.text.split import TOKENIZER_CHARACTERS, tokenizer_texts
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.tokenizers import Tokenizer, load_tokenizer
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.language_modeling import LanguageModeling
from seq2chat.training.masked_lm import MaskedLM, unknown_share
from seq2chat.training.translation import Translation
from seq2chat.training.types import Task


def load_text(recipe: Recipe, status: Log = ignore) -> Corpus | ParallelCorpus:
    """Return the text of the recipe. Raises UserError if there is none of the right kind."""
    name = recipe.data.corpus

    def progress(done: int, total: int) -> None:
        status(f"downloading {name}: {done / 1e6:.1f} MB")

    if recipe.model.objective == "translation":
        return load_parallel(recipe.data, progress)
    return load_corpus(name, recipe.data.field, progress)


def make_tokenizer(
    recipe: Recipe, text: Corpus | ParallelCorpus, log: Log = ignore, status: Log = ignore
) -> Tokenizer:
    """Return the recipe's tokenizer: an existing one, or one trained on the training split."""
    if recipe.tokenizer.path:
        return load_tokenizer(Path(recipe.tokenizer.path))
    status("training the tokenizer")
    if isinstance(text, ParallelCorpus):
        texts = text.texts()
    else:
        # A text too large for its budget is sampled, and a quarter of that sample is enough for the
        # tokenizer.
        limit = min(recipe.data.max_characters // 4 or TOKENIZER_CHARACTERS, TOKENIZER_CHARACTERS)
        # Of a mixture, the tokenizer learns from as much of each text as the model will.
        texts = chain.from_iterable(
            tokenizer_texts(corpus, recipe.data.val_fraction, max(1, int(limit * share)))
            for corpus, share in _parts(text)
        )
    options = recipe.tokenizer
    if recipe.model.objective == "masked tokens":
        accents = None if options.strip_accents == "auto" else options.strip_accents == "on"
        tokenizer = WordPiece.train(texts, options.vocab_size, options.lowercase != "off", accents)
    else:
        tokenizer = ByteBPE.train(texts, options.vocab_size)
    log(f"tokenizer: {tokenizer.vocab_size} tokens, trained on the training split of {text.name}")
    return tokenizer


def check_tokenizer(recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Raise UserError unless the model family of the recipe uses this kind of tokenizer."""
    kind, name = (
        (WordPiece, "WordPiece")
        if recipe.model.objective == "masked tokens"
        else (TextTokenizer, "byte-level BPE or SentencePiece")
    )
    if not isinstance(tokenizer, kind):
        raise UserError(
            f"{recipe.tokenizer.path} is not a {name} tokenizer, which a {recipe.model.family} "
            "needs."
        )


def make_task(
    recipe: Recipe,
    text: Corpus | ParallelCorpus,
    tokenizer: Tokenizer,
    model: Model,
    log: Log = ignore,
    status: Log = ignore,
) -> Task:
    """Return the task of training `model` on `text`, by its family."""
    if isinstance(text, ParallelCorpus):
        assert isinstance(model, Seq2Seq | Transformer)
        assert isinstance(tokenizer, TextTokenizer)
        return Translation(recipe, model, tokenizer, text, log)
    train, val = _shards(recipe, text, tokenizer, log, status)
    if isinstance(tokenizer, WordPiece):
        assert isinstance(model, BERT)
        _log_unknown(unknown_share(joined([shards for shards, _ in train]), tokenizer), log)
        return MaskedLM(recipe, model, tokenizer, train, val)
    assert isinstance(model, CausalLM)
    return LanguageModeling(recipe, model, tokenizer, train, val)


def _shards(
    recipe: Recipe, corpus: Corpus, tokenizer: Tokenizer, log: Log, status: Log
) -> tuple[TrainingText, Shards]:
    """Return the training split of each text of a mixture with its share, and the validation splits
    of all as one."""
    training: TrainingText = []
    validation: list[Shards] = []
    for part, share in _parts(corpus):
        folder = cached_shards(
            part,
            tokenizer,
            recipe.data.val_fraction,
            progress=lambda n: status(f"tokenizing: {n:,} characters"),
            characters=ceil(recipe.data.max_characters * share),
        )
        train = open_shards(folder, "train")
        val = open_shards(folder, "val")
        held_out = val.n_characters / (train.n_characters + val.n_characters)
        name = f"{float(share):.1%} from {part.name}: " if corpus.parts else ""
        log(
            f"{name}{train.n_tokens:,} tokens of {train.n_documents:,} documents to train on, "
            f"{val.n_tokens:,} of {val.n_documents:,} to validate ({held_out:.1%} of the text)"
        )
        training.append((train, share))
        validation.append(val)
    return training, joined(validation)


def _parts(corpus: Corpus) -> Sequence[tuple[Corpus, Fraction]]:
    return corpus.parts or [(corpus, Fraction(1))]


def _log_unknown(share: float, log: Log) -> None:
    advice = "; raise tokenizer.vocab_size to cover more characters" if share > 0.01 else ""
    log(f"{share:.2%} of the tokens are [UNK]{advice}")
