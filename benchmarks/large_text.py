"""What does a timed run make of a text far larger than its budget? Steps, seconds and memory of
`seq2chat train`.

    python benchmarks/large_text.py --megabytes 12 300 1000 --budget 60s
    python benchmarks/large_text.py --megabytes 1000 --whole --emoji

Texts are made from the documentation that ships inside CPython, its words shuffled by a seed. With
`--whole` the run reads all of the text, and has a model of one layer whose shape does not depend on
the text, so that what grows with the text can be seen.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

from seq2chat.device import describe_machine, pick_device

BASE_MB = 400  # peak memory that a run may have whatever its text
SHARE = 0.1  # of the text that may be added to it
ONE_SHAPE = [
    "--tokenizer.vocab-size",
    "4096",
    "--model.context",
    "256",
    "--model.n-layer",
    "1",
    "--model.d-model",
    "64",
]


def write_text(file: Path, megabytes: float, emoji: bool) -> None:
    """Write a text of that size, of lines of different lengths."""
    words = " ".join(topics.values()).split(" ")
    rng = random.Random(0)
    left = int(megabytes * 1e6)
    with file.open("w", encoding="utf-8") as out:
        while left > 0:
            rng.shuffle(words)
            text = " ".join(words) + (" 🙂\n" if emoji else "\n")
            left -= out.write(text[:left])


def measure(file: Path, folder: Path, budget: str, whole: bool) -> dict:
    """Train once. Returns seconds of the command, its steps and its peak memory in MB."""
    command = [
        sys.executable,
        "-m",
        "seq2chat",
        "train",
        str(file),
        "--budget",
        budget,
        "--out",
        str(folder),
    ]
    if whole:
        command += ["--data.max-characters", "0", *ONE_SHAPE]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder.parent / "cache")}
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    last = [row for row in rows if "val_loss" in row][-1]
    return {
        "exit_code": os.waitstatus_to_exitcode(status),
        "seconds": round(seconds, 1),
        "first_step_at": round(steps[0]["elapsed_seconds"], 1),
        "steps": len(steps),
        "steps_above_rate_0": sum(row["lr"] > 0 for row in steps),
        "val_bpb": round(last["val_bpb"], 3),
        "peak_rss_mb": round(usage.ru_maxrss / 1e3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, nargs="+", default=[12, 300, 1000])
    parser.add_argument("--budget", default="60s")
    parser.add_argument(
        "--whole", action="store_true", help="read all of the text, with a model of one layer"
    )
    parser.add_argument(
        "--emoji", action="store_true", help="put characters into it that take four bytes"
    )
    options = parser.parse_args()
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "text.txt"
            write_text(file, megabytes, options.emoji)
            size = file.stat().st_size / 1e6
            result = measure(file, Path(folder) / "run", options.budget, options.whole)
            about = {"benchmark": "large_text", "megabytes": round(size), "budget": options.budget}
            about |= {
                "whole": options.whole,
                "emoji": options.emoji,
                "machine": describe_machine(pick_device()),
            }
            print(
                json.dumps(about | result | {"bound_rss_mb": round(BASE_MB + SHARE * size)}),
                flush=True,
            )


if __name__ == "__main__":
    main()
