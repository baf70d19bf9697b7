"""Alignment on real text, end to end, by the commands that a user would write; one JSON line.

    SEQ2CHAT_DATA=... python benchmarks/real_data.py --minutes 5 >> benchmarks/results/LINES.jsonl

A small GPT reads WikiText-2's validation text, is fine-tuned on the answers of GSM8K's training
questions, and a reward model learns from Anthropic's hh-rlhf comparisons with a fifth of them held
out. Small models on little text: the numbers say that the line runs, and how far from useful so
small a model is.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import machine

from seq2chat.models.folder import n_parameters
from seq2chat.training.run_folder import open_run


def seq2chat(*arguments: str) -> float:
    """Run one command and return its seconds."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "seq2chat", *arguments], check=True, stdout=sys.stderr)
    return round(time.perf_counter() - began, 1)


def measured(run: Path) -> dict[str, Any]:
    """The first and the last of each validation metric of a run."""
    found: dict[str, list[float]] = {}
    for metrics in open_run(run).metrics():
        for key, value in metrics.items():
            if key.startswith("val_"):
                found.setdefault(key, []).append(round(value, 4))
    return {key: [values[0], values[-1]] for key, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="of pretraining")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder to leave the runs in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        base, sft, reward = (folder / name for name in ("base", "sft", "reward"))
        seed = ("--train.seed", str(options.seed))
        seconds = {
            "base": seq2chat(
                "train",
                "wikitext-2-valid",
                "--budget",
                f"{round(60 * options.minutes)}s",
                *seed,
                "--out",
                str(base),
                "--model.n-layer",
                "4",
                "--model.d-model",
                "128",
                "--model.n-head",
                "4",
                "--model.context",
                "512",
                "--tokenizer.vocab-size",
                "4096",
            )
        }
        start = ("--start", str(base), *seed, "--budget", "1 epoch")
        seconds["sft"] = seq2chat(
            "sft", "--data", "gsm8k", *start, "--out", str(sft), "--align.ptx", "0"
        )
        seconds["reward"] = seq2chat(
            "reward",
            "--data",
            "hh-rlhf",
            *start,
            "--out",
            str(reward),
            "--data.val-fraction",
            "0.2",
        )
        line = {
            "benchmark": "real_data",
            "machine": machine(),
            "seed": options.seed,
            "parameters": n_parameters(open_run(base).recipe().model),
            "seconds": seconds,
            **{run.name: measured(run) for run in (base, sft, reward)},
        }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
