"""The lecture's measured topics in full: every case and seed, one JSON line each, as `seq2chat
explain` reads them.

    python benchmarks/lecture.py copy reverse recall speed bidirectional \\
        > benchmarks/results/lecture.jsonl
    SEQ2CHAT_DATA=... python benchmarks/lecture.py captions >> benchmarks/results/lecture.jsonl

Trainings run side by side, each on a thread of its own; speed is measured alone, on all threads.
Multi30k is needed for captions alone.
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from peers import machine

from seq2chat.course import bidirectional, captions, fixed_vector, rnn_vs_transformer
from seq2chat.course.tasks import Case

STEPS = {"copy": 1000, "reverse": 1000, "captions": 1500, "recall": 1000, "bidirectional": 1000}


def cases(question: str, seeds: int, widths: list[int]) -> list[Any]:
    if question in ("recall", "bidirectional"):
        models = rnn_vs_transformer.MODELS if question == "recall" else bidirectional.MODELS
        return [Case(name, seed) for seed in range(seeds) for name in models]
    return [
        fixed_vector.Case(question, name, width, seed)
        for width in widths
        for seed in range(seeds)
        for name in fixed_vector.MODELS
    ]


def measure(question: str, case: Any, steps: int) -> dict[str, Any]:
    """Train one case on one thread."""
    import torch

    torch.set_num_threads(1)
    topics = {
        "copy": fixed_vector.measure,
        "reverse": fixed_vector.measure,
        "captions": captions.measure,
    }
    topics |= {"recall": rnn_vs_transformer.measure_recall, "bidirectional": bidirectional.measure}
    began = time.perf_counter()
    record = topics[question](case, steps)
    return record | {"seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", nargs="+", choices=[*STEPS, "speed"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, help="of each training, instead of those of its question"
    )
    parser.add_argument(
        "--d-model", type=int, nargs="+", help="widths of the fixed context (64 128; captions: 128)"
    )
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    where = {"benchmark": "lecture", "machine": machine()}
    if "speed" in options.questions:
        for length in rnn_vs_transformer.LENGTHS:
            for name in rnn_vs_transformer.MODELS:
                print(
                    json.dumps(where | rnn_vs_transformer.measure_speed(name, length)), flush=True
                )
    with ProcessPoolExecutor(options.processes) as pool:
        runs = []
        for question in options.questions:
            if question != "speed":
                widths = options.d_model or ([128] if question == "captions" else [64, 128])
                steps = options.steps or STEPS[question]
                runs += [
                    pool.submit(measure, question, case, steps)
                    for case in cases(question, options.seeds, widths)
                ]
        for number, run in enumerate(runs, start=1):
            print(json.dumps(where | run.result()), flush=True)
            print(f"{number} of {len(runs)}", file=sys.stderr)


if __name__ == "__main__":
    main()
