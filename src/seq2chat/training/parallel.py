"""The division of a run among its processes: of the batch, the model and the gradients.

The sizes of the four dimensions come from `[parallel]` of the recipe. A global batch depends on
data, seed and step alone, and each process takes its rows of it. Losses, numbers of labels and
gradients are summed over the processes, so the number of processes never changes a loss.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel

from seq2chat.config import GPTConfig, ParallelConfig, Recipe, UserError, check
from seq2chat.models.bert import BERT
from seq2chat.models.folder import make_model
from seq2chat.models.gpt import GPT
from seq2chat.models.reward import RewardModel
from seq2chat.models.tensor_file import stored
from seq2chat.models.transformer import Transformer
from seq2chat.training.pipeline import GPTStage, copies, cut, sum_tied_gradients
from seq2chat.training.sharded_matrices import part_like
from seq2chat.training.tensor_parallel import divide_matrices

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

BUCKET = 2**24  # numbers per reduction of gradients: few calls, and little memory for the copy
# A model is used through these methods. FSDP gathers its parameters before each.
METHODS = ("hidden", "branching")


class Parallel:
    """The place of this process in the mesh of all processes.

    `rank` numbers the parts of the batch, of which there are `size`. Processes that divide matrices
    or layers work on the same part.
    """

    def __init__(self, config: ParallelConfig, device: torch.device, n_processes: int) -> None:
        sizes = config.sizes(n_processes)
        self.sizes = sizes
        self.size = sizes["data"] * sizes["shard"]
        self.rank = 0
        self.mesh: DeviceMesh | None = None
        self.batch_group: dist.ProcessGroup | None = None
        if n_processes > 1:
            names = ("pipeline", "data", "shard", "tensor")
            shape = tuple(sizes[name] for name in names)
            self.mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
            batch = self.mesh["data", "shard"]._flatten("batch")
            if sizes["tensor"] > 1:
                # The gradient norm is summed over both at once. A gathered matrix isn't, of which
                # PyTorch warns.
                self.mesh["shard", "tensor"]._flatten("norm")
                logging.getLogger(f"{DTensor.__module__}._redistribute").setLevel(logging.ERROR)
            self.batch_group = batch.get_group()
            self.rank = batch.get_local_rank()

    @property
    def is_alone(self) -> bool:
        """True if one process computes everything."""
        return self.mesh is None

    @property
    def is_divided(self) -> bool:
        """True if a process stores only a part of each model."""
        return any(self.sizes[name] > 1 for name in ("shard", "tensor", "pipeline"))

    @property
    def n_sharing(self) -> int:
        """Number of processes that share the computation for one part of the batch."""
        return self.sizes["tensor"] * self.sizes["pipeline"]

    def check(self, recipe: Recipe) -> None:
        """Raise UserError unless the sizes divide the batch and the model of the recipe."""
        train = recipe.train
        for name, value in (("train.batch_size", train.batch_size), *_rollout_sizes(recipe)):
            check(
                value % self.size == 0,
                f"{name} is {value}, which {self.size} processes (data × shard) can't divide; "
                f"write a multiple of {self.size}.",
            )
        if self.sizes["tensor"] > 1:
            _check_tensor(recipe, self.sizes["tensor"])
        if self.sizes["pipeline"] > 1:
            _check_pipeline(recipe, self)
        check(
            self.is_alone or train.compile != "on",
            'train.compile is "on", but several processes train without compiling; write "auto".',
        )

    def divide(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Divide the parameters of `model` among the processes, see `divide_model`. Call it before
        an optimizer is made."""
        if not self.is_divided:
            return
        assert self.mesh is not None
        is_pipeline = self.sizes["pipeline"] > 1
        if is_pipeline:
            assert isinstance(model, GPT)
            cut(model, self.mesh)
        if self.sizes["shard"] > 1 or self.sizes["tensor"] > 1:
            divide_model(model, self.mesh, dtype, keeps_gathered=is_pipeline)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute losses and gradients, also where processes divide the logits."""
        if self.sizes["tensor"] == 1:
            yield
            return
        needs_gradients = torch.is_grad_enabled()
        # Under inference mode, the loss isn't taken apart into operators that DTensor knows.
        with (
            loss_parallel(),
            torch.inference_mode(False),
            torch.set_grad_enabled(needs_gradients),
        ):
            yield

    def seed(self, *numbers: int) -> None:
        """Seed torch for dropout by these numbers, differently for each part of the batch.

        One process keeps its generator.
        """
        if self.size > 1 or self.sizes["pipeline"] > 1:
            seed = 0
            stage = 0 if self.mesh is None else self.mesh["pipeline"].get_local_rank()
            for number in (*numbers, self.rank, stage):
                seed = (seed * 1_000_003 + number) % 2**63
            torch.manual_seed(seed)

    def total(self, *values: Tensor) -> list[Tensor]:
        """Return the sums of the values over all parts of the batch."""
        if self.size == 1:
            return list(values)
        # Numbers of labels are exact in float64, up to 2⁵³.
        sums = torch.stack([value.detach().double() for value in values])
        dist.all_reduce(sums, group=self.batch_group)
        return [part.to(value.dtype) for part, value in zip(sums, values, strict=True)]

    def norm(self, model: nn.Module, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Return the norm of the gradients of the whole model."""
        copied = {id(parameter) for parameter in copies(model)}
        grads = [p.grad for p in parameters if p.grad is not None and id(p) not in copied]
        norm = full(nn.utils.get_total_norm(grads))
        if isinstance(model, GPTStage):
            square = norm.square()
            dist.all_reduce(square, group=model.place.group)
            return square.sqrt()
        return norm

    def sum_gradients(self, model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all parts of the batch, except where FSDP has done it."""
        sum_tied_gradients(model)
        if self.size == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        for bucket in _buckets([grad for grad in grads if not isinstance(grad, DTensor)]):
            flat = torch.cat([grad.flatten() for grad in bucket])
            dist.all_reduce(flat, group=self.batch_group)
            for grad, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                grad.copy_(part.view_as(grad))

    @property
    def rows(self) -> slice:
        """The rows of a whole batch that belong to this part of it."""
        return slice(self.rank, None, self.size)

    def join(self, rows: Tensor) -> Tensor:
        """Return the rows of all parts of the batch, in the order of the whole. Each part has as
        many."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous(), group=self.batch_group)
        return torch.stack(parts, dim=1).flatten(0, 1)

    def mean(self, metrics: dict[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
        """Return the means of metrics over the parts of the batch, with their weights, and the
        extremes of those whose names end with `_min` or `_max`."""
        if self.size == 1:
            return metrics
        values = torch.stack([value.double() for value in metrics.values()])
        every = self.join(torch.cat([weight.double()[None], values])[None])
        weights = every[:, 0] / every[:, 0].sum()
        result = {}
        for index, name in enumerate(metrics, start=1):
            column = every[:, index]
            if name.endswith("_min"):
                result[name] = column.min()
            elif name.endswith("_max"):
                result[name] = column.max()
            else:
                result[name] = (column * weights).sum()
        return result

    def deal(self, batches: Iterable[T]) -> Iterator[tuple[T, bool]]:
        """Yield every `size`-th batch, and whether it counts.

        All processes get equally many, as they compute in step. Where the batches don't suffice,
        the last one is repeated and doesn't count.
        """
        group: list[T] = []
        for batch in batches:
            group.append(batch)
            if len(group) == self.size:
                yield group[self.rank], True
                group = []
        if group:
            yield group[min(self.rank, len(group) - 1)], self.rank < len(group)


SINGLE = Parallel(ParallelConfig(), torch.device("cpu"), 1)
"""One process, which computes everything."""


def divide_model(
    model: nn.Module, mesh: DeviceMesh, dtype: torch.dtype, keeps_gathered: bool = False
) -> None:
    """Divide the parameters of `model`, in place: matrices among the ranks of `mesh["tensor"]`, and
    everything among those of `mesh["shard"]` (FSDP2), with copies for those of `mesh["data"]`.

    Parameters stay float32. Blocks are gathered one by one, in `dtype`, and freed after each pass
    unless `keeps_gathered` is set. Gradients are summed in float32.
    """
    if mesh["tensor"].size() > 1:
        assert isinstance(model, GPT)
        divide_matrices(model, mesh["tensor"])
    replicas = mesh["data", "shard"] if mesh["data"].size() > 1 else mesh["shard"]
    policy = MixedPrecisionPolicy()
    if dtype != torch.float32:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in blocks(model):
        fully_shard(
            block, mesh=replicas, mp_policy=policy, reshard_after_forward=not keeps_gathered
        )
    # The embeddings, the last norm and the head. They are used first and last, so they are never
    # gathered twice.
    fully_shard(model, mesh=replicas, mp_policy=policy, reshard_after_forward=False)
    for method in METHODS:
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)
    for module in _fsdp_modules(model):
        # Sums, which are divided by the number of labels later. NCCL's division isn't in gloo.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process stores."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """Return the whole tensor. All processes have to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy this process's part of `values` into `tensor`."""
    local(tensor).copy_(part_like(values.to(tensor.device), tensor))


def reshard(model: nn.Module) -> None:
    """Free the gathered parameters, which FSDP keeps after a pass without a backward pass."""
    for module in _fsdp_modules(model):
        module.reshard()


@torch.no_grad()
def whole(model: M) -> M:
    """Return an undivided copy of `model` with gathered weights, in evaluation mode.

    That is `model` itself if it is not divided. All processes have to call it.
    """
    if not _fsdp_modules(model) and not isinstance(model, GPTStage):
        return model
    reshard(model)
    tensors = [stored(name, tensor) for name, tensor in model.state_dict().items()]
    if isinstance(model, GPTStage):
        tensors = model.union(tensors)
    state = {tensor.name: tensor.read() for tensor in tensors}
    with torch.device("meta"):
        copy: Any = make_model(model.config)  # pyrefly: ignore[bad-argument-type]
    copy.load_state_dict(state, assign=True)
    copy.compute_dtype = model.compute_dtype
    return copy.eval().requires_grad_(False)


def _fsdp_modules(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose parameters are gathered one after the other.

    They are used through `forward` alone. The decoder of a Transformer isn't: the encoder's output
    passes its cross-attention beforehand. An RNN has no blocks.
    """
    if isinstance(model, RewardModel):
        model = model.gpt
    if isinstance(model, GPT | BERT):
        return list(model.layers)
    return list(model.encoder) if isinstance(model, Transformer) else []


def _check_tensor(recipe: Recipe, size: int) -> None:
    """Raise UserError unless the model's matrices can be divided among `size` processes."""
    model = recipe.model
    name = f"parallel.tensor is {size}"
    if not isinstance(model, GPTConfig) or recipe.align is not None:
        what = recipe.method or model.family
        raise UserError(f"{name}, which is for pretraining a GPT; write 1 for {what}.")
    for option in ("n_head", "n_kv_head", "context"):
        value = getattr(model, option)
        check(
            value % size == 0,
            f"{name}, which doesn't divide model.{option} {value}; write a divisor.",
        )
    check(
        model.dropout == 0,
        f"{name} and model.dropout {model.dropout}: processes that divide a matrix would drop other"
        " numbers; write dropout 0.",
    )


def _check_pipeline(recipe: Recipe, parallel: Parallel) -> None:
    """Raise UserError unless the layers, and the rows of a part of the batch, can be divided."""
    model = recipe.model
    size = parallel.sizes["pipeline"]
    name = f"parallel.pipeline is {size}"
    if not isinstance(model, GPTConfig) or recipe.align is not None:
        what = recipe.method or model.family
        raise UserError(f"{name}, which is for pretraining a GPT; write 1 for {what}.")
    check(
        model.n_layer % size == 0,
        f"{name}, which doesn't divide model.n_layer {model.n_layer}; write a divisor.",
    )
    rows = recipe.train.batch_size // parallel.size
    n = micro_batches(recipe, parallel)
    check(
        rows % n == 0,
        f"{name} with {n} micro-batches, which don't divide the {rows} sequences of a process; "
        "write parallel.micro_batches.",
    )


def micro_batches(recipe: Recipe, parallel: Parallel) -> int:
    """Return the number of micro-batches per forward pass in a pipeline."""
    rows = recipe.train.batch_size // parallel.size
    return recipe.parallel.micro_batches or min(rows, 2 * parallel.sizes["pipeline"])


def _rollout_sizes(recipe: Recipe) -> list[tuple[str, int]]:
    """Return the sizes of an alignment method that are divided like the batch."""
    align: Any = recipe.align
    sizes = [(f"align.{name}", getattr(align, name, 0)) for name in ("episodes", "ptx_batch")]
    if hasattr(align, "n_prompts"):
        sizes.append(("the number of prompts per iteration", align.n_prompts))
    return sizes


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield consecutive tensors of one number format, of about `BUCKET` numbers together."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(other.numel() for other in bucket)
        if bucket and (size + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
