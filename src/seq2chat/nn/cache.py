"""A cache of keys and values, so that a decoding step computes only the new positions."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seq2chat.nn.mask import causal_masks, padding_mask


class LayerCache:
    """Keys and values of one layer.

    The storage doubles when it is full, so appending costs amortized O(1) copies.
    """

    def __init__(self):
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(
        self,
        k: Float[Tensor, "batch n_kv_head n_new d_head"],
        v: Float[Tensor, "batch n_kv_head n_new d_head"],
    ) -> tuple[
        Float[Tensor, "batch n_kv_head n_key d_head"], Float[Tensor, "batch n_kv_head n_key d_head"]
    ]:
        """Append the new keys and values, and return all of them (views, not copies)."""
        end = self.length + k.shape[2]
        self._keys = _with_room(self._keys, k, end)
        self._values = _with_room(self._values, v, end)
        self._keys[:, :, self.length : end] = k
        self._values[:, :, self.length : end] = v
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def reserve(self) -> tuple[Tensor, Tensor]:
        """Return the storage of the keys and of the values, each (batch, n_kv_head, room, d_head),
        after adding a place that the caller writes.

        The cache must not be empty.
        """
        assert self._keys is not None and self._values is not None
        self.length += 1
        self._keys = _with_room(self._keys, self._keys, self.length)
        self._values = _with_room(self._values, self._values, self.length)
        return self._keys, self._values

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        if self._keys is not None and self._values is not None:
            self._keys = self._keys[rows]
            self._values = self._values[rows]


class KVCache:
    """The decoding state of a Transformer: one `LayerCache` per layer, and the left padding.

    `padding` (batch,) counts the pad tokens at the beginning of each row, so that prompts of
    different lengths end together. For example, it is [2, 0] for prompts of 3 and 5 tokens. None
    means no padding.
    """

    def __init__(self, n_layer: int, padding: Int[Tensor, " batch"] | None = None):
        self.layers = [LayerCache() for _ in range(n_layer)]
        self.padding = padding
        self._min_padding = 0 if padding is None else int(padding.min())

    @property
    def length(self) -> int:
        """Number of positions stored so far, padding included."""
        return self.layers[0].length

    @property
    def longest(self) -> int:
        """Number of positions in the row with the least padding, without that padding."""
        return self.length - self._min_padding

    def positions(self, n_new: int, device: torch.device) -> Int[Tensor, "rows {n_new}"]:
        """Return the positions of the next tokens, counted from each row's first real token.

        There is one row for the whole batch unless rows have different padding.
        """
        index = torch.arange(self.length, self.length + n_new, device=device)
        return index[None] if self.padding is None else (index - self.padding[:, None]).clamp(min=0)

    def masks(
        self, n_new: int, window: int, device: torch.device
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the masks of the next tokens in dense and in local layers, see `causal_masks`."""
        n_key = self.length + n_new
        allowed = None if self.padding is None else padding_mask(self.padding, n_new, n_key)
        return causal_masks(n_new, n_key, window, allowed, device)

    def reserve(self) -> tuple[list[Tensor], list[Tensor], int]:
        """Return the storage of the keys and of the values per layer, and its room, after adding a
        place; see `LayerCache.reserve`."""
        keys, values = zip(*(layer.reserve() for layer in self.layers), strict=True)
        return list(keys), list(values), keys[0].shape[2]

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        """Replace row i by the previous row `rows[i]`. Rows may be dropped or repeated."""
        for layer in self.layers:
            layer.reorder(rows)
        if self.padding is not None:
            self.padding = self.padding[rows]
            self._min_padding = int(self.padding.min())


def _with_room(
    stored: Float[Tensor, "batch n_kv_head room d_head"] | None,
    new: Float[Tensor, "batch n_kv_head n_new d_head"],
    length: int,
) -> Float[Tensor, "batch n_kv_head more_room d_head"]:
    """Return `stored`, copied to a larger tensor if it has no room for `length` positions."""
    if stored is not None and stored.shape[2] >= length:
        return stored
    room = length if stored is None else max(length, 2 * stored.shape[2])
    batch, n_kv_head, _, d_head = new.shape
    larger = new.new_empty(batch, n_kv_head, room, d_head)
    if stored is not None:
        larger[:, :, : stored.shape[2]] = stored
    return larger
