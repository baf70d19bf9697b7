"""Tokens per second of one training step, optimizer included, beside nanoGPT and nanochat in one
run.

6 layers, width 384, 6 heads, context 256, vocabulary 4096, batch 16. Each side runs in processes of
its own, in turn, so that a drift of the machine meets all of them; the figure is the median over
the rounds of each round's median step. nanoGPT runs as it does on CPUs (float32, not compiled);
nanochat at its best there (bfloat16, compiled).

    python benchmarks/train_step.py [--nanogpt CLONE] [--nanochat CLONE]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from peers import child, machine, peak_memory

BATCH, CONTEXT, VOCABULARY, N_LAYER, N_HEAD, D_MODEL = 16, 256, 4096, 6, 6, 384


def measure(step: Callable[[], object], warmup: int, steps: int) -> dict[str, float]:
    began = time.perf_counter()
    step()
    first = time.perf_counter() - began
    for _ in range(warmup):
        step()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(seconds),
        "first_seconds": first,
        "peak_memory": peak_memory(),
    }


def ours(steps: int) -> dict[str, float]:
    from seq2chat.config import Recipe
    from seq2chat.models.gpt import flops_per_token
    from seq2chat.training.setup import start_job

    recipe = Recipe.from_tables(
        {
            "tokenizer": {"vocab_size": VOCABULARY},
            "model": {"context": CONTEXT, "n_layer": N_LAYER, "n_head": N_HEAD, "d_model": D_MODEL},
            "train": {"batch_size": BATCH, "budget": "1000 steps"},
        }
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        job = start_job(recipe, Path(folder) / "run", lambda line: print(line, file=sys.stderr))
    ready = time.perf_counter() - began

    result = measure(lambda: job.task.step(job), 3, steps)
    flops = flops_per_token(job.recipe.model) * BATCH * CONTEXT
    return result | {
        "first_seconds": ready,
        "peak_share": flops / result["seconds"] / job.precision.peak_flops,
    }


def nanogpt(steps: int, clone: str) -> dict[str, float]:
    sys.path.insert(0, clone)
    import torch
    from model import GPT, GPTConfig

    model = GPT(GPTConfig(CONTEXT, VOCABULARY, N_LAYER, N_HEAD, D_MODEL, dropout=0.0, bias=False))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    x, y = torch.randint(0, VOCABULARY, (2, BATCH, CONTEXT))

    def step() -> None:
        _, loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return measure(step, 3, steps)


def nanochat(steps: int, clone: str) -> dict[str, float]:
    sys.path.insert(0, clone)
    import torch
    from nanochat.gpt import GPT, GPTConfig

    model = GPT(GPTConfig(CONTEXT, VOCABULARY, N_LAYER, N_HEAD, N_HEAD, D_MODEL))
    model.init_weights()
    optimizer = model.setup_optimizer()
    compiled = torch.compile(model, dynamic=False)
    x, y = torch.randint(0, VOCABULARY, (2, BATCH, CONTEXT))

    def step() -> None:
        compiled(x, y).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)

    return measure(step, 3, steps)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", help="folder of a clone of nanoGPT")
    parser.add_argument("--nanochat", help="folder of a clone of nanochat")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="timed steps in each round")
    parser.add_argument("--side", choices=["ours", "nanogpt", "nanochat"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        sides = {
            "ours": lambda: ours(options.steps),
            "nanogpt": lambda: nanogpt(options.steps, options.nanogpt),
            "nanochat": lambda: nanochat(options.steps, options.nanochat),
        }
        print(json.dumps(sides[options.side]()))
        return
    names = ["ours", *(name for name in ("nanogpt", "nanochat") if getattr(options, name))]
    results: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            clone = [] if name == "ours" else [f"--{name}", getattr(options, name)]
            environment = {"NANOCHAT_DTYPE": "bfloat16"} if name == "nanochat" else {}
            flags = ["--side", name, "--steps", str(options.steps), *clone]
            results[name].append(child(__file__, *flags, environment=environment))
            print(name, results[name][-1], file=sys.stderr)

    def median(name: str, key: str) -> float:
        return statistics.median(result[key] for result in results[name])

    tokens = BATCH * CONTEXT
    line = {
        "benchmark": "train_step",
        "machine": machine(),
        "tokens_per_second": round(tokens / median("ours", "seconds")),
        "peak_share": round(median("ours", "peak_share"), 3),
        "ready_seconds": round(median("ours", "first_seconds"), 1),
        "peak_memory_mb": round(median("ours", "peak_memory") / 1e6),
    }
    for name in names[1:]:
        line[f"ratio_{name}"] = round(median(name, "seconds") / median("ours", "seconds"), 2)
        line[f"{name}_tokens_per_second"] = round(tokens / median(name, "seconds"))
        line[f"{name}_first_step_seconds"] = round(median(name, "first_seconds"), 1)
        line[f"{name}_peak_memory_mb"] = round(median(name, "peak_memory") / 1e6)
    line["rounds"] = {name: [round(tokens / r["seconds"]) for r in results[name]] for name in names}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
