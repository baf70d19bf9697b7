"""Seconds from the start of the process to a validation loss of 1.88 nats a character on
tinyshakespeare.

Both sides train on the first 90 % of the characters. seq2chat's clock holds all of it: imports,
tokenizer training, shards, training, checkpoint, and validation on the whole held-out text. nanoGPT
runs the CPU recipe of its README; its clock holds its training script, its data being prepared
before; its checkpoint is then scored on the whole held-out text outside its clock, in windows of
its context like ours. The sides run in turn; figures are medians over the rounds.

    python benchmarks/time_to_loss.py --corpus tinyshakespeare.txt [--nanogpt CLONE]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import child, machine

TARGET = 1.88
OURS = """
[data]
corpus = {corpus}
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
seed = {seed}
evals = 1
checkpoints = 1
samples = 0
"""
# Its README, "I only have a macbook".
NANOGPT = [
    "train.py",
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=1",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
]


def ours(corpus: Path, seed: int) -> tuple[float, float]:
    """Seconds of the whole command, nothing cached, and nats a character."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.toml").write_text(
            OURS.format(corpus=json.dumps(str(corpus.resolve())), seed=seed)
        )
        command = [
            sys.executable,
            "-m",
            "seq2chat",
            "train",
            str(folder / "recipe.toml"),
            "--out",
            str(folder / "run"),
        ]
        began = time.perf_counter()
        subprocess.run(
            command, check=True, capture_output=True, env=os.environ | {"XDG_CACHE_HOME": name}
        )
        seconds = time.perf_counter() - began
        last = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    return seconds, last["val_loss_per_character"]


def nanogpt(corpus: Path, clone: Path) -> tuple[float, float]:
    """Seconds of its training script, and nats a character of the checkpoint it leaves."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(shutil.copytree(clone, Path(name) / "nanoGPT"))
        data = work / "data" / "shakespeare_char"
        shutil.copy(corpus, data / "input.txt")
        subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, capture_output=True)
        began = time.perf_counter()
        subprocess.run([sys.executable, *NANOGPT], cwd=work, check=True, capture_output=True)
        seconds = time.perf_counter() - began
        return seconds, child(__file__, "--corpus", str(corpus), "--score", str(work))["loss"]


def score_nanogpt(work: Path) -> float:
    """Mean loss of the checkpoint in `work` over its whole validation file."""
    sys.path.insert(0, str(work))
    import numpy as np
    import torch
    from model import GPT, GPTConfig

    saved = torch.load(
        work / "out-shakespeare-char" / "ckpt.pt", map_location="cpu", weights_only=False
    )
    model = GPT(GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    model.eval()
    tokens = torch.from_numpy(
        np.fromfile(work / "data" / "shakespeare_char" / "val.bin", dtype=np.uint16).astype(int)
    )
    context, total = saved["model_args"]["block_size"], 0.0
    with torch.inference_mode():
        for first in range(0, len(tokens) - 1, context):
            window = tokens[first : first + context + 1][None]
            _, loss = model(window[:, :-1], window[:, 1:].contiguous())
            total += loss.item() * (window.shape[1] - 1)
    return total / (len(tokens) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, required=True, help="tinyshakespeare as one text file"
    )
    parser.add_argument("--nanogpt", type=Path, help="folder of a clone of nanoGPT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.score:
        print(json.dumps({"loss": score_nanogpt(options.score)}))
        return
    results: dict[str, list[tuple[float, float]]] = {"ours": [], "nanogpt": []}
    for seed in range(options.rounds):
        results["ours"].append(ours(options.corpus, seed))
        print("ours", results["ours"][-1], file=sys.stderr)
        if options.nanogpt:
            results["nanogpt"].append(nanogpt(options.corpus, options.nanogpt))
            print("nanogpt", results["nanogpt"][-1], file=sys.stderr)
    line = {"benchmark": "time_to_loss", "machine": machine(), "target": TARGET}
    for name, runs in results.items():
        if runs:
            line[f"{name}_seconds"] = round(statistics.median(seconds for seconds, _ in runs), 1)
            line[f"{name}_losses"] = [round(loss, 4) for _, loss in runs]
            line[f"{name}_reached"] = all(loss <= TARGET for _, loss in runs)
    if options.nanogpt:
        line["ratio_nanogpt"] = round(line["nanogpt_seconds"] / line["ours_seconds"], 2)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
