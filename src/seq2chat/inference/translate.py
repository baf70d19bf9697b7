"""Translate lines of text, and score translations by BLEU and chrF."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from typing import Any

from seq2chat.config import UserError, check
from seq2chat.generation.beam import Hypothesis, beam_search
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.text_tokenizer import TextTokenizer

POOL = 2000  # lines that are sorted by length together
BLANK = Hypothesis([], [], 0.0, True)


@dataclass(frozen=True)
class Translation:
    """The translation of one line.

    `source` holds the tokens that the model read, and `hypotheses` and `texts` the translations,
    best first. `n_cut` is the number of tokens of the line that did not fit the model's context.
    A blank line has no source tokens and one empty translation.
    """

    line: str
    source: list[int]
    hypotheses: list[Hypothesis]
    texts: list[str]
    n_cut: int

    @property
    def text(self) -> str:
        """The best translation, on one line."""
        return self.texts[0]


def translate(
    model: Seq2Seq | Transformer,
    tokenizer: TextTokenizer,
    lines: Iterable[str],
    *,
    batch_tokens: int = 4096,
    progress: Callable[[int], object] | None = None,
    **search: Any,
) -> Iterator[Translation]:
    """Yield the translation of each line, in the order of the lines.

    Lines of similar length are batched, about `batch_tokens` source tokens per batch. `search`
    holds options of `beam_search`: beam, n_best, length_penalty, alpha, min_length, max_length.
    `progress(n)` is called after each batch of `n` lines. Raises UserError for invalid options.
    """
    check(batch_tokens > 0, f"batch_tokens is {batch_tokens}; write a positive number.")
    end = tokenizer.eos_id
    if end is None:
        raise UserError(
            "The tokenizer has no end token; use the one that the model was trained with."
        )
    lines = iter(lines)
    while pool := list(islice(lines, POOL)):
        encoded = [_encode(line, tokenizer, end, model.context) for line in pool]
        sources = [source for source, _ in encoded]
        hypotheses_by_line: dict[int, list[Hypothesis]] = {}
        for batch in _batches(sources, batch_tokens):
            prompts = [[end]] * len(batch)
            batch_sources = [sources[i] for i in batch]
            results = beam_search(model, prompts, end, batch_sources, **search)
            hypotheses_by_line.update(zip(batch, results, strict=True))
            if progress is not None:
                progress(len(batch))
        for i, (line, (source, n_cut)) in enumerate(zip(pool, encoded, strict=True)):
            hypotheses = hypotheses_by_line.get(i, [BLANK])
            texts = [_decode(hypothesis.tokens, tokenizer) for hypothesis in hypotheses]
            yield Translation(line, source, hypotheses, texts, n_cut)


def _encode(line: str, tokenizer: TextTokenizer, end: int, context: int) -> tuple[list[int], int]:
    """Return the tokens of `line` that fit the context, with the end token, and the number of those
    that don't fit."""
    ids = tokenizer.encode(line.strip())
    kept = ids[: context - 1]
    source = [*kept, end] if ids else []
    return source, len(ids) - len(kept)


def _decode(ids: Sequence[int], tokenizer: TextTokenizer) -> str:
    """Return the text of `ids` without control tokens and without line breaks."""
    control = set(tokenizer.control.values())
    text = tokenizer.decode(i for i in ids if i not in control)
    return " ".join(text.splitlines()).strip()


def _batches(sources: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Yield batches of indices of the non-empty sources, shortest source first, about
    `batch_tokens` tokens per batch."""
    order = sorted((i for i, source in enumerate(sources) if source), key=lambda i: len(sources[i]))
    batch: list[int] = []
    for i in order:
        # Sources come in ascending length, so the newest one sets the padded width of the batch.
        if batch and (len(batch) + 1) * len(sources[i]) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@dataclass(frozen=True)
class Metric:
    """A corpus score from 0 to 100, and sacrebleu's signature, which other results need to be
    comparable."""

    score: float
    signature: str


def bleu(hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "") -> Metric:
    """Return the corpus BLEU (Papineni et al. 2002) by sacrebleu (Post 2018), with one reference
    per line.

    `tokenize` is one of sacrebleu's tokenizers, by default the one `script_tokenizer` returns for
    the references. Write "none" for text that is already tokenized. Raises UserError unless there
    are as many references as hypotheses.

    >>> round(bleu(["the cat sat on the mat"], ["the cat sat on a mat"]).score, 2)
    53.73
    """
    from sacrebleu.metrics import BLEU

    tokenize = tokenize or script_tokenizer(references)
    return _score(BLEU(tokenize=tokenize, force=tokenize == "none"), hypotheses, references)


KANA = "\u3040-\u30ff"
HAN = "\u3400-\u4dbf\u4e00-\u9fff"
HANGUL = "\uac00-\ud7a3"
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer


def script_tokenizer(references: Sequence[str]) -> str:
    """Return the sacrebleu tokenizer for the script of most letters in the references.

    "13a" splits words at white space, which Chinese, Japanese and Thai don't write; it would
    compare whole sentences. MeCab splits Japanese and Korean words where it is installed. Otherwise
    characters are compared.
    """
    text = "".join(references)
    n_letters = sum(map(str.isalpha, text))
    kana, han, hangul, unspaced = (
        len(re.findall(f"[{script}]", text)) for script in (KANA, HAN, HANGUL, UNSPACED)
    )
    if 2 * (kana + han + hangul + unspaced) <= n_letters:
        return "13a"
    if unspaced > han + kana + hangul:
        return "char"
    if hangul > han + kana:
        return "ko-mecab" if find_spec("mecab_ko") else "13a"
    # Japanese text mixes kana with Han characters; Chinese text has no kana.
    if 20 * kana > han:
        return "ja-mecab" if find_spec("MeCab") and find_spec("ipadic") else "char"
    return "zh"


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> Metric:
    """Return the corpus chrF2 (Popović 2015), an F-score of character n-grams.

    Arguments and errors as in `bleu`.
    """
    from sacrebleu.metrics import CHRF

    return _score(CHRF(), hypotheses, references)


def _score(metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> Metric:
    check(
        len(hypotheses) == len(references),
        f"There are {len(hypotheses):,} translations and {len(references):,} references; line n of "
        "the references must be a translation of line n of the source.",
    )
    check(len(hypotheses) > 0, "There are no lines to score.")
    score = metric.corpus_score(list(hypotheses), [list(references)]).score
    return Metric(float(score), str(metric.get_signature()))
