"""How much faster do two processes train than one, on the processors of this machine?

    python benchmarks/scaling.py --rounds 3

Trains the same GPT on the same batches with one process and one thread, one process and two
threads, and two processes of one thread each, which divide the parameters or have them whole. The
ways take turns, and the best round counts, as other programs slow all of them down. Prints one JSON
object per way: tokens per second, and the share of twice the first way's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median

from seq2chat.device import describe_machine, pick_device

STEPS = 16
SKIPPED = 4  # the first steps are slower
SHAPE = {
    "--budget": f"{STEPS} steps",
    "--tokenizer.vocab-size": "2048",
    "--model.context": "256",
    "--model.n-layer": "4",
    "--model.n-head": "4",
    "--model.d-model": "256",
    "--train.batch-size": "8",
    "--train.precision": "fp32",
    "--train.compile": "off",
    "--train.samples": "0",
    "--train.evals": "1",
    "--train.eval-tokens": "1000",
    "--train.final-eval-tokens": "1000",
    "--train.checkpoints": "1",
}
# Name, processes, threads of each, and options.
WAYS = (
    ("1 process, 1 thread", 1, 1, ()),
    ("1 process, 2 threads", 1, 2, ()),
    ("2 processes, shard", 2, 1, ()),
    ("2 processes, data", 2, 1, ("--parallel.data", "2")),
)


def tokens_per_second(folder: Path, text: Path, n: int, threads: int, options: tuple) -> float:
    """Train once, and return the median speed of the steps."""
    words = [sys.executable, "-m", "seq2chat", "launch", "--nproc", str(n), "train", str(text)]
    words += ["--out", str(folder), *options, *(w for option in SHAPE.items() for w in option)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "NO_COLOR": "1"}
    subprocess.run(words, check=True, env=environment, stderr=subprocess.DEVNULL)
    metrics = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return median([m["tokens_per_second"] for m in metrics if "loss" in m][SKIPPED:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    best = dict.fromkeys((name for name, *_ in WAYS), 0.0)
    with tempfile.TemporaryDirectory() as root:
        text = Path(root) / "text.txt"
        text.write_text(" ".join(topics.values()), encoding="utf-8")
        for number in range(arguments.rounds):
            for index, (name, n, threads, options) in enumerate(WAYS):
                folder = Path(root) / f"{number}-{index}"
                speed = tokens_per_second(folder, text, n, threads, options)
                best[name] = max(best[name], speed)
    one = best[WAYS[0][0]]
    machine = describe_machine(pick_device())
    for name, speed in best.items():
        share = round(speed / (2 * one), 3)
        print(json.dumps({"way": name, "tokens_per_second": round(speed), "of_twice": share}))
    print(json.dumps({"machine": machine, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
