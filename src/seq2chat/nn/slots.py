"""Keys and values of many texts side by side, each in a slot of its own and as long as it is: what an engine that serves
many requests at once keeps, where `KVCache` keeps the rows of one batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class SlotCache:
    """Room for `n_slot` texts of `room` tokens. `keys` and `values` are (n_layer, n_slot, n_kv_head, room, d_head).

    The last position of a slot belongs to no text: rows of a step that compute nothing write there.
    """

    def __init__(
        self,
        n_layer: int,
        n_slot: int,
        n_kv_head: int,
        room: int,
        d_head: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.n_slot, self.n_kv_head, self.room = n_slot, n_kv_head, room + 1
        shape = n_layer, n_slot, n_kv_head, self.room, d_head
        self.keys, self.values = (_zeros(shape, dtype, device) for _ in range(2))

    @property
    def n_bytes(self) -> int:
        """Bytes of all slots together when they are full."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def rows(self, first: int, starts: Sequence[int], active: Sequence[bool], n_new: int, n_key: int) -> "SlotRows":
        """Return the state in which the slots from `first` on read `n_new` tokens, beginning at positions `starts`.

        The tokens attend to the first `n_key` positions of their slot, no further than to themselves. A row that is not
        `active` takes part in the computation and changes nothing that is kept.
        """
        device = self.keys.device
        positions = torch.tensor(starts)[:, None] + torch.arange(n_new)
        kept = torch.tensor(active)[:, None].expand_as(positions)
        written = torch.where(kept, positions, self.room - 1)
        heads = (first + torch.arange(len(starts)))[:, None] * self.n_kv_head + torch.arange(self.n_kv_head)
        index = (heads[:, :, None] * self.room + written[:, None]).flatten()
        return SlotRows(self, first, positions.to(device), index.to(device), n_key)

    def copy(self, source: int, target: int, n: int) -> None:
        """Make the first `n` positions of slot `target` those of `source`."""
        for stored in (self.keys, self.values):
            stored[:, target, :, :n] = stored[:, source, :, :n]

    def swap(self, one: int, other: int, n: int) -> None:
        """Exchange the first `n` positions of two slots."""
        for stored in (self.keys, self.values):
            kept = stored[:, one, :, :n].clone()
            stored[:, one, :, :n] = stored[:, other, :, :n]
            stored[:, other, :, :n] = kept


@dataclass(frozen=True)
class SlotRows:
    """The slots of one step as a decoding state: `start` positions of the new tokens, where they are written, and how
    many keys they see."""

    cache: SlotCache
    first: int
    start: Int[Tensor, "rows n_new"]
    index: Int[Tensor, " written"]
    n_key: int

    @property
    def layers(self) -> list["SlotLayer"]:
        """One view a layer, to append to and read from."""
        return [SlotLayer(self, k, v) for k, v in zip(self.cache.keys, self.cache.values, strict=True)]

    def positions(self, n_new: int, device: torch.device) -> Int[Tensor, "rows {n_new}"]:
        """Return the positions of the new tokens."""
        return self.start

    def masks(self, n_new: int, window: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return what the new tokens may attend to, in dense and in local layers, each (rows, 1, n_new, n_key)."""
        distance = self.start[:, None, :, None] - torch.arange(self.n_key, device=device)
        dense = distance >= 0
        return dense, dense & (distance < window) if window else None


class SlotLayer:
    """The keys and values of one layer in the slots of a step."""

    def __init__(self, rows: SlotRows, keys: Tensor, values: Tensor) -> None:
        self.rows, self.keys, self.values = rows, keys, values

    def append(
        self,
        k: Float[Tensor, "rows n_kv_head n_new d_head"],
        v: Float[Tensor, "rows n_kv_head n_new d_head"],
    ) -> tuple[Float[Tensor, "rows n_kv_head n_key d_head"], Float[Tensor, "rows n_kv_head n_key d_head"]]:
        """Store the new keys and values, and return all that the step sees (views, not copies)."""
        rows = self.rows
        for stored, new in ((self.keys, k), (self.values, v)):
            stored.view(-1, new.shape[-1]).index_copy_(0, rows.index, new.reshape(-1, new.shape[-1]).to(stored.dtype))
        seen = slice(rows.first, rows.first + len(k))
        return self.keys[seen, :, : rows.n_key], self.values[seen, :, : rows.n_key]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros that on a CPU take no memory until they are written."""
    if device.type != "cpu" or dtype == torch.bfloat16:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(shape, dtype=str(dtype).removeprefix("torch.")))
