"""A cache of the keys and values of many texts of different lengths, each in its own slot.

The engine, which serves many requests at once, uses it instead of the `KVCache` of one batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class SlotCache:
    """Room for `n_slot` texts of `room` tokens.

    `keys` and `values` hold one tensor (n_slot · n_kv_head · (room + 1), d_head) per layer. It is
    flat, so that a step writes the new ones of all rows with one index. The last position of a slot
    belongs to no text: the inactive rows of a step write there.
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
    ) -> None:  # the sizes of the storage, passed as keywords
        self.n_slot = n_slot
        self.n_kv_head = n_kv_head
        self.room = room + 1
        self._shape = n_slot * n_kv_head * self.room, d_head
        self._n_layer = n_layer
        self._dtype = dtype
        self._device = device
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.clear()

    def clear(self) -> None:
        """Replace all keys and values by zeros in new memory."""
        self.keys = []  # first, so that old and new ones never exist at the same time
        self.values = []
        self.keys = [_zeros(self._shape, self._dtype, self._device) for _ in range(self._n_layer)]
        self.values = [_zeros(self._shape, self._dtype, self._device) for _ in range(self._n_layer)]

    def clear_slot(self, slot: int) -> None:
        """Set the keys and values of one slot to zero."""
        for stored in self._by_slot():
            stored[slot] = 0

    def rows(
        self, first: int, starts: Sequence[int], active: Sequence[bool], n_new: int, n_key: int
    ) -> "SlotRows":
        """Return the state for a step that reads `n_new` tokens in each slot from `first` on.

        Row i starts at position `starts[i]`. The tokens attend to the first `n_key` positions of
        their slot, but to none after themselves. A row that is not `active` takes part in the
        computation without changing its slot.
        """
        positions = np.asarray(starts)[:, None] + np.arange(n_new)
        written = np.where(np.asarray(active)[:, None], positions, self.room - 1)
        slots = first + np.arange(len(starts))
        heads = slots[:, None] * self.n_kv_head + np.arange(self.n_kv_head)
        index = (heads[:, :, None] * self.room + written[:, None]).reshape(-1)
        device = self.keys[0].device
        return SlotRows(
            keys=self.keys,
            values=self.values,
            shape=(self.n_slot, self.n_kv_head, self.room),
            first=first,
            start=torch.from_numpy(positions).to(device),
            index=torch.from_numpy(index).to(device),
            n_key=n_key,
        )

    def copy(self, source: int, target: int, n: int) -> None:
        """Copy the first `n` positions of slot `source` to slot `target`."""
        for stored in self._by_slot():
            stored[target, :, :n] = stored[source, :, :n]

    def swap(self, one: int, other: int, n: int) -> None:
        """Exchange the first `n` positions of two slots."""
        for stored in self._by_slot():
            saved = stored[one, :, :n].clone()
            stored[one, :, :n] = stored[other, :, :n]
            stored[other, :, :n] = saved

    def _by_slot(self) -> list[Float[Tensor, "n_slot n_kv_head room d_head"]]:
        shape = self.n_slot, self.n_kv_head, self.room, -1
        return [stored.view(shape) for stored in (*self.keys, *self.values)]


@dataclass(frozen=True)
class SlotRows:
    """The slots of a cache, from `first` on, as the decoding state of one step.

    `shape` of the cache is (n_slot, n_kv_head, room). `start` holds the positions of the new
    tokens, `index` the rows of the flat storage for their keys and values, and `n_key` the number
    of keys in view.
    """

    keys: list[Tensor]
    values: list[Tensor]
    shape: tuple[int, int, int]
    first: int
    start: Int[Tensor, "rows n_new"]
    index: Int[Tensor, " written"]
    n_key: int

    @property
    def layers(self) -> list["SlotLayer"]:
        """One view per layer, to append to and read from."""
        return [
            SlotLayer(self, keys, values)
            for keys, values in zip(self.keys, self.values, strict=True)
        ]

    def positions(self, n_new: int, device: torch.device) -> Int[Tensor, "rows {n_new}"]:
        """Return the positions of the new tokens."""
        return self.start

    def masks(self, n_new: int, window: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return the masks (rows, 1, n_new, n_key) of the new tokens in dense and local layers."""
        distance = self.start[:, None, :, None] - torch.arange(self.n_key, device=device)
        dense = distance >= 0
        if self.n_key <= window:
            return dense, dense
        return dense, dense & (distance < window) if window else None


@dataclass(frozen=True)
class SlotLayer:
    """The keys and values of one layer in the slots of a step."""

    rows: SlotRows
    keys: Tensor
    values: Tensor

    def append(
        self,
        k: Float[Tensor, "rows n_kv_head n_new d_head"],
        v: Float[Tensor, "rows n_kv_head n_new d_head"],
    ) -> tuple[
        Float[Tensor, "rows n_kv_head n_key d_head"], Float[Tensor, "rows n_kv_head n_key d_head"]
    ]:
        """Store the new keys and values, and return those in view (not copied)."""
        return self._append(self.keys, k), self._append(self.values, v)

    def _append(self, stored: Tensor, new: Tensor) -> Tensor:
        rows = self.rows
        d_head = new.shape[-1]
        stored.index_put_((rows.index,), new.reshape(-1, d_head).to(stored.dtype))
        return stored.view(*rows.shape, d_head)[
            rows.first : rows.first + new.shape[0], :, : rows.n_key
        ]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros. On a CPU they take no memory until they are written."""
    if device.type != "cpu" or dtype == torch.bfloat16:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(shape, dtype=str(dtype).removeprefix("torch.")))
