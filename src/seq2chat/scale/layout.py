"""The division of a model and its batch among the ranks of a run."""

import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from seq2chat.config import GPTConfig, UserError, check


@dataclass(frozen=True)
class Layout:
    """Sizes of the four dimensions of parallel training, and how a rank works through its batch.

    `data` replicas each hold the whole model. Inside of a replica, `shard` ranks divide parameters,
    gradients and optimizer state (ZeRO, Rajbhandari et al. 2020; FSDP2), `tensor` ranks divide each
    matrix (Shoeybi et al. 2019) and the positions between them (Korthikanti et al. 2022), and
    `pipeline` ranks divide the layers (Narayanan et al. 2021). Ranks of one tensor group are next
    to each other, then those of a shard group, of a data group and of a pipeline.

    `micro_batch` is the number of sequences per forward pass, `checkpointing` recomputes blocks in
    the backward pass, and each rank of a pipeline holds `interleave` separate runs of layers.
    """

    data: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1
    micro_batch: int = 1
    checkpointing: bool = False
    interleave: int = 1

    def __str__(self) -> str:
        sizes = f"data {self.data} × shard {self.shard} × tensor {self.tensor}"
        return f"{sizes} × pipeline {self.pipeline}"

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.data * self.shard * self.tensor * self.pipeline

    @property
    def keeps_gathered(self) -> bool:
        """True if a rank keeps its whole 16-bit parameters for the step.

        Without sharding there is nothing to gather. With a pipeline, gathering them again for each
        micro-batch would take too long, so they are gathered once per step, as in torchtitan.
        """
        return self.shard == 1 or self.pipeline > 1

    def micro_batches(self, batch: int) -> int:
        """Return the micro-batches of each rank per step of `batch` sequences."""
        return batch // (self.data * self.shard * self.micro_batch)

    def check(self, model: GPTConfig, batch: int, n_gpus: int) -> None:
        """Raise UserError unless this layout divides the GPUs, the model and the batch evenly."""
        for name in ("data", "shard", "tensor", "pipeline", "micro_batch", "interleave"):
            option = name.replace("_", "-")
            check(
                getattr(self, name) > 0,
                f"--{option} is {getattr(self, name)}; write a positive number.",
            )
        self.check_model(model)
        check(
            self.world == n_gpus,
            f"{self} is {self.world:,} ranks, and the number of GPUs is {n_gpus:,}; change a size "
            "or leave one out.",
        )
        replicas = self.data * self.shard
        check(
            batch % (replicas * self.micro_batch) == 0,
            f"The batch of {batch:,} sequences is not a multiple of {replicas:,} data ranks (data "
            f"× shard) with micro-batches of {self.micro_batch}; change --batch, or use more "
            "tensor or pipeline ranks.",
        )

    def check_model(self, model: GPTConfig) -> None:
        """Raise UserError unless this layout divides the model evenly."""
        check(
            model.n_head % self.tensor == 0 and model.n_kv_head % self.tensor == 0,
            f"{_heads(model)} cannot be divided among --tensor {self.tensor} ranks; write a "
            "divisor.",
        )
        check(
            model.context % self.tensor == 0,
            f"A context of {model.context} cannot be divided among --tensor {self.tensor} ranks.",
        )
        check(
            model.n_layer % (self.pipeline * self.interleave) == 0,
            f"{model.n_layer} layers cannot be divided among --pipeline {self.pipeline} ranks"
            + (f" with --interleave {self.interleave}" if self.interleave > 1 else "")
            + "; write a divisor.",
        )
        check(
            self.interleave == 1 or self.pipeline > 1,
            f"--interleave {self.interleave} is for a pipeline; leave it out.",
        )


def _heads(model: GPTConfig) -> str:
    if model.n_kv_head == model.n_head:
        return f"{model.n_head} heads"
    return f"{model.n_head} heads with {model.n_kv_head} heads of keys and values"


def divisors(n: int) -> list[int]:
    """Return the divisors of `n`, the smallest first.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [d for d in range(1, n + 1) if n % d == 0]


def layouts(
    model: GPTConfig,
    batch: int,
    n_gpus: int,
    per_server: int,
    fixed: dict[str, int | bool],
) -> Iterator[Layout]:
    """Yield all layouts of `n_gpus` that divide model and batch evenly and agree with `fixed`.

    Tensor parallelism stays inside of a server. A replica is sharded over all of its ranks, over
    one server, or not at all.
    """
    tensors = fixed_or("tensor", divisors(per_server), fixed)
    pipelines = fixed_or("pipeline", divisors(model.n_layer), fixed)
    micro_batches = fixed_or("micro_batch", [1, 2, 4, 8, 16, 32], fixed)
    checkpointing = fixed_or("checkpointing", [False, True], fixed)
    for tensor, pipeline in itertools.product(tensors, pipelines):
        replicas, rest = divmod(n_gpus, tensor * pipeline) if tensor * pipeline else (0, 1)
        if rest or replicas == 0:
            continue
        one_server = max(1, per_server // tensor)
        shards = fixed_or("shard", sorted({replicas, min(replicas, one_server), 1}), fixed)
        for shard, micro_batch, saves in itertools.product(shards, micro_batches, checkpointing):
            layout = Layout(
                data=int(fixed.get("data", replicas // max(1, shard))),
                shard=shard,
                tensor=tensor,
                pipeline=pipeline,
                micro_batch=micro_batch,
                checkpointing=bool(saves),
                interleave=int(fixed.get("interleave", 1)) if pipeline > 1 else 1,
            )
            with suppress(UserError):
                layout.check(model, batch, n_gpus)
                yield layout


def fixed_or(name: str, values: list[Any], fixed: dict[str, int | bool]) -> list[Any]:
    """Return the one value that `fixed` has, or all values."""
    return [fixed[name]] if name in fixed else values
