"""Which device, which number format, which seed: what the machine under a run can do, measured
rather than assumed."""

import time
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

PROBE_SECONDS = 0.15


def pick_device() -> torch.device:
    """The CUDA GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def unused_accelerators() -> str:
    """Return a sentence about accelerators of this machine that a run leaves idle, "" where there
    are none."""
    n_gpus = torch.cuda.device_count()
    if n_gpus > 1:
        return f"1 of {n_gpus} GPUs is used: training is one process on one device so far"
    if n_gpus == 0 and torch.backends.mps.is_available():
        return "the Mac's GPU is not used: training runs on its CPU so far"
    return ""


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all it was given, so that a clock read next is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seed_everything(seed: int) -> None:
    """Seed torch's generators on every device. Data order has seeds of its own."""
    torch.manual_seed(seed)


@cache
def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measured FLOP/s of a square matrix product: the peak that a training step is compared
    with."""
    n = 1024 if device.type == "cpu" else 4096
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    a @ b
    synchronize(device)
    end = time.perf_counter() + PROBE_SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


@dataclass(frozen=True)
class Precision:
    """Number format of the matrix products, the FLOP/s measured for it, and why it was chosen."""

    dtype: torch.dtype
    peak_flops: float
    reason: str


def pick_precision(choice: Literal["auto", "bf16", "fp32"], device: torch.device) -> Precision:
    """bfloat16 where a probe of 0.3 s finds its matrix products faster than float32's, unless
    `choice` decides.

    CPUs without native bfloat16 multiply it tens of times slower than float32, and no flag of the
    processor tells the speed of torch's kernels on it; hence the probe.
    """
    if choice != "auto":
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[choice]
        return Precision(dtype, matmul_flops(device, dtype), "as asked")
    fp32, bf16 = (matmul_flops(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    dtype, peak = (torch.bfloat16, bf16) if bf16 > 1.2 * fp32 else (torch.float32, fp32)
    return Precision(
        dtype,
        peak,
        f"bf16 {bf16 / 1e9:.0f} against fp32 {fp32 / 1e9:.0f} GFLOP/s in a matrix product",
    )


def describe_machine(device: torch.device) -> str:
    """One line naming the machine of a measurement."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}"
