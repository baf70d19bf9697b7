"""How long from the start of the process to a validation loss of 1.88 nats a character on tinyshakespeare?

    python benchmarks/time_to_loss.py TINYSHAKESPEARE.txt [--nanogpt FOLDER] [--repeats 3]

nanoGPT runs the CPU recipe of its README, which is said to reach 1.88; seq2chat trains its own tokenizer and model.
Both clocks hold everything: imports, training, validation, files, and the tokenizer where there is one. Both train on
the first 90% of the characters; seq2chat is scored on the whole of the rest (total nats / characters), nanoGPT by its
own estimate over random windows of it. Runs alternate. Prints one JSON line per run.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGET = 1.88

RECIPE = """
[data]
corpus = "{corpus}"
[tokenizer]
vocab_size = 2048
[model]
context = 128
n_layer = 4
n_head = 2
d_model = 128
[optim]
weight_decay = 0.0
[train]
budget = "80 steps"
batch_size = 16
compile = "off"
evals = 1
checkpoints = 1
samples = 0
"""

# Its README, "I only have a macbook", with --compile=False as written there.
NANOGPT = ["train.py", "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20"]
NANOGPT += ["--log_interval=1", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128"]
NANOGPT += ["--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"]


def run_seq2chat(corpus: Path, folder: Path) -> tuple[float, float]:
    """Seconds and nats a character of one run from nothing, its caches in `folder`."""
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(corpus=corpus.resolve()))
    run = folder / "run"
    command = [sys.executable, "-m", "seq2chat", "train", str(recipe), "--out", str(run)]
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")})
    seconds = time.perf_counter() - began
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return seconds, [r["val_loss_per_character"] for r in records if "val_loss_per_character" in r][-1]


def run_nanogpt(corpus: Path, checkout: Path, folder: Path) -> tuple[float, float]:
    """Seconds and the last validation loss it prints; its data is prepared outside the clock."""
    work = Path(shutil.copytree(checkout, folder / "nanoGPT"))
    data = work / "data" / "shakespeare_char"
    shutil.copy(corpus, data / "input.txt")
    subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, capture_output=True)
    began = time.perf_counter()
    result = subprocess.run([sys.executable, *NANOGPT], cwd=work, check=True, capture_output=True, text=True)
    return time.perf_counter() - began, float(re.findall(r"val loss ([\d.]+)", result.stdout)[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--nanogpt", type=Path, help="checkout of karpathy/nanoGPT")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            report("seq2chat", *run_seq2chat(arguments.corpus, Path(folder)))
        if arguments.nanogpt:
            with tempfile.TemporaryDirectory() as folder:
                report("nanoGPT", *run_nanogpt(arguments.corpus, arguments.nanogpt, Path(folder)))


def report(name: str, seconds: float, loss: float) -> None:
    print(
        json.dumps(
            {"name": name, "seconds": round(seconds, 1), "nats_per_character": round(loss, 4), "target": TARGET}
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
