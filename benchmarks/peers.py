"""What the benchmarks share: children that measure one side each, peers imported from a clone, one
JSON line."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any


def child(
    script: str, *arguments: str, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run `script` in a fresh process and return the JSON object of its last line."""
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{Path(script).name} {' '.join(arguments)} failed")
    return json.loads(done.stdout.strip().splitlines()[-1])


def llama_cpp() -> Any:
    """Return the module llama_cpp, or None if it is not installed.

    Weights repacked for AMX are off: with them, llama-cpp-python 0.3.36 stops with an illegal
    instruction on virtual machines that have not enabled AMX for it.
    """
    try:
        import llama_cpp
    except ImportError:
        return None
    original = llama_cpp.llama_model_default_params

    def parameters() -> Any:
        defaults = original()
        defaults.use_extra_bufts = False
        return defaults

    llama_cpp.llama_cpp.llama_model_default_params = parameters
    llama_cpp.llama_model_default_params = parameters
    return llama_cpp


def peak_memory() -> int:
    """Bytes of the most memory this process ever held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> str:
    """Processor, cores, threads and torch of this machine."""
    import torch

    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    name = names[0] if names else platform.processor()
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{name}, {torch.get_num_threads()} threads"
    )
    return f"{device}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
