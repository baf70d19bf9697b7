"""Does a run whose processes are killed again and again end with the losses of an undisturbed one?

    python benchmarks/faults.py --kills 20

`seq2chat launch` trains a small GPT by two processes. Random processes are killed with SIGKILL at
random steps, and every third one while a checkpoint is written. Prints one JSON object.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

from seq2chat.device import describe_machine, pick_device

STEPS = 600
EVERY_CHECKPOINT = 3  # kills while a checkpoint is written
OPTIONS = {
    "--budget": f"{STEPS} steps",
    "--tokenizer.vocab-size": "512",
    "--model.context": "64",
    "--model.n-layer": "2",
    "--model.n-head": "2",
    "--model.d-model": "128",
    "--model.dropout": "0.0",
    "--train.batch-size": "8",
    "--train.checkpoints": "60",
    "--train.precision": "fp32",
    "--train.compile": "off",
    "--train.samples": "0",
    "--train.evals": "1",
}


def begin(command: str, folder: Path, text: Path, *options: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "seq2chat", command, *options]
    words += ["train"] if command == "launch" else []
    words += [str(text), "--out", str(folder)]
    words += [word for option in OPTIONS.items() for word in option]
    return subprocess.Popen(words, stderr=subprocess.DEVNULL, env=os.environ | {"NO_COLOR": "1"})


def read(file: Path) -> list[dict]:
    """Return the complete lines of a file of JSON objects."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def last_step(folder: Path) -> int:
    return max((m["step"] for m in read(folder / "metrics.jsonl")), default=0)


def starts(folder: Path) -> list[dict]:
    return [event for event in read(folder / "events.jsonl") if event["event"] == "start"]


def wait_for(condition, process: subprocess.Popen) -> bool:
    """Return True as soon as the condition holds, or False if the run ends before."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    return True


def kill_repeatedly(process: subprocess.Popen, folder: Path, kills: int) -> list[dict]:
    """Kill processes of the run, and return when and which."""
    rng = random.Random(0)
    done: list[dict] = []
    for number in range(kills):
        attempts = len(done) + 1
        if not wait_for(lambda: len(starts(folder)) >= attempts, process):  # noqa: B023
            break
        pids = starts(folder)[-1]["pids"]
        # The first step of this attempt, then some more.
        began = time.time()
        file = folder / "metrics.jsonl"
        wait_for(lambda: file.exists() and file.stat().st_mtime > began + 0.01, process)  # noqa: B023
        step = last_step(folder) + rng.randint(5, 30)
        wait_for(lambda: last_step(folder) >= step, process)  # noqa: B023
        mid_checkpoint = number % EVERY_CHECKPOINT == 0
        if mid_checkpoint:
            wait_for(lambda: any(folder.glob("checkpoints/.step-*.tmp")), process)
        rank = rng.randrange(len(pids))
        os.kill(pids[rank], signal.SIGKILL)
        done.append({"step": last_step(folder), "rank": rank, "mid_checkpoint": mid_checkpoint})
        print(done[-1], file=sys.stderr, flush=True)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        text = Path(root) / "text.txt"
        text.write_text(" ".join(topics.values()), encoding="utf-8")
        alone = Path(root) / "alone"
        began = time.monotonic()
        begin("launch", alone, text, "--nproc", "2").wait()
        undisturbed = time.monotonic() - began
        folder = Path(root) / "killed"
        began = time.monotonic()
        process = begin("launch", folder, text, "--nproc", "2", "--pause", "0", "--retries", "9")
        kills = kill_repeatedly(process, folder, arguments.kills)
        code = process.wait()
        seconds = time.monotonic() - began
        expected = {m["step"]: m["loss"] for m in read(alone / "metrics.jsonl") if "loss" in m}
        actual = {m["step"]: m["loss"] for m in read(folder / "metrics.jsonl") if "loss" in m}
        result = {
            "kills": len(kills),
            "mid_checkpoint": sum(kill["mid_checkpoint"] for kill in kills),
            "attempts": len(starts(folder)),
            "exit_code": code,
            "steps": len(actual),
            "steps_expected": len(expected),
            "max_loss_difference": max(abs(actual[s] - expected[s]) for s in expected),
            "last_loss_difference": abs(actual[STEPS] - expected[STEPS]),
            "seconds": round(seconds, 1),
            "seconds_undisturbed": round(undisturbed, 1),
            "machine": describe_machine(pick_device()),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
