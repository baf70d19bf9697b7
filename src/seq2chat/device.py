"""Device, number format and seed of a run, chosen by measuring the machine."""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

PROBE_SECONDS = 0.15


def pick_device() -> torch.device:
    """Return the CUDA GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def unused_accelerators(device: torch.device, n_processes: int, command: str) -> str:
    """Return a sentence about the accelerators that a run on `device` leaves idle, and how
    `command` uses them. It is empty if there are none."""
    n_gpus = torch.cuda.device_count()
    if n_gpus > 1 and n_processes == 1:
        return f"1 of {n_gpus} GPUs is used; for all: seq2chat launch --nproc {n_gpus} {command}"
    if device.type == "cpu" and n_gpus == 0 and torch.backends.mps.is_available():
        return "the Mac's GPU is not used; try it with --device mps"
    return ""


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished its queued work, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def widest_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a Mac's GPU, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def free_memory() -> int | None:
    """Return the bytes of main memory that a program can use now, or None if that is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return None
    sizes = dict(line.split(":") for line in lines)
    if "MemAvailable" not in sizes:
        return None
    free = int(sizes["MemAvailable"].split()[0]) * 1024
    # A container may have less than its machine.
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no container, or no limit ("max")
        return free
    return min(free, max(0, limit - used))


def seed_everything(seed: int) -> None:
    """Seed torch's generators on all devices. The order of the data has its own seeds."""
    torch.manual_seed(seed)


@cache
def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the measured FLOP/s of a square matrix product, the peak for a training step."""
    n = 1024 if device.type == "cpu" else 4096
    a = torch.randn(n, n, device=device).to(dtype)
    b = torch.randn(n, n, device=device).to(dtype)
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


def copy_bandwidth(device: torch.device) -> float:
    """Return the measured bytes/s that a copy of a large tensor reads and writes."""
    source = torch.zeros(2**26, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * source.nbytes / best


@dataclass(frozen=True)
class Precision:
    """Number format of the matrix products, its measured FLOP/s, and the reason for the choice."""

    dtype: torch.dtype
    peak_flops: float
    reason: str


def pick_precision(choice: Literal["auto", "bf16", "fp32"], device: torch.device) -> Precision:
    """Return the number format to compute in.

    With "auto" it is bfloat16 if a probe of 0.3 s measures faster matrix products than in float32.
    CPUs without native bfloat16 multiply it tens of times slower than float32, and no flag of the
    processor predicts the speed of torch's kernels.
    """
    if choice != "auto":
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[choice]
        return Precision(dtype, matmul_flops(device, dtype), "as set by train.precision")
    fp32 = matmul_flops(device, torch.float32)
    bf16 = matmul_flops(device, torch.bfloat16)
    reason = f"bf16 {bf16 / 1e9:.0f} against fp32 {fp32 / 1e9:.0f} GFLOP/s in a matrix product"
    if bf16 > 1.2 * fp32:
        return Precision(torch.bfloat16, bf16, reason)
    return Precision(torch.float32, fp32, reason)


def describe_machine(device: torch.device) -> str:
    """Return one line that names the machine of a measurement."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "a Mac's GPU"
    return f"{torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}"
