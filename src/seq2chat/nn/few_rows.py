"""Linear maps for the few rows of a decoding pass on a CPU.

The kernel is `few_rows.cpp`, which `build` compiles on the machine that uses it.
"""

import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import cpp_extension

FORMATS = torch.float32, torch.bfloat16
SOURCE = Path(__file__).with_suffix(".cpp")


@cache
def build() -> None:
    """Compile the kernel for this processor and register it as `torch.ops.seq2chat.few_rows`.

    Takes about ten seconds. Raises CalledProcessError or OSError without a suitable C++ compiler.
    """
    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]  # Apple's compiler has none
    flags = ["-O3", "-march=native", "-std=c++20", "-shared", "-fPIC", "-Wno-psabi", *openmp]
    include = [f"-I{path}" for path in cpp_extension.include_paths()]
    libraries = [
        *(f"-L{path}" for path in cpp_extension.library_paths()),
        "-lc10",
        "-ltorch_cpu",
        "-ltorch",
    ]
    with TemporaryDirectory() as folder:
        library = f"{folder}/few_rows.so"
        command = [
            cpp_extension.get_cxx_compiler(),
            *flags,
            *include,
            str(SOURCE),
            "-o",
            library,
            *libraries,
        ]
        subprocess.run(command, check=True, capture_output=True)
        torch.ops.load_library(library)
    torch.library.register_fake(
        "seq2chat::few_rows", lambda x, weight, bias: x.new_empty(*x.shape[:-1], len(weight))
    )


class FewRows(nn.Module):
    """x Wᵀ + b in the weights' float32 or bfloat16, returned in the format of x.

    The bits of a row never depend on the other rows.
    Call `build` before using it.
    """

    def __init__(
        self, weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None = None
    ) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: Float[Tensor, "*shape d_in"]) -> Float[Tensor, "*shape d_out"]:
        product = torch.ops.seq2chat.few_rows(x.to(self.weight.dtype), self.weight, self.bias)
        return product.to(x.dtype)


def replace_linears(module: nn.Module) -> None:
    """Replace every linear map in `module` by a `FewRows` on the same weights."""
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.Linear):
                setattr(part, name, FewRows(child.weight, child.bias))
