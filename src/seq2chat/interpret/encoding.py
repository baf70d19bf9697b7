"""Tensors as bytes, for pages and clients that draw them.

The bytes are the length of a header (uint32), the header as JSON (padded with spaces to a multiple
of 4 bytes), and the numbers in row-major order. Everything is little-endian. The header has `site`,
`format`, `axes` and `shape`.
"""

import json
import struct
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from seq2chat.config import check

Format = Literal["u8sqrt", "f16", "f32", "i32"]


def encoded(tensor: Tensor, site: str, axes: Sequence[str], format: Format) -> bytes:
    """Return header and numbers of a tensor.

    `u8sqrt` is round(255·√w) of a weight w from 0 to 1 in one byte, whose error is at most 0.004
    and smaller for small weights. `f16` and `f32` are floats, and `i32` is for the ids of tokens.
    Raises UserError for a format that does not fit the numbers.
    """
    header = {"site": site, "format": format, "axes": list(axes), "shape": list(tensor.shape)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    return struct.pack("<I", len(text)) + text + _numbers(tensor, site, format).tobytes()


def _numbers(tensor: Tensor, site: str, format: Format) -> np.ndarray:
    check(
        (format == "i32") == (not tensor.is_floating_point()),
        f"{site} holds {'numbers' if tensor.is_floating_point() else 'ids of tokens'}; write "
        f"format={'f32' if tensor.is_floating_point() else 'i32'}.",
    )
    if format == "i32":
        return tensor.numpy().astype("<i4")
    values = tensor.to(torch.promote_types(tensor.dtype, torch.float32)).numpy()
    if format == "u8sqrt":
        check(
            bool(((values >= 0) & (values <= 1.0001)).all()),
            f"u8sqrt is for weights from 0 to 1, and {site} has others; write format=f16 or f32.",
        )
        return np.rint(255 * np.sqrt(np.minimum(values, 1))).astype(np.uint8)
    with np.errstate(over="ignore"):  # a number beyond float16 becomes infinite
        return values.astype("<f2" if format == "f16" else "<f4")
