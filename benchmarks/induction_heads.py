"""When does an induction head form? A small GPT on lines of random words that are repeated once.

    python benchmarks/induction_heads.py runs/repeat >> benchmarks/results/LINES.jsonl
    seq2chat serve runs/repeat/checkpoints/*    # the page Inside, "Over training", shows the same

Trains 4,000 steps (a few minutes on two cores) with ten checkpoints, and prints the largest scores
of each: the mean weight on the token before, and on the token that followed the same token earlier
(Olsson et al. 2022), on random tokens that are repeated once. One seed.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from peers import machine

from seq2chat import Recipe
from seq2chat import train as train_model
from seq2chat.inference.load import load_gpt
from seq2chat.interpret.trace import trace
from seq2chat.training.run_folder import RunFolder

LENGTH = 24  # tokens that are repeated


def write_text(file: Path) -> None:
    rng = random.Random(0)
    letters = "bcdfghjklmnprstvwz", "aeiou"
    words = ["".join(rng.choice(letters[i % 2]) for i in range(4)) for _ in range(200)]
    lines = ([rng.choice(words) for _ in range(rng.randint(4, 14))] for _ in range(30_000))
    file.write_text("".join(" ".join(line + line) + "\n" for line in lines))


def scores(folder: Path) -> dict[str, float]:
    """Return the largest scores of the heads of a checkpoint."""
    model, tokenizer = load_gpt(folder, device="cpu")
    generator = torch.Generator().manual_seed(0)
    once = torch.randint(tokenizer.vocab_size, (LENGTH,), generator=generator).tolist()
    one = trace(model, once * 2)
    sites = [f"layers.{i}.self_attn.heads" for i in range(model.config.n_layer)]
    weights = torch.cat([one[site] for site in sites])
    previous = weights.diagonal(-1, 1, 2).mean(-1)
    induction = weights.diagonal(1 - LENGTH, 1, 2)[:, 1:].mean(-1)
    return {
        "previous": round(previous[:4].max().item(), 3),
        "induction": round(induction[4:].max().item(), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run to write")
    run = parser.parse_args().run
    run.parent.mkdir(parents=True, exist_ok=True)
    text = run.with_suffix(".txt")
    write_text(text)
    recipe = Recipe.from_tables(
        {
            "data": {"corpus": str(text)},
            "tokenizer": {"vocab_size": 480},
            "model": {"context": 64, "n_layer": 2, "n_head": 4, "d_model": 64},
            "train": {
                "budget": "4000 steps",
                "batch_size": 32,
                "checkpoints": 10,
                "keep": 10,
                "evals": 2,
                "samples": 0,
                "compile": "off",
            },
        }
    )
    train_model(recipe, run)
    for checkpoint in RunFolder(run).list_checkpoints():
        line = {"benchmark": "induction_heads", "machine": machine(), "step": checkpoint.name}
        print(json.dumps(line | scores(checkpoint)))


if __name__ == "__main__":
    main()
