"""Parallel text: sentences and their translations, and a loader of batches of similar length."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import compress
from pathlib import Path

import numpy as np
import torch

from seq2chat.config import DataConfig, UserError, check
from seq2chat.text.batch import EVALUATION_ORDER, IGNORED, Batch, pad_rows, spread_batches
from seq2chat.text.files import check_format, decode, numbered_lines, open_bytes, suffix
from seq2chat.text.named import Progress, find_corpus
from seq2chat.text.order import epoch_key, shuffled
from seq2chat.text.plain import hash_share
from seq2chat.text.rows import Row, field_names, is_rows, read_rows
from seq2chat.text.split import FEW_DOCUMENTS
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.turns import tidy

NAMED_PAIRS = {
    f"multi30k-{a}-{b}": (a, b) for a in ("en", "de", "fr") for b in ("en", "de", "fr") if a != b
}
NAMED_SIDES = (("source", "target"), ("src", "tgt"), ("input", "output"))
POOL = 100  # batches per pool, whose sentences are sorted by length together

Lines = list[tuple[str, str]]


@dataclass(frozen=True)
class ParallelCorpus:
    """Sentence pairs `(source, target)` for training and validation. `n_blank` pairs with a blank
    side were left out."""

    name: str
    train: Lines = field(repr=False)
    val: Lines = field(repr=False)
    n_blank: int

    def texts(self) -> Iterator[str]:
        """Yield both sides of every training pair, for training a joint tokenizer."""
        for source, target in self.train:
            yield source
            yield target


def load_parallel(data: DataConfig, progress: Progress | None = None) -> ParallelCorpus:
    """Return the pairs of `data.source` and `data.target`, or of `data.corpus`, a named corpus or a
    table.

    A table has two columns, or a field `translation` with two (see `read_table`). A named corpus
    has its own validation split. For files, `val_fraction` of the pairs is held out. Pairs with a
    blank side are left out. Raises UserError if the files have different numbers of lines, or no
    pair.
    """
    if data.source:
        lines, n_blank = read_pairs(Path(data.source), Path(data.target))
        name = f"{data.source} → {data.target}"
        return ParallelCorpus(name, *_split(lines, data.val_fraction), n_blank)
    file = Path(data.corpus)
    if data.corpus not in NAMED_PAIRS and file.is_file():
        check_format(file)
        if is_rows(file):
            lines, n_blank, name = read_table(file)
            return ParallelCorpus(name, *_split(lines, data.val_fraction), n_blank)
    check(
        data.corpus in NAMED_PAIRS,
        f"{data.corpus} is not parallel text, which translation needs; give a .tsv file of two "
        "columns, or data.source and data.target, two files of equally many lines, or one of: "
        f"{', '.join(NAMED_PAIRS)}.",
    )
    check(
        data.val_fraction == DataConfig.val_fraction,
        f"data.val_fraction is for your own texts; {data.corpus} has a validation split, so leave "
        "it out.",
    )
    a, b = NAMED_PAIRS[data.corpus]
    train, n_blank_train = _named_pairs(a, b, "", progress)
    val, n_blank_val = _named_pairs(a, b, "val-", progress)
    return ParallelCorpus(data.corpus, train, val, n_blank_train + n_blank_val)


def _named_pairs(a: str, b: str, split: str, progress: Progress | None) -> tuple[Lines, int]:
    source = find_corpus(f"multi30k-{split}{a}", progress)
    target = find_corpus(f"multi30k-{split}{b}", progress)
    return read_pairs(source, target)


def read_pairs(source: Path, target: Path) -> tuple[Lines, int]:
    """Return the pairs of two files, line by line, and the number of pairs left out because a side
    is blank.

    Raises UserError as `load_parallel`.
    """
    for file in (source, target):
        check(
            file.exists() and not file.is_dir(),
            f"There is no file {file}; give two files with one sentence per line.",
        )
    sides = [read_lines(file) for file in (source, target)]
    counts = [len(lines) for lines in sides]
    check(
        counts[0] == counts[1],
        f"{source} has {counts[0]:,} lines and {target} has {counts[1]:,}; line n of one must "
        "translate line n of the other.",
    )
    pairs = [(s.strip(), t.strip()) for s, t in zip(*sides, strict=True) if s.strip() and t.strip()]
    check(
        bool(pairs), f"{source} and {target} hold no pair of sentences; give texts to learn from."
    )
    return pairs, counts[0] - len(pairs)


def read_table(file: Path) -> tuple[Lines, int, str]:
    """Return the pairs of a table, the number of pairs left out because a side is blank, and the
    name of the text.

    Each line of a `.tsv` file has a sentence, a tab and its translation, without a header or
    quoting. Other tables have two fields, or a pair of names such as `source` and `target` among
    more, or a field `translation` with two fields. The first is the source. Raises UserError for a
    line that is not a pair.
    """
    if suffix(file) == ".tsv":
        pairs = [
            _columns(line, f"Line {number} of {file}") for line, number in numbered_lines(file)
        ]
        name = f"{file} (column 1 → column 2)"
    else:
        rows = list(read_rows(file))
        check(bool(rows), f"{file} holds no pair of sentences; give texts to learn from.")
        sides = _sides(rows[0])
        pairs = [_fields(row, sides) for row in rows]
        name = f"{file} ({sides[0]} → {sides[1]})"
    kept = [(source, target) for source, target in pairs if source and target]
    check(bool(kept), f"{file} holds no pair of sentences; give texts to learn from.")
    return kept, len(pairs) - len(kept), name


def _columns(line: str, where: str) -> tuple[str, str]:
    columns = line.split("\t")
    check(
        len(columns) == 2,
        f"{where} has {len(columns)} columns where a sentence, a tab and its translation should be;"
        " to keep two: cut -f1,2 OLD.tsv > NEW.tsv",
    )
    return columns[0].strip(), columns[1].strip()


def _sides(row: Row) -> tuple[str, str]:
    """Return the names of the two fields with a sentence and its translation."""
    fields = _translation(row)
    named = next((pair for pair in NAMED_SIDES if pair[0] in fields and pair[1] in fields), None)
    names = named or tuple(fields)
    check(
        len(names) == 2,
        f"{row.where} has the fields {field_names(row)}; keep two, the sentence first, or name them"
        " source and target.",
    )
    return names[0], names[1]


def _fields(row: Row, sides: tuple[str, str]) -> tuple[str, str]:
    fields = _translation(row)
    texts = [fields.get(side) for side in sides]
    for side, text in zip(sides, texts, strict=True):
        check(
            isinstance(text, str),
            f'{row.where} has no text in its field {side!r}; write one, or "".',
        )
    source, target = (" ".join(tidy(str(text)).split("\n")).strip() for text in texts)
    return source, target


def _translation(row: Row) -> dict:
    inner = row.fields.get("translation")
    return inner if isinstance(inner, dict) else row.fields


def excerpt(lines: Lines) -> str:
    """Return the beginnings of the first three sources."""
    beginnings = [f"“{source[:40]}{'…' * (len(source) > 40)}”" for source, _ in lines[:3]]
    return ", ".join(beginnings) + (", …" if len(lines) > 3 else "")


def _split(lines: Lines, val_fraction: float) -> tuple[Lines, Lines]:
    """Return training and validation pairs.

    Pairs are held out by the hash of their source, so that copies of a sentence are on the same
    side. Of few pairs the last ones are held out.
    """
    if len(lines) < FEW_DOCUMENTS:
        check(
            len(lines) > 1,
            "There is one pair of sentences; give at least two, one to train on and one to "
            "validate.",
        )
        cut = min(len(lines) - 1, max(1, int(len(lines) * (1 - val_fraction))))
        return lines[:cut], lines[cut:]
    shares = [hash_share(source) for source, _ in lines]
    train = [pair for pair, share in zip(lines, shares, strict=True) if share >= val_fraction]
    val = [pair for pair, share in zip(lines, shares, strict=True) if share < val_fraction]
    check(
        bool(train and val),
        f"data.val_fraction {val_fraction} leaves no pair on one side; change it.",
    )
    return train, val


@dataclass(frozen=True)
class Pairs:
    """Tokenized pairs. `fingerprint` identifies their tokens and tokenizer, and `eos_id` ends each
    side in a batch."""

    source: list[np.ndarray] = field(repr=False)
    target: list[np.ndarray] = field(repr=False)
    eos_id: int
    pad_id: int
    fingerprint: str

    @classmethod
    def encode(cls, lines: Lines, tokenizer: TextTokenizer, context: int) -> tuple["Pairs", Lines]:
        """Return the pairs with at most `context` tokens per side, including the end token, and the
        lines of longer pairs."""
        eos_id = tokenizer.eos_id
        pad_id = tokenizer.pad_id
        if eos_id is None or pad_id is None:
            raise UserError(
                "The tokenizer has no end or no padding token; train one with seq2chat."
            )
        sides = [list(tokenizer.encode_documents(side)) for side in zip(*lines, strict=True)]
        fits = [max(len(s), len(t)) < context for s, t in zip(*sides, strict=True)]
        kept = list(compress(zip(*sides, strict=True), fits))
        check(
            bool(kept),
            f"Every pair has more than the model's {context} tokens; raise model.context.",
        )
        digest = hashlib.sha256(tokenizer.fingerprint.encode())
        for tokens in (tokens for pair in kept for tokens in pair):
            digest.update(len(tokens).to_bytes(8, "little") + tokens.astype(np.uint32).tobytes())
        source, target = (list(side) for side in zip(*kept, strict=True))
        pairs = cls(source, target, eos_id, pad_id, digest.hexdigest())
        return pairs, [line for line, fit in zip(lines, fits, strict=True) if not fit]

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return the pairs numbered `rows` as in `pair_batch`."""
        sources = [self.source[i].tolist() for i in rows]
        targets = [self.target[i].tolist() for i in rows]
        return pair_batch(sources, targets, self.eos_id, self.pad_id)


