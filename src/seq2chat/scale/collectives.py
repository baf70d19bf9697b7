"""A count of all collectives that a program issues, by kind, axis and size."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

# For each operator of torch.distributed: the kind of collective, and the index of the argument that
# is, or whose product with the group's size is, the whole tensor.
PLAIN = {
    "_allgather_base_": ("all-gather", 0),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
    "allreduce_": ("all-reduce", 0),
}
FUNCTIONAL = {
    "all_gather_into_tensor": "all-gather",
    "reduce_scatter_tensor": "reduce-scatter",
    "all_reduce": "all-reduce",
}


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind along one axis of the mesh: their number, and bytes of all tensors.

    A tensor counts whole: the result of an all-gather, and the input of a reduction on one rank.
    """

    kind: str
    axis: str
    count: int
    size: float


class CollectiveCounter(TorchDispatchMode):
    """While active, counts the collectives of this process on the groups of `mesh`."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()
        self.axes = {mesh.get_group(name).group_name: name for name in mesh.mesh_dim_names or ()}
        for name, flat in mesh._get_root_mesh()._flatten_mapping.items():
            self.axes[flat.get_group().group_name] = name
        self.counts: Counter[tuple[str, str]] = Counter()
        self.sizes: Counter[tuple[str, str]] = Counter()

    def traffic(self) -> list[Traffic]:
        """Return the collectives so far, those of the largest size first."""
        traffic = [Traffic(*key, n, float(self.sizes[key])) for key, n in self.counts.items()]
        return sorted(traffic, key=lambda t: -t.size)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            # DTensor then runs its own collectives, which come back here.
            return NotImplemented
        if func.namespace == "c10d":
            self._count_plain(func._opname, args)
        elif func.namespace == "_c10d_functional":
            self._count_functional(func._opname, args)
        return func(*args, **(kwargs or {}))

    def _count_plain(self, name: str, args: tuple) -> None:
        kind, index = PLAIN[name]
        whole = args[index]
        tensors = [whole] if isinstance(whole, Tensor) else whole
        group = next(a for a in args if not isinstance(a, Tensor | list | bool | int))
        axis = self.axes[dist.ProcessGroup.unbox(group).group_name]
        self._add(kind, axis, sum(t.nbytes for t in tensors))

    def _count_functional(self, name: str, args: tuple) -> None:
        if name == "wait_tensor":
            return
        kind = FUNCTIONAL[name]
        size = args[0].nbytes * (args[1] if kind == "all-gather" else 1)
        self._add(kind, self.axes[args[-1]], size)

    def _add(self, kind: str, axis: str, size: int) -> None:
        self.counts[kind, axis] += 1
        self.sizes[kind, axis] += size
