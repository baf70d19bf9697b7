"""The decoding pass: one more token per row in one pass over the weights, optionally compiled."""

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


def batch_multiple(model: GPT) -> int:
    """Return a number of rows such that in its multiples no row depends on the others, bit for bit.

    Float32 products (MKL) have this property with any multiple of 4 rows, bfloat16 products
    (oneDNN) with any number of rows from 2 on.
    """
    formats = {model.product_dtype, model.embed_tokens.weight.dtype}
    return 2 if formats <= {torch.bfloat16, torch.int8} else 4


# Limits on the rows of a pass with the kernel `few_rows`. A row of the kernel never depends on the
# others, but the compiled code around it needs at least 2 rows. Up to 16 rows it is no slower than
# the libraries.
KERNEL_MIN_ROWS = 2
KERNEL_MAX_ROWS = 16


def few_rows_twin(model: GPT) -> GPT:
    """Return a copy of `model` whose linear maps use the kernel `few_rows` on the same weights."""
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
    """Reads one token per row of `cache` with `model`.

    `plain` is the uncompiled pass, `compiled` its compiled twin after a call of `compile`, and
    `run` the one in use.
    """

    def __init__(self, model: GPT, cache: SlotCache) -> None:
        self.model = model
        self.cache = cache
        self.run: Callable[..., Tensor] = self.plain
        self.compiled: Callable[..., Tensor] | None = None
        self._uses_kernel = False

    @property
    def batch_multiple(self) -> int:
        """The number of rows of a pass must be a multiple of this."""
        uses_kernel = self._uses_kernel and self.run is self.compiled
        return KERNEL_MIN_ROWS if uses_kernel else batch_multiple(self.model)

    def __call__(
        self, tokens: Int[Tensor, "rows 1"], state: SlotRows
    ) -> Float[Tensor, "rows vocab"]:
        """Return the logits after the token of each row, and extend the state by it."""
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
        """Return the logits. The arguments are parts of a `SlotRows`.

        They are passed separately because a compiled graph takes tensors.
        """
        shape = self.cache.n_slot, self.cache.n_kv_head, self.cache.room
        hidden = self.model.hidden_step(
            tokens,
            SlotRows(
                keys=keys,
                values=values,
                shape=shape,
                first=0,
                start=start,
                index=index,
                n_key=n_key,
            ),
        )
        return self.model.logits(hidden)[:, 0]

    @torch.no_grad()
    def compile(self, n_key: int) -> float:
        """Compile the pass, use it if it is faster, and return the speedup at `n_key` keys.

        Takes from 10 seconds to a minute. The weights and hooks of the model must not change
        afterwards: weights may be packed into the compiled code, and nothing checks if they are
        still the same. Raises the errors of torch.compile, for example without a C++ compiler.
        """
        model = self.model
        dtype = model.product_dtype
        has_linears = any(isinstance(module, nn.Linear) for module in model.modules())
        self._uses_kernel = (
            model.device.type == "cpu"
            and self.cache.n_slot <= KERNEL_MAX_ROWS
            and dtype in KERNEL_FORMATS
            and has_linears
        )
        if self._uses_kernel:
            build()
            model = few_rows_twin(model)
        self.compiled = torch.compile(  # pyrefly: ignore[no-matching-overload]  # its overloads lack the third
            TokenPass(model, self.cache).plain,
            dynamic=True,
            isolate_recompiles=True,  # each model gets its own code
            # About 900 guards would check before each token that the model has not changed.
            options={
                "guard_filter_fn": lambda guards: [
                    not guard.name.startswith("self") for guard in guards
                ]
            },
        )
        # Packing the weights with oneDNN pays in bfloat16, while few rows in float32 are faster
        # with MKL. As an option of torch.compile, `freezing` comes too late to pack anything.
        freezing = dtype == torch.bfloat16 and not self._uses_kernel
        with torch._inductor.config.patch(freezing=freezing):
            # This compiles the code for any number of rows from 2 on.
            min_rows = KERNEL_MIN_ROWS if self._uses_kernel else self.batch_multiple
            for n_row in (self.cache.n_slot, min_rows):
                seconds = self._seconds(self.compiled, n_row, n_key)
        speedup = self._seconds(self.plain, self.batch_multiple, n_key) / seconds
        if speedup > 1:
            self.run = self.compiled
        return speedup

    def _seconds(self, run: Callable[..., Tensor], n_row: int, n_key: int) -> float:
        """Return the minimum time of a pass with `n_row` inactive rows, which change nothing."""
        state = self.cache.rows(0, [0] * n_row, [False] * n_row, 1, n_key)
        tokens = torch.zeros(n_row, 1, dtype=torch.int64, device=self.model.device)
        arguments = tokens, state.keys, state.values, state.start, state.index, n_key
        # `cpu` waits for the result: a GPU returns before it is done.
        return _min_seconds(lambda: run(*arguments).cpu())


def _min_seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """Return the minimum time of `work` after a first round, which may compile."""
    seconds = []
    for _ in range(1 + rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
