"""The decoding pass of the engine: one more token per sequence in one pass over the weights."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seq2chat.generation.decode_step import MAX_ROWS, DecodeStep, can_step
from seq2chat.models.gpt import GPT
from seq2chat.nn.slots import SlotCache, SlotRows

KEY_MULTIPLE = 64  # the number of keys in a plain pass is a multiple of this


def batch_multiple(model: GPT) -> int:
    """Return a number of rows such that in its multiples no row depends on the others, bit for bit.

    Float32 products (MKL) have this property with any multiple of 4 rows, bfloat16 products
    (oneDNN) with any number of rows from 2 on.
    """
    formats = {model.product_dtype, model.embed_tokens.weight.dtype}
    return 2 if formats <= {torch.bfloat16, torch.int8} else 4


def round_up(n: int, multiple: int) -> int:
    """Return the smallest multiple that is not below `n`."""
    return -(-n // multiple) * multiple


class TokenPass:
    """Reads one token per sequence with `model`, and appends it to the slots of `cache`.

    `plain` is the pass by `GPT.hidden_step`. After a call of `compile`, a faster twin may run
    instead: `DecodeStep` on a CPU, else the compiled plain pass.
    """

    def __init__(self, model: GPT, cache: SlotCache) -> None:
        self.model = model
        self.cache = cache
        self.step: DecodeStep | None = None
        self._forward: Callable[..., Tensor] = self.forward

    def __call__(
        self, tokens: Sequence[int], slots: Sequence[int], places: Sequence[int]
    ) -> Float[Tensor, "sequences vocab"]:
        """Return the logits after the token of each sequence, which gets a place in its slot."""
        if self.step is None:
            return self.plain(tokens, slots, places)
        cache = self.cache
        firsts = [0] * len(tokens)
        return self.step(tokens, slots, places, firsts, cache.keys, cache.values, cache.room)

    def plain(
        self, tokens: Sequence[int], slots: Sequence[int], places: Sequence[int]
    ) -> Float[Tensor, "sequences vocab"]:
        """Return the logits by one pass over all slots up to the last of `slots`.

        Slots in between take part in the pass, but change nothing.
        """
        n_row = self.n_rows(max(slots) + 1)
        by_slot = {slot: i for i, slot in enumerate(slots)}
        rows = [by_slot.get(slot) for slot in range(n_row)]
        starts = [0 if i is None else places[i] for i in rows]
        row_tokens = [[0 if i is None else tokens[i]] for i in rows]
        n_key = round_up(max(starts) + 1, KEY_MULTIPLE)
        state = self.cache.rows(0, starts, [i is not None for i in rows], 1, n_key)
        logits = self._forward(
            torch.tensor(row_tokens, device=self.model.device),
            state.keys,
            state.values,
            state.start,
            state.index,
            n_key,
        )
        return logits if list(slots) == list(range(n_row)) else logits[list(slots)]

    def n_rows(self, n_slot: int) -> int:
        """Return the number of rows of a plain pass over `n_slot` slots: the next power of two, or
        all slots.

        Few different sizes mean few compiled shapes, and all are multiples of `batch_multiple`.
        """
        power = 1 << (n_slot - 1).bit_length()
        return max(batch_multiple(self.model), min(power, self.cache.n_slot))

    def forward(
        self,
        tokens: Int[Tensor, "rows 1"],
        keys: list[Tensor],
        values: list[Tensor],
        start: Int[Tensor, "rows 1"],
        index: Int[Tensor, " written"],
        n_key: int,
    ) -> Float[Tensor, "rows vocab"]:
        """Return the logits of a plain pass. The arguments are parts of a `SlotRows`.

        They are passed separately because a compiled graph takes tensors.
        """
        shape = self.cache.n_slot, self.cache.n_kv_head, self.cache.room
        state = SlotRows(keys, values, shape, first=0, start=start, index=index, n_key=n_key)
        return self.model.logits(self.model.hidden_step(tokens, state))[:, 0]

    @torch.no_grad()
    def compile(self, dtype: torch.dtype | None = None) -> None:
        """Use a faster pass if there is one: on a CPU in seconds, else in up to a minute.

        On a CPU, a `dtype` rounds the matrices. The weights of the model must not change
        afterwards, and no slot may be in use. Raises NoCompiler, and the errors of torch.compile.
        """
        if can_step(self.model) and self.cache.n_slot <= MAX_ROWS:
            self.step = DecodeStep(self.model, dtype)
        elif self.model.device.type != "cpu":
            self._forward = torch.compile(self.forward, dynamic=True)
            try:
                self.plain([0], [0], [0])  # compiles now, rather than in the first request
            except Exception:
                self._forward = self.forward
                raise
