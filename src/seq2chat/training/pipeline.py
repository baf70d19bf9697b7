"""Pipeline parallelism of a GPT by PyTorch's `torch.distributed.pipelining`: each process has a run
of the layers (Narayanan et al. 2021, section 2.2).

A batch passes in micro-batches, forward and backward in turn (1F1B), so that all stages work at the
same time. The losses are sums, so the number of micro-batches doesn't change them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from seq2chat.models.gpt import GPT, is_local
from seq2chat.models.tensor_file import StoredTensor, whole_tensor
from seq2chat.nn.mask import causal_masks, document_mask, document_starts
from seq2chat.nn.position import rotary
from seq2chat.text.batch import Batch
from seq2chat.training.tensor_parallel import between_stages, from_positions, parallel_nll_sum


@dataclass(frozen=True)
class Place:
    """The place of this process among the stages. `ends` is the group of the first and the last
    stage, which both have a tied embedding. `tensor` are the ranks that divide its matrices."""

    index: int
    size: int
    group: dist.ProcessGroup
    ends: dist.ProcessGroup
    tensor: DeviceMesh

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == self.size - 1


class GPTStage(GPT):
    """The part of a GPT that one process has. Its parameters have the names of the whole model.

    It is made of a whole GPT by `cut`.
    """

    place: Place
    is_rotary: bool

    def forward(  # pyrefly: ignore[bad-override]
        self, x: Tensor, segments: Tensor | None = None
    ) -> Tensor:
        """Return the residual stream after this stage, and after the last norm on the last one.

        `x` holds tokens (batch, seq) on the first stage, and the stream of the stage before on the
        others. `segments` is as in `GPT.forward`.
        """
        if not self.place.is_first and self.place.tensor.size() > 1:
            x = from_positions(x, self.place.tensor)
        positions = torch.arange(x.shape[1], device=x.device)[None]
        allowed = None
        if segments is not None:
            starts = document_starts(segments)
            positions = positions - starts
            allowed = document_mask(starts)
        masks = causal_masks(x.shape[1], x.shape[1], self.config.window, allowed, x.device)
        if self.place.is_first:
            x = self.embed_tokens(x)
            if self.embed_positions is not None:
                x = x + self.embed_positions(positions)
            x = self.dropout(x if self.compute_dtype is None else x.to(self.compute_dtype))
        rotation = rotary(positions, self.frequencies, x.dtype) if self.is_rotary else None
        for index in stage_layers(self.config.n_layer, self.place.index, self.place.size):
            inputs = x, rotation, masks[is_local(self.config, index)], None
            layer = self.layers[index]
            if self.gradient_checkpointing:
                x = cast(Tensor, checkpoint(layer, *inputs, use_reentrant=False))
            else:
                x = layer(*inputs)
        x = self.norm(x)
        return x if self.place.is_last else between_stages(x)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def union(self, tensors: Sequence[StoredTensor]) -> list[StoredTensor]:
        """Return the tensors of all stages, for the own ones. All processes have to read them in
        the same order. A tied embedding is that of the first stage."""
        place = self.place
        own = {tensor.name: tensor for tensor in tensors}
        listed: list[Any] = [None] * place.size
        dist.all_gather_object(listed, [tensor[:3] for tensor in tensors], group=place.group)
        every: dict[str, StoredTensor] = {}
        for stage, entries in enumerate(listed):
            for name, shape, dtype in entries:
                read = partial(self._fetch, stage, own.get(name), torch.Size(shape), dtype)
                every.setdefault(name, StoredTensor(name, shape, dtype, read))
        return list(every.values())

    def _fetch(
        self, stage: int, own: StoredTensor | None, shape: torch.Size, dtype: torch.dtype
    ) -> Tensor:
        if stage == self.place.index:
            assert own is not None
            values = own.read().to(self.device, dtype).contiguous()
        else:
            values = torch.empty(shape, dtype=dtype, device=self.device)
        dist.broadcast(values, group_src=stage, group=self.place.group)
        return values


def stage_layers(n_layer: int, index: int, size: int) -> range:
    """Return the numbers of the layers of a stage."""
    per_stage = n_layer // size
    return range(index * per_stage, (index + 1) * per_stage)


def cut(model: GPT, mesh: DeviceMesh) -> None:
    """Turn `model` into the stage of this process, in place."""
    place = _place(mesh)
    own = stage_layers(model.config.n_layer, place.index, place.size)
    for index in range(model.config.n_layer):
        if index not in own:
            model.layers[index] = nn.Identity()
    is_rotary = model.embed_positions is None
    is_tied = model.lm_head is None
    unused: list[str] = []
    if not place.is_first:
        unused += ["embed_positions"]
        unused += [] if is_tied and place.is_last else ["embed_tokens"]
    if not place.is_last:
        unused += ["lm_head"]
        model.norm = nn.Identity()  # pyrefly: ignore[bad-assignment]
    for name in unused:
        setattr(model, name, None)
    model.__class__ = GPTStage
    stage = cast(GPTStage, model)
    stage.place = place
    stage.is_rotary = is_rotary


def _place(mesh: DeviceMesh) -> Place:
    """Return the place of this process. All processes make all groups, in the same order."""
    ranks = mesh.mesh.flatten(1)  # (pipeline, others)
    ends: Any = None
    for column in range(ranks.shape[1]):
        members = ranks[[0, -1], column].tolist()
        group = dist.new_group(members)
        if dist.get_rank() in ranks[:, column]:
            ends = group
    pipeline = mesh["pipeline"]
    assert ends is not None
    index = pipeline.get_local_rank()
    return Place(index, pipeline.size(), pipeline.get_group(), ends, mesh["tensor"])


def copies(model: nn.Module) -> list[Tensor]:
    """Return the parameters that the first stage has too."""
    if not isinstance(model, GPTStage) or model.place.is_first or model.embed_tokens is None:
        return []
    return [model.embed_tokens.weight]


def sum_tied_gradients(model: nn.Module) -> None:
    """Sum the gradient of a tied embedding over the first and the last stage."""
    if not isinstance(model, GPTStage) or model.config.tie_embeddings is False:
        return
    place = model.place
    if place.is_first or place.is_last:
        gradient = model.embed_tokens.weight.grad
        assert gradient is not None
        part = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        dist.all_reduce(part, group=place.ends)


class Pipeline:
    """The schedule of the micro-batches of one stage."""

    def __init__(self, stage: GPTStage, n_micro_batches: int) -> None:
        self.stage = stage
        place = stage.place
        self.schedule = Schedule1F1B(
            PipelineStage(stage, place.index, place.size, stage.device, group=place.group),
            n_micro_batches,
            loss_fn=lambda hidden, labels: whole_tensor(
                parallel_nll_sum(hidden, stage.head_weight, labels)
            ),
            scale_grads=False,
        )

    def gradient(self, batch: Batch) -> Tensor:
        """Add the gradient of the summed loss of `batch`, and return that loss on all stages."""
        place = self.stage.place
        inputs = (batch.target,) if place.is_first else ()
        options: dict[str, Any] = {}
        if batch.segments is not None:
            options["segments"] = batch.segments
        losses: list[Tensor] = []
        if place.is_last:
            options |= {"target": batch.labels, "losses": losses}
        self.schedule.step(*inputs, **options)
        loss = torch.zeros((), device=self.stage.device)
        for part in losses:
            loss = loss + part.detach()
        dist.all_reduce(loss, group=place.group)
        return loss
