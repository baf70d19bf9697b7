"""Tensor parallelism of a GPT by PyTorch's DTensor: each process has a part of each matrix."""

from typing import cast

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from seq2chat.models.gpt import GPT, Block
from seq2chat.nn.block import SwiGLU
from seq2chat.training.nll import chunked_nll_sum, nll_sum

POSITIONS = 1  # the dimension of (batch, seq, d_model) that tensor ranks divide between blocks
HEADS = 2  # the dimension of (batch, seq, n_head, d_head) that they divide inside of attention


def parallel_nll_sum(hidden: Tensor, head_weight: Tensor, labels: Tensor) -> Tensor:
    """Return `nll_sum` for a head whose rows may be divided among tensor ranks.

    Call it, and the backward pass, inside of `torch.distributed.tensor.parallel.loss_parallel()`:
    each rank then has the logits of its part of the vocabulary only.
    """
    if not isinstance(head_weight, DTensor):
        return chunked_nll_sum(hidden, head_weight, labels)
    assert isinstance(hidden, DTensor)
    return nll_sum(hidden.redistribute(placements=[Replicate()]), head_weight, labels)


def between_stages(x: Tensor) -> Tensor:
    """Return this rank's positions of the residual stream, which it sends to the next stage."""
    return x.to_local() if isinstance(x, DTensor) else x


def from_positions(x: Tensor, tensor: DeviceMesh) -> Tensor:
    """Return the residual stream of which this rank has received its positions."""
    return DTensor.from_local(x, tensor, [Shard(POSITIONS)], run_check=False)


def divide_matrices(model: GPT, tensor: DeviceMesh) -> None:
    """Divide each matrix by rows or columns, and the positions between the matrices.

    Megatron-LM's scheme (Shoeybi et al. 2019, section 3) with sequence parallelism (Korthikanti et
    al. 2022, section 4.2.2). The input of attention is gathered once for q, k and v. Every
    parameter becomes a DTensor, as the gradient norm can't mix them with plain tensors.
    """
    plan: dict[str, ParallelStyle] = {}
    # A stage of a pipeline lacks some of them.
    if model.embed_tokens is not None:
        plan["embed_tokens"] = summed(input_layouts=Replicate())
    if model.embed_positions is not None:
        plan["embed_positions"] = summed(input_layouts=Replicate())
    if model.lm_head is not None:
        plan["lm_head"] = ColwiseParallel()
    if not isinstance(model.norm, nn.Identity):
        plan["norm"] = SequenceParallel()
    parallelize_module(model, tensor, plan)
    for layer in model.layers:
        if isinstance(layer, nn.Identity):
            continue
        parallelize_module(layer, tensor, _block_plan(cast(Block, layer)))


def summed(input_layouts: Placement | None = None) -> RowwiseParallel:
    """Return the division of a matrix by rows. The sum over ranks is left divided by positions, as
    a DTensor, so the residual stream has its whole shape everywhere."""
    return RowwiseParallel(
        input_layouts=input_layouts, output_layouts=Shard(POSITIONS), use_local_output=False
    )


def _block_plan(layer: Block) -> dict[str, ParallelStyle]:
    def gathered(n_inputs: int) -> PrepareModuleInput:
        rest = (None,) * (n_inputs - 1)
        return PrepareModuleInput(
            input_layouts=(Shard(POSITIONS), *rest),
            desired_input_layouts=(Replicate(), *rest),
        )

    plan: dict[str, ParallelStyle] = {
        "input_layernorm": SequenceParallel(),
        "self_attn": gathered(4),
        "self_attn.q_proj": ColwiseParallel(),
        "self_attn.k_proj": ColwiseParallel(),
        "self_attn.v_proj": ColwiseParallel(),
        "self_attn.o_proj": summed(),
        "post_attention_layernorm": SequenceParallel(),
        "mlp": gathered(1),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": summed(),
    }
    if isinstance(layer.mlp, SwiGLU):
        plan["mlp.gate_proj"] = ColwiseParallel()
    if list(layer.self_attn.q_norm.parameters()):
        norm = SequenceParallel(sequence_dim=HEADS, use_local_output=True)
        plan |= {"self_attn.q_norm": norm, "self_attn.k_norm": norm}
    return plan
