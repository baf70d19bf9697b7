"""What a shipped recipe reaches: its whole command, its final weights, its whole validation split.
One line a seed.

SEQ2CHAT_DATA=... python benchmarks/recipe.py shakespeare [--seed 1337 ...] [--keep FOLDER]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import machine

from seq2chat.models.folder import n_parameters
from seq2chat.training.run_folder import open_run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--seed", type=int, nargs="+", help="default: the recipe's own")
    parser.add_argument("--keep", type=Path, help="folder to leave the runs in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seed or [None]:
            folder = (
                options.keep or Path(scratch)
            ) / f"{options.recipe}-{'own' if seed is None else seed}"
            flags = [] if seed is None else ["--train.seed", str(seed)]
            command = [
                sys.executable,
                "-m",
                "seq2chat",
                "train",
                options.recipe,
                "--out",
                str(folder),
                *flags,
            ]
            began = time.perf_counter()
            subprocess.run(command, check=True)
            seconds = time.perf_counter() - began
            run = open_run(folder)
            recipe, last = run.recipe(), run.metrics()[-1]
            line = {
                "benchmark": "recipe",
                "recipe": options.recipe,
                "machine": machine(),
                "seed": recipe.train.seed,
                "minutes": round(seconds / 60, 1),
                "parameters": n_parameters(recipe.model),
                "steps": last["step"],
                "tokens": last["tokens"],
                "val_tokens": last["val_tokens"],
                "val_loss_per_character": round(last["val_loss_per_character"], 4),
                "val_bpb": round(last["val_bpb"], 4),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
