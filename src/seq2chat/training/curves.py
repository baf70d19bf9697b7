"""The curves of a run: `metrics.jsonl`, read during training in bounded memory.

A long run has more rows than a page can draw. Rows are therefore averaged in blocks of 1, 2, 4, ...
consecutive rows, so that there are at most MAX_POINTS blocks. The blocks depend on the rows alone,
and not on when or how often the file was read.
"""

import json
import math
import os
from dataclasses import dataclass, field
from typing import Any

from seq2chat.training.run_folder import RunFolder

MAX_POINTS = 512  # blocks of a table
MAX_NAMES = 64  # metrics of a table; a run of this package has fewer
CHUNK = 1 << 20  # bytes that are read at once
AXES = ("step", "tokens", "elapsed_seconds")
SPREAD = ("loss", "grad_norm")  # metrics whose extremes in a block are kept, too

Extremes = tuple[float, float]


@dataclass
class Block:
    """Consecutive rows: the axes of the last one, and the sum and number of each metric."""

    n_rows: int
    axes: dict[str, float]
    sums: dict[str, tuple[float, int]]
    spread: dict[str, Extremes]

    def merge(self, later: "Block") -> "Block":
        """Return one block with the rows of both."""
        sums = dict(self.sums)
        for name, (value, n) in later.sums.items():
            before, n_before = sums.get(name, (0.0, 0))
            sums[name] = before + value, n_before + n
        spread = dict(self.spread)
        for name, (low, high) in later.spread.items():
            lowest, highest = spread.get(name, (low, high))
            spread[name] = min(low, lowest), max(high, highest)
        return Block(self.n_rows + later.n_rows, self.axes | later.axes, sums, spread)


@dataclass
class Table:
    """Rows of numbers in at most MAX_POINTS blocks of `block_rows` rows; the last has fewer."""

    block_rows: int = 1
    blocks: list[Block] = field(default_factory=list)
    names: dict[str, None] = field(default_factory=dict)

    def add(self, row: dict[str, float]) -> None:
        """Append a row. Names beyond the first MAX_NAMES are left out."""
        metrics = {name: value for name, value in row.items() if name not in AXES}
        for name in metrics:
            if len(self.names) < MAX_NAMES:
                self.names.setdefault(name)
        block = Block(
            n_rows=1,
            axes={name: row[name] for name in AXES if name in row},
            sums={name: (value, 1) for name, value in metrics.items() if name in self.names},
            spread={name: (metrics[name], metrics[name]) for name in SPREAD if name in metrics},
        )
        if self.blocks and self.blocks[-1].n_rows < self.block_rows:
            self.blocks[-1] = self.blocks[-1].merge(block)
            return
        if len(self.blocks) == MAX_POINTS:
            pairs = zip(self.blocks[::2], self.blocks[1::2], strict=True)
            self.blocks = [first.merge(second) for first, second in pairs]
            self.block_rows *= 2
        self.blocks.append(block)

    def columns(self) -> dict[str, Any]:
        """Return the axes and the mean of each metric as one list per name, None where missing.

        `low` and `high` have the extremes of the metrics in SPREAD if blocks have several rows.
        """

        def axis(block: Block, name: str) -> int | float | None:
            value = block.axes.get(name)
            return int(value) if value is not None and value.is_integer() else value

        def mean(block: Block, name: str) -> float | None:
            value, n = block.sums.get(name, (0.0, 0))
            return rounded(value / n) if n else None

        def extreme(block: Block, name: str, which: int) -> float | None:
            return rounded(block.spread[name][which]) if name in block.spread else None

        spread = [name for name in SPREAD if name in self.names and self.block_rows > 1]
        axes = [name for name in AXES if any(name in block.axes for block in self.blocks)]
        return {
            "block_rows": self.block_rows,
            "axes": {name: [axis(block, name) for block in self.blocks] for name in axes},
            "metrics": {name: [mean(b, name) for b in self.blocks] for name in self.names},
            "low": {name: [extreme(b, name, 0) for b in self.blocks] for name in spread},
            "high": {name: [extreme(b, name, 1) for b in self.blocks] for name in spread},
        }


def rounded(value: float) -> float:
    """Return a number with six significant digits."""
    return float(f"{value:.6g}")


class Curves:
    """The tables of a run: `train` has a row per step and `validation` one per validation.

    `update` reads what was appended since its last call. A file that was replaced, as by a resumed
    run, is read from its beginning.
    """

    def __init__(self, run: RunFolder) -> None:
        self._file = run.metrics_file
        self._reset()

    def _reset(self, identity: tuple[int, int] | None = None) -> None:
        self._identity = identity
        self._offset = 0
        self.train = Table()
        self.validation = Table()
        self.n_unreadable = 0
        self.last: dict[str, float] = {}

    def update(self) -> None:
        """Read the lines that are complete. A missing file has none."""
        try:
            stream = self._file.open("rb")
        except FileNotFoundError:
            self._reset()
            return
        with stream:
            stat = os.fstat(stream.fileno())
            identity = stat.st_dev, stat.st_ino
            if identity != self._identity or stat.st_size < self._offset:
                self._reset(identity)
            stream.seek(self._offset)
            rest = b""
            while chunk := stream.read(CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._offset += len(line) + 1
                    self._add(line)

    def _add(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            items = values.items()
        except (ValueError, AttributeError):  # a kill can leave a part of a line
            self.n_unreadable += 1
            return
        row = {
            name: float(value)
            for name, value in items
            if isinstance(value, int | float) and math.isfinite(value)
        }
        self.last |= row
        is_validation = any(name.startswith("val_") for name in row)
        (self.validation if is_validation else self.train).add(row)
