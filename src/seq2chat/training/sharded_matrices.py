"""A function of whole matrices, computed for matrices whose rows are divided among processes.

Muon needs whole matrices, and FSDP divides each by rows. Each process gets all rows of its share of
the matrices, computes, and returns the rows. So every matrix is computed once, and a process sends
and receives about as many numbers as it stores.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

Function = Callable[[Tensor], Tensor]
"""Maps matrices (n, rows, columns) to as many of the same shape."""


def map_matrices(function: Function, matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return the results of `function` on matrices of one shape, each divided like its argument."""
    first = matrices[0]
    if not isinstance(first, DTensor):
        return list(function(torch.stack(list(matrices))))
    axes = [axis for axis, placement in enumerate(first.placements) if placement == Shard(0)]
    others = [p for axis, p in enumerate(first.placements) if axis not in axes]
    parts = [m.to_local() for m in matrices if isinstance(m, DTensor)]
    if len(axes) == 1 and all(placement == Replicate() for placement in others):
        results = _exchange(function, parts, first.shape[0], first.device_mesh.get_group(axes[0]))
    else:  # columns are divided too
        return _gather(function, [m for m in matrices if isinstance(m, DTensor)])
    return [_like(result, first) for result in results]


def _exchange(
    function: Function, parts: Sequence[Tensor], n_rows: int, group: dist.ProcessGroup
) -> list[Tensor]:
    """Return this process's rows of the results, for its rows of all matrices."""
    size = dist.get_world_size(group)
    rank = dist.get_rank(group)
    # FSDP divides rows like torch.chunk: the last processes may have fewer rows, or none.
    most = -(-n_rows // size)
    rows = [max(0, min(most, n_rows - index * most)) for index in range(size)]
    owned = [list(range(owner, len(parts), size)) for owner in range(size)]
    columns = parts[0].shape[1]
    blank = parts[0].new_empty(0)

    def pack(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor.flatten() for tensor in tensors]) if tensors else blank

    sent = [pack([parts[i] for i in indices]) for indices in owned]
    n_own = len(owned[rank])
    received = [blank.new_empty(n_own * n * columns) for n in rows]
    _all_to_all(received, sent, group)
    if n_own:
        pieces = [r.view(n_own, n, columns) for r, n in zip(received, rows, strict=True)]
        whole = function(torch.cat(pieces, dim=1))
        returned = [piece.flatten() for piece in whole.split(rows, dim=1)]
    else:
        returned = [blank] * size
    results = [torch.empty_like(tensor) for tensor in sent]
    _all_to_all(results, returned, group)
    by_index: dict[int, Tensor] = {}
    for indices, flat in zip(owned, results, strict=True):
        if indices:
            by_index |= zip(indices, flat.view(len(indices), rows[rank], columns), strict=True)
    return [by_index[index] for index in range(len(parts))]


def _all_to_all(received: list[Tensor], sent: list[Tensor], group: dist.ProcessGroup) -> None:
    """Fill `received[r]` with the tensor that process r has at this process's place of `sent`."""
    output = torch.cat(received)
    dist.all_to_all_single(
        output,
        torch.cat(sent).contiguous(),
        [tensor.numel() for tensor in received],
        [tensor.numel() for tensor in sent],
        group=group,
    )
    for tensor, part in zip(received, output.split([t.numel() for t in received]), strict=True):
        tensor.copy_(part)


def _gather(function: Function, matrices: Sequence[DTensor]) -> list[Tensor]:
    """Return the results, computed by all processes on gathered matrices."""
    results = function(torch.stack([matrix.full_tensor() for matrix in matrices]))
    return [
        _like(part_like(result, matrix).contiguous(), matrix)
        for result, matrix in zip(results, matrices, strict=True)
    ]


def part_like(values: Tensor, tensor: Tensor) -> Tensor:
    """Return the part of whole `values` that this process has of `tensor`."""
    if not isinstance(tensor, DTensor):
        return values
    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    # FSDP divides the parts of tensor parallelism further, so the last axis comes first.
    for axis in reversed(range(mesh.ndim)):
        placement: Any = tensor.placements[axis]
        if not placement.is_replicate():
            parts = values.chunk(mesh.size(axis), dim=placement.dim)
            index = coordinate[axis]
            values = parts[index] if index < len(parts) else values.narrow(placement.dim, 0, 0)
    return values


def _like(part: Tensor, matrix: DTensor) -> DTensor:
    """Return a tensor divided like `matrix`, with this process's part."""
    return DTensor.from_local(
        part,
        matrix.device_mesh,
        matrix.placements,
        run_check=False,
        shape=matrix.shape,
        stride=matrix.stride(),
    )
