"""How long does training wait for a checkpoint that is written in the background?

    python benchmarks/checkpoint_stall.py --rounds 5

Trains a GPT of 29 million parameters in windows of some steps, which begin without a checkpoint,
with one that training waits for, and with one that is written in the background. The three take
turns. The stall is the time until the next step can begin, and the cost is the
median difference of a whole window to the one without a checkpoint in the same round, which
includes steps that the thread slows down. Prints one JSON object.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median

from seq2chat.config import Recipe
from seq2chat.device import describe_machine, pick_device
from seq2chat.models.folder import n_parameters
from seq2chat.training.saving import begin_checkpoint
from seq2chat.training.setup import start_job
from seq2chat.training.types import Job

WAYS = ("none", "waiting", "background")


def window(job: Job, way: str, steps: int) -> tuple[float, float]:
    """Return the stall and the seconds of a window."""
    began = time.perf_counter()
    saving = None
    if way != "none":
        saving = begin_checkpoint(
            job.run, job.model, job.tokenizer, job.optimizers, job.progress, keep=1
        )
        if way == "waiting":
            saving.wait()
    stall = time.perf_counter() - began
    for _ in range(steps):
        job.task.step(job)
        job.progress.step += 1
    if saving is not None:
        saving.wait()  # of a window that is too short for it
    return stall, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps per window")
    parser.add_argument("--d-model", type=int, default=512)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        text = Path(root) / "text.txt"
        text.write_text(" ".join(topics.values()), encoding="utf-8")
        tables = {
            "data": {"corpus": str(text)},
            "tokenizer": {"vocab_size": 4096},
            "model": {"context": 256, "n_layer": 8, "n_head": 8, "d_model": arguments.d_model},
            "train": {"budget": "1000 steps", "batch_size": 4, "compile": "off"},
        }
        job = start_job(Recipe.from_tables(tables), Path(root) / "run")
        window(job, "none", 2)  # the first steps are slower
        results = [
            {way: window(job, way, arguments.steps) for way in WAYS}
            for _ in range(arguments.rounds)
        ]
        files = (job.run.list_checkpoints()[-1]).rglob("*")
        size = sum(file.stat().st_size for file in files)
        parameters = n_parameters(job.recipe.model)
    values = {
        way: {
            "stall_seconds": round(median(r[way][0] for r in results), 3),
            "cost_seconds": round(median(r[way][1] - r["none"][1] for r in results), 3),
        }
        for way in WAYS[1:]
    }
    shape = {"parameters": parameters, "checkpoint_bytes": size}
    measured = {"step_seconds": round(median(r["none"][1] for r in results) / arguments.steps, 3)}
    machine = {"machine": describe_machine(pick_device()), "load": os.getloadavg()[0]}
    print(json.dumps(shape | measured | values | machine))


if __name__ == "__main__":
    main()
