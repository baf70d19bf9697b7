"""Writing safetensors files one tensor after the other, also of a model divided among processes.

A tensor is gathered when its turn comes, so no process ever holds more than one whole tensor. The
format is that of https://github.com/huggingface/safetensors: the length of a header, the header as
JSON, and the tensors.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

ALIGNMENT = 8  # bytes, of the header

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class StoredTensor(NamedTuple):
    """A tensor of a file. `read` returns it, on any device, and gathers it if it is divided."""

    name: str
    shape: Sequence[int]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor gathered from all processes, which have to call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def stored(name: str, tensor: Tensor) -> StoredTensor:
    """Return the entry of a tensor that is stored as it is."""
    return StoredTensor(name, tensor.shape, tensor.dtype, lambda: whole_tensor(tensor.detach()))


def write_tensors(tensors: Sequence[StoredTensor], file: Path | None) -> None:
    """Write the tensors to `file`. A process without a file only takes part in gathering them.

    An earlier file is replaced once the new one is complete, as programs may have mapped it into
    their memory. Raises OSError if the file can't be written, after all tensors are gathered, as
    the other processes wait for this one.
    """
    # Wide formats first, so that each tensor is aligned to its numbers.
    tensors = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    failure: OSError | None = None
    stream: IO[bytes] | None = None
    temporary = None if file is None else file.with_name(f".{file.name}.tmp")
    if temporary is not None:
        try:
            stream = temporary.open("wb")
            stream.write(_header(tensors))
        except OSError as error:
            failure = error
    for tensor in tensors:
        values = tensor.read()
        if stream is None or failure is not None:
            continue
        try:
            stream.write(_bytes(values.to("cpu", tensor.dtype)))
        except OSError as error:
            failure = error
    try:
        if stream is not None:
            stream.close()
    except OSError as error:
        failure = failure or error
    if failure is not None:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise failure
    if file is not None and temporary is not None:
        temporary.replace(file)


def _header(tensors: Sequence[StoredTensor]) -> bytes:
    header: dict[str, dict[str, object]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start = end
        end += tensor.nbytes
        header[tensor.name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> Any:
    """Return the numbers of a tensor as a buffer, without a copy."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy()
