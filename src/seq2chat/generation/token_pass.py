"""One more token of each row, in one pass over the weights: what decoding does all day, and what is
compiled for it."""

import copy
import time
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seq2chat.models.gpt import GPT
from seq2chat.nn.block import Linear
from seq2chat.nn.few_rows import FORMATS as KERNEL_FORMATS
from seq2chat.nn.few_rows import build, replace_linears
from seq2chat.nn.slots import SlotCache, SlotRows


def batch_multiple(dtype: torch.dtype) -> int:
    """Return of how many rows, and any multiple of which, a row has the same bits whatever the
    others are: a product in float32 (MKL) keeps them among any multiple of 4 rows, one in bfloat16
    (oneDNN) among any number from 2 on."""
    return 2 if dtype == torch.bfloat16 else 4


# Rows of a pass with our kernel: it gives a row the same bits among any number, but the code around
# it is made for two and more; up to 16 it is no slower than the libraries.
FEWEST, FEW = 2, 16


def few_rows_twin(model: GPT) -> GPT:
    """Return `model` with our kernel for few rows in its linear maps, on the same weights."""
    twin = copy.deepcopy(
        model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    )
    if twin.lm_head is None:
        tied = twin.head_weight
        head = Linear(tied.shape[1], tied.shape[0], bias=False, device="meta")
        head.weight = tied
        twin.lm_head = head
    replace_linears(twin)
    return twin


class TokenPass:
    """Reads one token of each row of `cache` with `model`. `plain` is the pass as it is written,
    `compiled` its twin once there is one, and `run` the one that is used."""

    def __init__(self, model: GPT, cache: SlotCache) -> None:
        self.model, self.cache = model, cache
        self.run: Callable[..., Tensor] = self.plain
        self.compiled: Callable[..., Tensor] | None = None
        self._few = False

    @property
    def batch_multiple(self) -> int:
        """A pass has a multiple of so many rows."""
        few = self._few and self.run is self.compiled
        return FEWEST if few else batch_multiple(next(self.model.parameters()).dtype)

    def __call__(
        self, tokens: Int[Tensor, "rows 1"], state: SlotRows
    ) -> Float[Tensor, "rows vocab"]:
        """Return the logits after the token of each row, and let the state grow by it."""
        return self.run(tokens, state.keys, state.values, state.start, state.index, state.n_key)

    def plain(
        self,
        tokens: Int[Tensor, "rows 1"],
        keys: list[Tensor],
        values: list[Tensor],
        start: Int[Tensor, "rows 1"],
        index: Int[Tensor, " written"],
        n_key: int,
    ) -> Float[Tensor, "rows vocab"]:
        """Return the logits; the state is given in parts, as tensors are what a compiled graph
        takes."""
        shape = self.cache.n_slot, self.cache.n_kv_head, self.cache.room
        hidden = self.model.hidden_step(
            tokens, SlotRows(keys, values, shape, 0, start, index, n_key)
        )
        return self.model.logits(hidden)[:, 0]

    @torch.no_grad()
    def compile(self, n_key: int) -> float:
        """Compile the pass, and use it from now on if it is faster where rows see `n_key` keys; how
        many times as fast.

        Takes from 10 seconds to a minute. The model must not change afterwards, by weights or
        hooks: its weights may be packed into the compiled code, and nothing looks whether they are
        the same. Raises what torch.compile does where it cannot, for one without a C++ compiler.
        """
        model, dtype = self.model, next(self.model.parameters()).dtype
        linears = any(isinstance(module, nn.Linear) for module in model.modules())
        self._few = (
            model.device.type == "cpu"
            and self.cache.n_slot <= FEW
            and dtype in KERNEL_FORMATS
            and linears
        )
        if self._few:
            build()
            model = few_rows_twin(model)
        self.compiled = torch.compile(  # pyrefly: ignore[no-matching-overload]  # its overloads lack the third
            TokenPass(model, self.cache).plain,
            dynamic=True,
            isolate_recompiles=True,  # other models have code of their own
            # Some nine hundred guards would ask at each token whether the model is still what it
            # was.
            options={
                "guard_filter_fn": lambda guards: [
                    not guard.name.startswith("self") for guard in guards
                ]
            },
        )
        # Weights that oneDNN packs pay in bfloat16; few rows of float32 are faster through MKL.
        # Given as an option of torch.compile, freezing is told too late to pack anything.
        with torch._inductor.config.patch(freezing=dtype == torch.bfloat16 and not self._few):
            # The code is made for any number of rows from 2 on.
            fewest = FEWEST if self._few else self.batch_multiple
            for n_row in (self.cache.n_slot, fewest):
                seconds = self._seconds(self.compiled, n_row, n_key)
        gain = self._seconds(self.plain, self.batch_multiple, n_key) / seconds
        if gain > 1:
            self.run = self.compiled
        return gain

    def _seconds(self, run: Callable[..., Tensor], n_row: int, n_key: int) -> float:
        """Return the least time that a pass of so many rows takes; as they compute nothing, they
        change nothing."""
        state = self.cache.rows(0, [0] * n_row, [False] * n_row, 1, n_key)
        tokens = torch.zeros(n_row, 1, dtype=torch.int64, device=self.model.device)
        arguments = tokens, state.keys, state.values, state.start, state.index, n_key
        # To have the result here is to wait for it: a GPU returns before it is done.
        return _least_seconds(lambda: run(*arguments).cpu())


def _least_seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """Return the least time that `work` takes after a first round, which may compile."""
    seconds = []
    for _ in range(1 + rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
