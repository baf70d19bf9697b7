"""The contents of a GGUF file, llama.cpp's format: metadata, and tensors in one file.

The format is specified at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is
read here, because a hostile file can make the reader of the `gguf` package run or allocate without
bound. Tensors are dequantized by the package.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seq2chat.config import UserError, check

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
MAX_DIMENSIONS = 4

# Types that the `gguf` package names, and that this package reads.
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the file: its type by name, its shape (rows first), and where its bytes are."""

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    size: int


class GGUFFile:
    """An open GGUF file. `metadata` maps keys to values, and `tensors` names to their place.

    Raises UserError if the `gguf` package is missing, and for a file that is damaged, truncated, or
    has tensors of a type that is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._gguf = import_gguf()
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} can't be read: {error}; get the file again.") from None
        self._at = 0
        try:
            self._read_header()
        except (struct.error, UnicodeDecodeError, OverflowError, RecursionError) as error:
            raise self._damaged(str(error)) from None

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor as float32, or as float16 if it is stored so."""
        stored = self.tensors[name]
        kind = self._gguf.GGMLQuantizationType[stored.type]
        raw = np.frombuffer(self._data, np.uint8, stored.size, stored.start)
        if stored.type in ("F32", "F16"):
            number = np.float32 if stored.type == "F32" else np.float16
            return raw.view(number).reshape(stored.shape).copy()
        rows = raw.reshape(*stored.shape[:-1], -1)
        return self._gguf.quants.dequantize(rows, kind).reshape(stored.shape)

    def close(self) -> None:
        self._data.close()

    def _read_header(self) -> None:
        if self._take(4) != MAGIC:
            raise UserError(f"{self.path} is not a GGUF file.")
        version = self._number("<I")
        check(
            version in VERSIONS,
            f"{self.path} has version {version} of GGUF; versions 2 and 3 are read.",
        )
        n_tensors = self._number("<Q")
        n_keys = self._number("<Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._string()
            self.metadata[key] = self._value(self._number("<I"))
        infos = [self._tensor_info() for _ in range(self._count(n_tensors, 24))]
        alignment = self.metadata.get("general.alignment", 32)
        if not (isinstance(alignment, int) and alignment > 0):
            raise self._damaged(f"its alignment is {alignment}")
        first = -(-self._at // alignment) * alignment
        self.tensors: dict[str, StoredTensor] = {}
        for name, kind, shape, offset in infos:
            self.tensors[name] = self._stored(name, kind, shape, first + offset)

    def _tensor_info(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self._string()
        n_dimensions = self._number("<I")
        if n_dimensions > MAX_DIMENSIONS:
            raise self._damaged(f"tensor {name} has {n_dimensions} dimensions")
        sizes = [self._number("<Q") for _ in range(n_dimensions)]
        # The file's order is columns first.
        return name, self._number("<I"), tuple(reversed(sizes)), self._number("<Q")

    def _stored(self, name: str, kind: int, shape: tuple[int, ...], start: int) -> StoredTensor:
        known = {t.value: t.name for t in self._gguf.GGMLQuantizationType}
        type_name = known.get(kind, str(kind))
        check(
            type_name in TYPES,
            f"{self.path}: tensor {name} has the type {type_name}, which is not read; "
            f"{', '.join(TYPES)} are.",
        )
        if name in self.tensors or not shape:
            raise self._damaged(f"tensor {name} is there twice, or has no dimensions")
        n_per_block, n_bytes = self._gguf.GGML_QUANT_SIZES[kind]
        n = math.prod(shape)
        size = n // n_per_block * n_bytes
        if n == 0 or shape[-1] % n_per_block or start + size > len(self._data):
            raise self._damaged(f"tensor {name} of shape {shape} does not fit the file")
        return StoredTensor(name, type_name, shape, start, size)

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(self._format(kind))
        item = self._number("<I")
        n = self._number("<Q")
        if item == _STRING:
            return [self._string() for _ in range(self._count(n, 8))]
        if item == _ARRAY:
            if depth > 2:
                raise self._damaged("its arrays are nested too deeply")
            return [self._value(_ARRAY, depth + 1) for _ in range(self._count(n, 12))]
        number = np.dtype(self._format(item))
        return np.frombuffer(self._take(n * number.itemsize), number).tolist()

    def _format(self, kind: int) -> str:
        if kind not in _NUMBERS:
            raise self._damaged(f"it has a value of the unknown type {kind}")
        return _NUMBERS[kind]

    def _count(self, n: int, least_bytes: int) -> int:
        """Return a number of items, each of at least this size, if the file has room for them."""
        if n * least_bytes > len(self._data) - self._at:
            raise self._damaged(f"it announces {n:,} items, more than it has room for")
        return n

    def _string(self) -> str:
        return self._take(self._number("<Q")).decode("utf-8", errors="replace")

    def _number(self, format: str) -> Any:
        return struct.unpack(format, self._take(struct.calcsize(format)))[0]

    def _take(self, n: int) -> bytes:
        end = self._at + n
        if end > len(self._data):
            raise self._damaged("it ends in the middle of its header")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def _damaged(self, why: str) -> UserError:
        return UserError(f"{self.path} is damaged: {why}; get the file again.")


def import_gguf() -> Any:
    """Return the `gguf` package. Raises UserError if it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise UserError('GGUF files need another package: pip install "seq2chat[gguf]".') from error
    return gguf
