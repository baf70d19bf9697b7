"""Seconds from the command to the first generated token on a model of about 10M parameters, and to
`--help`.

python benchmarks/startup.py
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import machine

PROMPT = "The function"


def first_token_seconds(run: Path) -> float:
    command = [
        sys.executable,
        "-m",
        "seq2chat",
        "generate",
        str(run),
        "--prompt",
        PROMPT,
        "--seed",
        "1",
    ]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(len(PROMPT) + 1)  # the prompt is printed first, then what is generated
        seconds = time.perf_counter() - began
        process.kill()
    return seconds


def help_seconds() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "seq2chat", "--help"], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        shape = ["--model.n-layer", "6", "--model.d-model", "384", "--tokenizer.vocab-size", "4096"]
        length = ["--budget", "1 step", "--train.samples", "0", "--train.compile", "off"]
        command = [
            sys.executable,
            "-m",
            "seq2chat",
            "train",
            "pydocs",
            "--out",
            str(run),
            *shape,
            *length,
        ]
        subprocess.run(command, check=True, capture_output=True)
        first = [first_token_seconds(run) for _ in range(5)]
    helps = [help_seconds() for _ in range(5)]
    line = {
        "benchmark": "startup",
        "machine": machine(),
        "first_token_seconds": round(statistics.median(first), 2),
        "first_token_runs": [round(seconds, 2) for seconds in first],
        "help_seconds": round(statistics.median(helps), 2),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
