"""Parallel text: sentences and their translations, and the loader that deals them in batches of
like length."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import compress
from pathlib import Path

import numpy as np
import torch

from seq2chat.config import DataConfig, UserError, check
from seq2chat.text.batch import EVALUATION_ORDER, IGNORED, Batch, pad_rows, spread_batches
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.files import check_format, decode, numbered_lines, open_bytes, suffix
from seq2chat.text.named import Progress, find_corpus
from seq2chat.text.order import epoch_key, shuffled
from seq2chat.text.rows import Row, field_names, is_rows, read_rows
from seq2chat.text.split import FEW_DOCUMENTS
from seq2chat.text.turns import tidy

NAMED_PAIRS = {
    f"multi30k-{a}-{b}": (a, b) for a in ("en", "de", "fr") for b in ("en", "de", "fr") if a != b
}
NAMED_SIDES = (("source", "target"), ("src", "tgt"), ("input", "output"))
POOL = 100  # batches whose sentences are sorted by length together

Lines = list[tuple[str, str]]


@dataclass(frozen=True)
class ParallelCorpus:
    """Sentence pairs `(source, target)` to train on and to validate with; `n_blank` more had a
    blank side."""

    name: str
    train: Lines = field(repr=False)
    val: Lines = field(repr=False)
    n_blank: int

    def texts(self) -> Iterator[str]:
        """Yield both sides of every training pair: what a joint tokenizer is trained on."""
        for source, target in self.train:
            yield source
            yield target


def load_parallel(data: DataConfig, progress: Progress | None = None) -> ParallelCorpus:
    """Return the pairs of `data.source` and `data.target`, or of `data.corpus`: a named one or a
    table.

    A table has two columns, or a field `translation` with two; see `read_table`. A named corpus has
    a validation split of its own; of files, `val_fraction` of the pairs is held out. Pairs of which
    one side is blank are left out. Raises UserError when the files have different numbers of lines,
    or no pair.
    """
    if data.source:
        lines, n_blank = read_pairs(Path(data.source), Path(data.target))
        return ParallelCorpus(
            f"{data.source} → {data.target}", *_split(lines, data.val_fraction), n_blank
        )
    file = Path(data.corpus)
    if data.corpus not in NAMED_PAIRS and file.is_file():
        check_format(file)
    if data.corpus not in NAMED_PAIRS and file.is_file() and is_rows(file):
        lines, n_blank, name = read_table(file)
        return ParallelCorpus(name, *_split(lines, data.val_fraction), n_blank)
    check(
        data.corpus in NAMED_PAIRS,
        f"{data.corpus} is not parallel text, which translation learns from; give a .tsv file of "
        "two columns, or data.source and data.target, two files of equally many lines, or one of: "
        f"{', '.join(NAMED_PAIRS)}.",
    )
    check(
        data.val_fraction == DataConfig.val_fraction,
        f"data.val_fraction is for texts of your own; {data.corpus} has a validation split, so "
        "leave it out.",
    )
    a, b = NAMED_PAIRS[data.corpus]
    (train, n_train), (val, n_val) = (
        read_pairs(
            find_corpus(f"multi30k-{split}{a}", progress),
            find_corpus(f"multi30k-{split}{b}", progress),
        )
        for split in ("", "val-")
    )
    return ParallelCorpus(data.corpus, train, val, n_train + n_val)


def read_pairs(source: Path, target: Path) -> tuple[Lines, int]:
    """Return the pairs of two files, line by line, without those of which a side is blank, and the
    number of these.

    Raises UserError as `load_parallel` does.
    """
    for file in (source, target):
        check(
            file.exists() and not file.is_dir(),
            f"There is no file {file}; give two files of sentences, one a line.",
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
    """Return the pairs of a table, the number of those with a blank side, and the name of the text.

    A `.tsv` file has a sentence, a tab and its translation on each line, without a header and
    without quoting, as corpora of translations do. Other rows have two fields, or more with two of
    a pair of names such as `source` and `target`, or a field `translation` that holds two. The
    first is the source. Raises UserError for a line that is no pair.
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
    """Return the names of the two fields that hold a sentence and its translation."""
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
    """Return how the sources of `lines` begin, of the first three."""
    begins = [f"“{source[:40]}{'…' * (len(source) > 40)}”" for source, _ in lines[:3]]
    return ", ".join(begins) + (", …" if len(lines) > 3 else "")


def _split(lines: Lines, val_fraction: float) -> tuple[Lines, Lines]:
    """Hold pairs out by the hash of their source, so that copies of a sentence are on one side;
    few, from the end."""
    if len(lines) < FEW_DOCUMENTS:
        check(
            len(lines) > 1,
            "There is one pair of sentences; give at least two, one to train on and one to "
            "validate.",
        )
        cut = min(len(lines) - 1, max(1, int(len(lines) * (1 - val_fraction))))
        return lines[:cut], lines[cut:]
    shares = [
        int.from_bytes(hashlib.sha256(s.encode()).digest()[:8], "big") / 2**64 for s, _ in lines
    ]
    train = [pair for pair, share in zip(lines, shares, strict=True) if share >= val_fraction]
    val = [pair for pair, share in zip(lines, shares, strict=True) if share < val_fraction]
    check(
        bool(train and val),
        f"data.val_fraction {val_fraction} leaves no pair on one side; change it.",
    )
    return train, val


