"""What the benchmarks share: children that measure one side each, peers imported from a clone, one
JSON line."""

import json
import os
import platform
import shutil
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


class LlamaServer:
    """llama.cpp on one GGUF file, by `node-llama-cpp`, whose package contains code for every
    instruction set, with continuous batching of up to `n` prompts.

    `folder` is where `npm install node-llama-cpp` was run.
    """

    def __init__(self, folder: Path, file: Path, n: int) -> None:
        import torch

        n_thread = str(torch.get_num_threads())
        # Node looks for packages beside the script.
        script = Path(shutil.copy(Path(__file__).with_name("llama_server.mjs"), folder))
        self.process = subprocess.Popen(
            ["node", str(script), str(file), n_thread, str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def generate(self, prompts: list[list[int]], n: int) -> tuple[float, list[list[int]]]:
        """Return the seconds for `n` greedy tokens of each prompt at once, and the tokens."""
        assert self.process.stdin is not None
        print(json.dumps({"prompts": prompts, "n": n}), file=self.process.stdin, flush=True)
        answer = self._answer()
        return answer["seconds"], answer["tokens"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("llama.cpp ended; run npm install node-llama-cpp in the folder of --llama-cpp")
        return json.loads(line)


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
