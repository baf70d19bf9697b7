"""Matrices that were published in 4 or 8 bits, found again among their numbers.

llama.cpp's formats store blocks of 32 numbers as small integers with one or two numbers in 16 bits.
A model that was opened from such a file has these numbers in full, and reading them takes most of
the time of a decoding step. Their blocks are the same numbers in a fraction of the bytes.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.models.gpt import GPT, Block

BLOCK = 32
PROBED_ROWS = 8  # of a matrix, before all of it is searched
TOLERANCE = 1e-6  # of the largest number, for the rounding of float32


@dataclass(frozen=True)
class Blocks:
    """A matrix (n_out, n_in) as integers times `scale` plus `lowest`, both per block.

    `data` holds 8-bit integers (n_out, n_in) if `lowest` is None. Otherwise it holds two 4-bit
    integers per byte, (n_out, n_in / 2): the lower bits of a block's 16 bytes are its first half.
    """

    data: Tensor
    scale: Float[Tensor, "n_out n_block"]
    lowest: Float[Tensor, "n_out n_block"] | None

    @property
    def integers(self) -> Float[Tensor, "n_out n_block block"]:
        """The integers of each block, as floats."""
        if self.lowest is None:
            return self.data.unflatten(1, (-1, BLOCK)).float()
        halves = self.data.unflatten(1, (-1, BLOCK // 2))
        return torch.cat([halves & 15, halves >> 4], dim=2).float()

    def matrix(self) -> Float[Tensor, "n_out n_in"]:
        """Return the whole matrix in float32."""
        matrix = self.integers * self.scale[..., None]
        if self.lowest is not None:
            matrix = matrix + self.lowest[..., None]
        return matrix.flatten(1)


def find_blocks(weight: Tensor) -> Blocks | None:
    """Return the blocks of a float32 matrix (n_out, n_in) that was in Q4_1, Q4_0 or Q8_0, else
    None."""
    if weight.dtype != torch.float32 or weight.shape[1] % BLOCK:
        return None
    for pack in (_q4_1, _q4_0, _q8_0):
        if _equals(pack(weight[:PROBED_ROWS]), weight[:PROBED_ROWS]):
            blocks = pack(weight)
            return blocks if _equals(blocks, weight) else None
    return None


def has_blocks(model: GPT) -> bool:
    """Return True if the matrices of `model` were published in 4 or 8 bits."""
    weight = cast(Block, model.layers[0]).mlp.up_proj.weight
    return find_blocks(weight.detach()) is not None


def _equals(blocks: Blocks, weight: Float[Tensor, "n_out n_in"]) -> bool:
    largest = weight.abs().max()
    return bool((blocks.matrix() - weight).abs().max() <= TOLERANCE * largest)


def _q4_1(weight: Float[Tensor, "n_out n_in"]) -> Blocks:
    """Return blocks whose integers 0 and 15 are the lowest and the highest number."""
    numbers = weight.unflatten(1, (-1, BLOCK))
    lowest = _as_half(numbers.amin(2))
    return _pack4(numbers, _as_half((numbers.amax(2) - lowest) / 15), lowest)


def _q4_0(weight: Float[Tensor, "n_out n_in"]) -> Blocks:
    """Return blocks whose integer 0 is the number with the largest magnitude, and 8 is zero."""
    numbers = weight.unflatten(1, (-1, BLOCK))
    largest = numbers.gather(2, numbers.abs().argmax(2, keepdim=True)).squeeze(2)
    scale = _as_half(largest / -8)
    return _pack4(numbers, scale, -8 * scale)


def _q8_0(weight: Float[Tensor, "n_out n_in"]) -> Blocks:
    """Return blocks whose integer 127 or -127 is the number with the largest magnitude."""
    numbers = weight.unflatten(1, (-1, BLOCK))
    scale = _as_half(numbers.abs().amax(2) / 127)
    integers = _integers(numbers, scale, 0.0, -127, 127)
    return Blocks(integers.to(torch.int8).flatten(1), scale, None)


def _pack4(numbers: Tensor, scale: Tensor, lowest: Tensor) -> Blocks:
    integers = _integers(numbers, scale, lowest[..., None], 0, 15).to(torch.uint8)
    low, high = integers.split(BLOCK // 2, dim=2)
    return Blocks((low | high << 4).flatten(1), scale, lowest)


def _integers(
    numbers: Tensor, scale: Tensor, lowest: Tensor | float, least: int, most: int
) -> Tensor:
    nonzero = scale.where(scale != 0, 1.0)[..., None]
    return ((numbers - lowest) / nonzero).round().clamp(least, most)


def _as_half(numbers: Tensor) -> Tensor:
    """Round to the 16-bit floats that the formats store."""
    return numbers.half().float()
