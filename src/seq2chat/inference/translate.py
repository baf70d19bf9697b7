"""Translating lines of text, and how well that was done: BLEU and chrF."""

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
from seq2chat.text.byte_bpe import ByteBPE

POOL = 2000  # lines that are sorted by length together
BLANK = Hypothesis([], [], 0.0, True)


@dataclass(frozen=True)
class Translation:
    """Of one line: the source tokens that the model read, the hypotheses with their texts, best
    first, and how many tokens of the line were left out because the model's context has no room for
    them.

    A blank line has no source, and its one translation is empty.
    """

    line: str
    source: list[int]
    hypotheses: list[Hypothesis]
    texts: list[str]
    n_cut: int

    @property
    def text(self) -> str:
        """The best translation, one line."""
        return self.texts[0]


def translate(
    model: Seq2Seq | Transformer,
    tokenizer: ByteBPE,
    lines: Iterable[str],
    *,
    batch_tokens: int = 4096,
    progress: Callable[[int], object] | None = None,
    **search: Any,
) -> Iterator[Translation]:
    """Yield the translation of each line, in their order.

    Lines of like length run together, about `batch_tokens` source tokens at once. `search` are the
    options of `beam_search`: beam, n_best, length_penalty, alpha, min_length, max_length.
    `progress` is told how many more lines are done. Raises UserError for options that make no
    sense.
    """
    check(batch_tokens > 0, f"batch_tokens is {batch_tokens}; write a positive number.")
    end, lines = tokenizer.eos_id, iter(lines)
    if end is None:
        raise UserError(
            "The tokenizer has no end token; use the one that the model was trained with."
        )
    while pool := list(islice(lines, POOL)):
        sources, n_cut = zip(
            *(_encode(line, tokenizer, end, model.context) for line in pool), strict=True
        )
        found: dict[int, list[Hypothesis]] = {}
        for batch in _batches(sources, batch_tokens):
            results = beam_search(
                model, [[end]] * len(batch), end, [sources[i] for i in batch], **search
            )
            found.update(zip(batch, results, strict=True))
            if progress is not None:
                progress(len(batch))
        for i, (line, source) in enumerate(zip(pool, sources, strict=True)):
            hypotheses = found.get(i, [BLANK])
            texts = [_decode(hypothesis.tokens, tokenizer) for hypothesis in hypotheses]
            yield Translation(line, source, hypotheses, texts, n_cut[i])


def _encode(line: str, tokenizer: ByteBPE, end: int, context: int) -> tuple[list[int], int]:
    """Return the tokens of `line` with the end token, as many as fit, and how many did not."""
    ids = tokenizer.encode(line.strip())
    kept = ids[: context - 1]
    return [*kept, end] if ids else [], len(ids) - len(kept)


def _decode(ids: Sequence[int], tokenizer: ByteBPE) -> str:
    """Return the text of `ids` without control tokens, on one line whatever a model may write."""
    control = set(tokenizer.control.values())
    return " ".join(tokenizer.decode(i for i in ids if i not in control).splitlines()).strip()


def _batches(sources: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of the sources that are not empty, sorted by length, about `batch_tokens`
    tokens at a time."""
    order = sorted((i for i, source in enumerate(sources) if source), key=lambda i: len(sources[i]))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(sources[i]) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@dataclass(frozen=True)
class Metric:
    """A corpus score from 0 to 100 and sacrebleu's signature, without which it can be compared with
    nothing."""

    score: float
    signature: str


def bleu(hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "") -> Metric:
    """Return the corpus BLEU (Papineni et al. 2002) by sacrebleu (Post 2018), one reference per
    line.

    `tokenize` is one of sacrebleu's tokenizers, by default that of the references' script; "none"
    takes text that is tokenized. Raises UserError unless there are as many references as
    hypotheses.
    """
    from sacrebleu.metrics import BLEU

    tokenize = tokenize or script_tokenizer(references)
    return _measure(BLEU(tokenize=tokenize, force=tokenize == "none"), hypotheses, references)


KANA = "\u3040-\u30ff"
HAN = "\u3400-\u4dbf\u4e00-\u9fff"
HANGUL = "\uac00-\ud7a3"
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer


def script_tokenizer(references: Sequence[str]) -> str:
    """Return the sacrebleu tokenizer for the script of most of the references' letters.

    "13a" parts words at white space, which Chinese, Japanese and Thai do not write; for them it
    would compare whole sentences. MeCab parts Japanese and Korean words where it is installed, and
    characters are compared where not.
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
    if 20 * kana > han:
        return "ja-mecab" if find_spec("MeCab") and find_spec("ipadic") else "char"
    return "zh"


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> Metric:
    """Return the corpus chrF2 (Popović 2015), an F-score of character n-grams; arguments and errors
    as in `bleu`."""
    from sacrebleu.metrics import CHRF

    return _measure(CHRF(), hypotheses, references)


def _measure(metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> Metric:
    check(
        len(hypotheses) == len(references),
        f"There are {len(hypotheses):,} translations and {len(references):,} references; line n of "
        "one must be that of the other.",
    )
    check(len(hypotheses) > 0, "There is no line to measure.")
    score = metric.corpus_score(list(hypotheses), [list(references)]).score
    return Metric(float(score), str(metric.get_signature()))
