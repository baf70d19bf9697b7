"""Batched rollouts beside `generate` of transformers: the same weights, prompts and number of new
tokens, in one run.

    python benchmarks/rollouts.py [--run runs/demo/ppo]

64 prompts of 24 to 48 tokens, 32 new tokens each, sampled at temperature 1, float32, medians of
interleaved rounds. With --run, the times of rollout, score and update in the PPO iterations of that
run are printed too.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peers import machine

from seq2chat.config import GPTConfig
from seq2chat.device import pick_device
from seq2chat.generation.decode import generate
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.models.folder import n_parameters, save_model
from seq2chat.models.gpt import GPT
from seq2chat.training.run_folder import open_run

SHAPES = {
    "1M": GPTConfig(vocab_size=1024, context=192, n_layer=4, n_head=4, d_model=128),
    "10M": GPTConfig(vocab_size=4096, context=192, n_layer=6, n_head=6, d_model=384),
}
PROMPTS, NEW, ROUNDS = 64, 32, 7


def compare(config: GPTConfig) -> dict[str, float]:
    """Tokens a second of both, and the ratio."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    device, chance = pick_device(), random.Random(0)
    model = GPT(config).to(device).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    prompts = [
        [chance.randrange(config.vocab_size) for _ in range(chance.randint(24, 48))]
        for _ in range(PROMPTS)
    ]
    with TemporaryDirectory() as folder:
        save_model(model, folder, pad_token_id=0)
        theirs = AutoModelForCausalLM.from_pretrained(folder).to(device).eval()
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    with torch.inference_mode():
        greedy = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4, "pad_token_id": 0}
        same = theirs.generate(ids, attention_mask=mask, **greedy)[:, longest:].tolist()
        assert same == [
            c.tokens for [c] in generate(model, prompts, SamplingConfig(4, temperature=0.0))
        ], "other tokens"

    def ours() -> int:
        return sum(len(c.tokens) for [c] in generate(model, prompts, SamplingConfig(NEW)))

    @torch.inference_mode()
    def peer() -> int:
        options = {
            "do_sample": True,
            "top_k": 0,
            "max_new_tokens": NEW,
            "min_new_tokens": NEW,
            "pad_token_id": 0,
        }
        return theirs.generate(ids, attention_mask=mask, **options)[:, longest:].numel()

    rates: dict[str, list[float]] = {"ours": [], "transformers": []}
    for _ in range(ROUNDS):
        for name, side in (("ours", ours), ("transformers", peer)):
            rates[name].append(tokens_per_second(side))
    median = {name: statistics.median(values[1:]) for name, values in rates.items()}
    return {
        "parameters": n_parameters(config),
        "ours": round(median["ours"]),
        "transformers": round(median["transformers"]),
        "ratio": round(median["ours"] / median["transformers"], 2),
    }


def tokens_per_second(side: Callable[[], int]) -> float:
    began = time.perf_counter()
    return side() / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="run of ppo whose iterations are divided")
    options = parser.parse_args()
    line = {"benchmark": "rollouts", "machine": machine(), "prompts": PROMPTS, "new_tokens": NEW}
    line |= {name: compare(config) for name, config in SHAPES.items()}
    if options.run:
        steps = [m for m in open_run(options.run).metrics() if "seconds_rollout" in m]
        line["ppo_iteration_seconds"] = {
            part: round(statistics.median(m[f"seconds_{part}"] for m in steps), 3)
            for part in ("rollout", "score", "update")
        }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