@dataclass(frozen=True)
class Pairs:
    """Tokenized pairs; `fingerprint` stands for their tokens and tokenizer. `eos_id` ends each side
    when batched."""

    source: list[np.ndarray] = field(repr=False)
    target: list[np.ndarray] = field(repr=False)
    eos_id: int
    pad_id: int
    fingerprint: str

    @classmethod
    def encode(cls, lines: Lines, tokenizer: ByteBPE, context: int) -> tuple["Pairs", Lines]:
        """Return the pairs of at most `context` tokens a side, end token included, and those that
        were longer."""
        eos_id, pad_id = tokenizer.eos_id, tokenizer.pad_id
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
        """Return pairs `rows`: sources end with the end token, targets begin with it, labels end
        with it."""
        sources, targets = ([side[i].tolist() for i in rows] for side in (self.source, self.target))
        return pair_batch(sources, targets, self.eos_id, self.pad_id)


def pair_batch(
    sources: list[list[int]], targets: list[list[int]], eos_id: int, pad_id: int
) -> Batch:
    """Return pairs of token lists as a batch: sources end with the end token, targets begin and
    labels end with it."""
    source = pad_rows([[*ids, eos_id] for ids in sources], pad_id)
    lengths = torch.tensor([len(ids) + 1 for ids in sources])
    return Batch(
        target=pad_rows([[eos_id, *ids] for ids in targets], pad_id),
        labels=pad_rows([[*ids, eos_id] for ids in targets], IGNORED),
        source=source,
        source_mask=torch.arange(source.shape[1]) < lengths[:, None],
    )


class PairLoader:
    """Deals the training pairs in batches of like length, each pair once an epoch.

    A batch has about as many tokens as `batch_size` pairs of average length, so short pairs come in
    larger batches. The plan of an epoch is a pure function of the pairs, the seed, the epoch and
    the batch size.
    """

    def __init__(self, pairs: Pairs, seed: int) -> None:
        self.pairs, self.seed, self.fingerprint = pairs, seed, pairs.fingerprint
        self.lengths = (
            np.array([[len(t), len(s)] for s, t in zip(pairs.source, pairs.target, strict=True)])
            + 1
        )
        self.epoch_tokens = int(self.lengths[:, 0].sum())
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    def epoch_batches(self, batch_size: int) -> float:
        """Return the number of batches in an epoch, which differs a little from one to the next:
        the first one's."""
        return float(len(self._plan(0, batch_size)[1]))

    def n_samples(self, first_sample: int, batch_size: int) -> int:
        """Return how many pairs the batch that begins with `first_sample` has, over all ranks."""
        return len(self._rows(first_sample, batch_size))

    def batch(
        self, first_sample: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Batch:
        """Return this rank's pairs of the batch that begins with the `first_sample`-th pair
        dealt."""
        return self.pairs.batch(self._rows(first_sample, batch_size)[rank::world_size])

    def _rows(self, first_sample: int, batch_size: int) -> list[int]:
        epoch, offset = divmod(first_sample, len(self.pairs))
        starts, batches = self._plan(epoch, batch_size)
        index = int(np.searchsorted(starts, offset))
        assert starts[index] == offset, "batches are dealt whole"
        return batches[index].tolist()

    def _make_plan(self, epoch: int, batch_size: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the offset at which each batch of the epoch starts, and the pairs in it."""
        key = epoch_key(self.fingerprint, self.seed, epoch)
        order = shuffled(len(self.pairs), key[:8])
        budget = batch_size * self.lengths.max(1).mean()
        batches: list[np.ndarray] = []
        for first in range(0, len(order), POOL * batch_size):
            pool = order[first : first + POOL * batch_size]
            # Stable, so that pairs of one length stay in random order.
            batches += _cut(
                pool[np.lexsort(self.lengths[pool].T[::-1])], self.lengths.max(1), budget
            )
        batches = [batches[i] for i in shuffled(len(batches), key[8:16])]
        return np.cumsum([0, *map(len, batches)])[:-1], batches


def _cut(rows: np.ndarray, lengths: np.ndarray, budget: float) -> list[np.ndarray]:
    """Cut `rows` into batches of at most `budget` tokens, padding included, but of one row at
    least."""
    batches, first, longest = [], 0, 0
    for i, length in enumerate(lengths[rows].tolist()):
        longest = max(longest, length)
        if i > first and (i + 1 - first) * longest > budget:
            batches.append(rows[first:i])
            first, longest = i, length
    return [*batches, rows[first:]]


def pair_batches(pairs: Pairs, batch_size: int, limit: int = 0) -> Iterator[Batch]:
    """Yield each pair once, in batches of like length; with a `limit`, pairs of about so many
    target tokens."""
    lengths = np.array([len(target) + 1 for target in pairs.target])
    rows = np.arange(len(pairs))
    if limit:
        rows = shuffled(len(pairs), EVALUATION_ORDER[:8])
        rows = rows[: int(np.searchsorted(np.cumsum(lengths[rows]), limit)) + 1]
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    # A sample may be cut short, and its beginning must not be the short sentences alone.
    for [i] in spread_batches(len(batches), 1, limit):
        yield pairs.batch(batches[i].tolist())


def read_lines(file: Path) -> list[str]:
    """Return the lines of a file, gzipped or not, without their ends; blank ones are kept, so that
    their numbers hold.

    A file without `\\n` has lines that end with `\\r`, as on old Macs. Raises UserError if it
    cannot be read as text, and for a table.
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
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