def pair_batch(
    sources: list[list[int]], targets: list[list[int]], eos_id: int, pad_id: int
) -> Batch:
    """Return pairs of token lists as a batch.

    Sources and labels end with the end token, and targets begin with it.
    """
    source = pad_rows([[*ids, eos_id] for ids in sources], pad_id)
    lengths = torch.tensor([len(ids) + 1 for ids in sources])
    return Batch(
        target=pad_rows([[eos_id, *ids] for ids in targets], pad_id),
        labels=pad_rows([[*ids, eos_id] for ids in targets], IGNORED),
        source=source,
        source_mask=torch.arange(source.shape[1]) < lengths[:, None],
    )


class PairLoader:
    """A loader of the training pairs in batches of similar length, each pair once per epoch.

    A batch has about as many tokens as `batch_size` pairs of average length, so short pairs come in
    larger batches. The batches of an epoch are a pure function of the pairs, the seed, the epoch
    and the batch size.
    """

    def __init__(self, pairs: Pairs, seed: int) -> None:
        self.pairs = pairs
        self.seed = seed
        self.fingerprint = pairs.fingerprint
        sides = zip(pairs.target, pairs.source, strict=True)
        self.lengths = np.array([[len(target), len(source)] for target, source in sides]) + 1
        self.epoch_tokens = int(self.lengths[:, 0].sum())
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    def epoch_batches(self, batch_size: int) -> float:
        """Return the number of batches in the first epoch. Others differ a little."""
        return float(len(self._plan(0, batch_size)[1]))

    def n_samples(self, first_sample: int, batch_size: int) -> int:
        """Return the number of pairs in the batch that starts with `first_sample`."""
        return len(self._rows(first_sample, batch_size))

    def batch(
        self, first_sample: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Batch:
        """Return this rank's pairs of the batch that starts with pair `first_sample` of the run.

        A rank without a pair, as long ones come in small batches, gets one without labels.
        """
        rows = self._rows(first_sample, batch_size)
        if rank < len(rows):
            return self.pairs.batch(rows[rank::world_size])
        batch = self.pairs.batch(rows[:1])
        return replace(batch, labels=torch.full_like(batch.labels, IGNORED))

    def _rows(self, first_sample: int, batch_size: int) -> list[int]:
        epoch, offset = divmod(first_sample, len(self.pairs))
        starts, batches = self._plan(epoch, batch_size)
        index = int(np.searchsorted(starts, offset))
        assert starts[index] == offset, "a batch is never split"
        return batches[index].tolist()

    def _make_plan(self, epoch: int, batch_size: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the offset of each batch in the epoch, and the pairs in each batch."""
        key = epoch_key(self.fingerprint, self.seed, epoch)
        order = shuffled(len(self.pairs), key[:8])
        budget = batch_size * self.lengths.max(1).mean()
        batches: list[np.ndarray] = []
        for first in range(0, len(order), POOL * batch_size):
            pool = order[first : first + POOL * batch_size]
            # lexsort is stable, so that pairs of equal lengths stay in random order.
            by_length = pool[np.lexsort(self.lengths[pool].T[::-1])]
            batches += _cut(by_length, self.lengths.max(1), budget)
        batches = [batches[i] for i in shuffled(len(batches), key[8:16])]
        return np.cumsum([0, *map(len, batches)])[:-1], batches


def _cut(rows: np.ndarray, lengths: np.ndarray, budget: float) -> list[np.ndarray]:
    """Cut `rows` into batches of at most `budget` tokens, including padding, and at least one
    row."""
    batches = []
    first = 0
    longest = 0
    for i, length in enumerate(lengths[rows].tolist()):
        longest = max(longest, length)
        if i > first and (i + 1 - first) * longest > budget:
            batches.append(rows[first:i])
            first = i
            longest = length
    return [*batches, rows[first:]]


def pair_batches(pairs: Pairs, batch_size: int, limit: int = 0) -> Iterator[Batch]:
    """Yield each pair once, in batches of similar length, or with a `limit` pairs with about that
    many target tokens."""
    lengths = np.array([len(target) + 1 for target in pairs.target])
    rows = np.arange(len(pairs))
    if limit:
        rows = shuffled(len(pairs), EVALUATION_ORDER[:8])
        rows = rows[: int(np.searchsorted(np.cumsum(lengths[rows]), limit)) + 1]
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    # Spread, because an evaluation may stop early and must not see only the short sentences.
    for [i] in spread_batches(len(batches), 1, limit):
        yield pairs.batch(batches[i].tolist())


def read_lines(file: Path) -> list[str]:
    """Return the lines of a file, gzipped or not, without line ends.

    Blank lines are kept, so that line numbers stay right. A file without `\\n` is split at `\\r`,
    the line end of old Macs. Raises UserError for a table, and for a file that is not text.
    """
    check_format(file)
    check(
        not is_rows(file),
        f"{file} is a table by its name, not one sentence per line. To train on its two columns, "
        f"write: seq2chat train {file} --model.family transformer. To get one column of a .tsv "
        f"file: cut -f1 {file} > column.txt",
    )
    with open_bytes(file) as stream:
        text = decode(stream.read(), file, 0).removeprefix("\ufeff")
    lines = text.split("\n" if "\n" in text else "\r")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
