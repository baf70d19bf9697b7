"""One rank of a run of thousands, executed on this machine without memory for its tensors.

The process group is fake: collectives return at once, with results of the right shape. Tensors are
fake: they have a shape, a format and no numbers. Everything else is the code of a real run: the
model, its division by FSDP2 and DTensor, the loss, the backward pass, the gradient norm and the
optimizer. So the counts below are those of the code, not of a formula.
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.distributed.tensor.parallel import loss_parallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from seq2chat.config import GPTConfig, OptimConfig, check
from seq2chat.models.gpt import GPT
from seq2chat.scale.collectives import CollectiveCounter, Traffic
from seq2chat.scale.layout import Layout
from seq2chat.text.batch import Batch
from seq2chat.training.language_modeling import causal_lm
from seq2chat.training.optim import make_optimizers
from seq2chat.training.parallel import divide_model, local
from seq2chat.training.tensor_parallel import parallel_nll_sum

DEVICE = "cpu"
NORM_AXIS = "shard × tensor"


@dataclass(frozen=True)
class Simulation:
    """The counts of one rank for one micro-batch and one optimizer step.

    `parameters` is the number that this rank stores, and `ideal` that of an even division of its
    stage. `memory` has bytes by kind. `activations` are the tensors that the blocks keep for their
    backward pass, and `loss` those that head and loss keep.
    """

    layers: int
    parameters: int
    ideal: float
    memory: dict[str, int]
    traffic: list[Traffic]
    seconds: float


def simulate(model: GPTConfig, layout: Layout, optim: OptimConfig) -> Simulation:
    """Return the counts of rank 0 of a training step.

    Of a pipeline, this is the first stage: the embeddings and the first layers. Sending its output
    on and the schedule of micro-batches are not executed. The gradient that the next stage would
    send back is made up. Raises UserError for a layout that doesn't divide the model.
    """
    layout.check_model(model)
    check(
        not (dist.is_available() and dist.is_initialized()),
        "This process already belongs to a process group, so it cannot simulate another one.",
    )
    began = time.perf_counter()
    stage_layout = dataclasses.replace(layout, pipeline=1, interleave=1)
    with _fake_process_group(stage_layout.world):
        mesh = make_mesh(layout)
        stage = first_stage(model, layout)
        n_parameters = sum(p.numel() for p in stage.parameters())
        # Matrix products in bfloat16, as on GPUs.
        divide_model(stage, mesh, torch.bfloat16, layout.keeps_gathered)
        with FakeTensorMode(allow_non_fake_inputs=True):
            stage.to_empty(device=DEVICE)
            memory, traffic = _step(stage, mesh, layout, optim)
        parameters = sum(local(p).numel() for p in stage.parameters())
    return Simulation(
        layers=len(stage.layers),
        parameters=parameters,
        ideal=n_parameters / (layout.shard * layout.tensor),
        memory=memory,
        traffic=traffic,
        seconds=time.perf_counter() - began,
    )


def first_stage(model: GPTConfig, layout: Layout) -> GPT:
    """Return the part of the model on the first ranks of a pipeline, without memory for weights.

    That is the whole model without one. With one, later stages have the last norm and the head.
    """
    with torch.device("meta"):
        stage = GPT(dataclasses.replace(model, n_layer=model.n_layer // layout.pipeline))
    if layout.pipeline > 1:
        stage.norm = nn.Identity()  # pyrefly: ignore[bad-assignment]
        stage.lm_head = None
    stage.gradient_checkpointing = layout.checkpointing
    return stage


def make_mesh(layout: Layout) -> DeviceMesh:
    """Return the mesh of one pipeline stage, with the dimensions data, shard and tensor.

    The ranks of a tensor group are next to each other, so that they share a server.
    """
    sizes = (layout.data, layout.shard, layout.tensor)
    mesh = init_device_mesh(DEVICE, sizes, mesh_dim_names=("data", "shard", "tensor"))
    if layout.shard > 1 and layout.tensor > 1:
        # The gradient norm is summed over both at once.
        mesh["shard", "tensor"]._flatten(NORM_AXIS)
    return mesh


@contextmanager
def _fake_process_group(world: int) -> Iterator[None]:
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
        # DTensor remembers results on this mesh, and would return them on an equal later one.
        _clear_sharding_prop_cache()


def _step(
    stage: GPT, mesh: dist.DeviceMesh, layout: Layout, optim: OptimConfig
) -> tuple[dict[str, int], list[Traffic]]:
    """Take one training step, and return bytes by kind and all collectives."""
    tokens = torch.zeros(layout.micro_batch, stage.context, dtype=torch.int64)
    optimizers = make_optimizers(stage, optim, torch.bfloat16)
    kept = _KeptTensors(stage)
    activations = 0

    def nll(hidden: Tensor, head_weight: Tensor, labels: Tensor) -> Tensor:
        nonlocal activations
        activations = kept.nbytes
        return parallel_nll_sum(hidden, head_weight, labels)

    with CollectiveCounter(mesh) as counter, loss_parallel():
        n_tokens = torch.tensor(tokens.numel())
        with saved_tensors_hooks(kept.keep, lambda tensor: tensor):
            if layout.pipeline == 1:
                output, _ = causal_lm(stage, Batch(tokens, tokens), nll)
            else:
                output = stage.hidden(tokens)
                activations = kept.nbytes
        output.backward(torch.ones_like(output))
        parameters = list(stage.parameters())
        grads = [p.grad for p in parameters if p.grad is not None]
        # The same calls as in `Job.apply_gradients`, which also reads the loss.
        torch._foreach_div_(grads, n_tokens)
        norm = nn.utils.get_total_norm(grads)
        if optim.clip:
            nn.utils.clip_grads_with_norm_(parameters, optim.clip, norm)
        for optimizer in optimizers:
            optimizer.step()
    states = [
        value
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if value.ndim > 0
    ]
    memory = {
        "parameters": _nbytes(parameters),
        "gradients": _nbytes(grads),
        "optimizer": _nbytes(states),
        "activations": activations,
        "loss": kept.nbytes - activations,
    }
    return memory, counter.traffic()


def _nbytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes that this rank stores of the tensors.

    PyTorch's memory trackers count a DTensor as if each rank had all of it.
    """
    return sum(local(tensor).nbytes for tensor in tensors)


class _KeptTensors:
    """The tensors that the forward pass keeps for the backward pass, without parameters.

    A storage that several tensors share counts once.
    """

    def __init__(self, model: GPT) -> None:
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.parameters: dict[int, torch.UntypedStorage] = {}
        for module in model.modules():
            # FSDP's own hooks come first, so these see the gathered parameters.
            module.register_forward_pre_hook(self._note_parameters)

    @property
    def nbytes(self) -> int:
        ids = self.storages.keys() - self.parameters.keys()
        return sum(self.storages[i].nbytes() for i in ids)

    def keep(self, tensor: Tensor) -> Tensor:
        storage = local(tensor).untyped_storage()
        self.storages[storage._cdata] = storage
        return tensor

    def _note_parameters(self, module: nn.Module, inputs: tuple) -> None:
        for parameter in module.parameters(recurse=False):
            storage = local(parameter).untyped_storage()
            self.parameters[storage._cdata] = storage
