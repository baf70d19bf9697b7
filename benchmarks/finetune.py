"""Tokens per second of LoRA on SmolLM2-135M, beside TRL with PEFT in its own environment.

    python -m venv trl && trl/bin/pip install trl==1.12.0 peft requests
    python benchmarks/finetune.py --trl trl/bin/python

Rows of 512 tokens, 4 per step, all of them trained on, adapters of rank 16 on all linear maps of
the blocks, AdamW, no gradient checkpointing. Each side runs in processes of its own, in turn, in
bfloat16 and in float32; the figure is the median over the rounds of each round's median step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from peers import machine, peak_memory

ROWS, SEQ, RANK = 4, 512, 16
MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def rows(folder: str, n: int) -> list[list[int]]:
    """Return `n` rows of tokens of the shipped license text, repeated."""
    from tokenizers import Tokenizer

    text = (Path(__file__).parent.parent / "LICENSE").read_text(encoding="utf-8")
    ids = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(text).ids
    ids = ids * (n * SEQ // len(ids) + 1)
    return [ids[i * SEQ : (i + 1) * SEQ] for i in range(n)]


def ours(folder: str, bf16: bool, steps: int) -> dict[str, Any]:
    import torch

    from seq2chat.alignment.policy import load_policy
    from seq2chat.alignment.sft import sft_loss
    from seq2chat.config import Recipe, recipe_tables
    from seq2chat.models.lora import add_lora
    from seq2chat.text.batch import Batch
    from seq2chat.training.optim import make_optimizers

    model, _ = load_policy(folder)
    model.compute_dtype = torch.bfloat16 if bf16 else torch.float32
    add_lora(model, RANK, 2.0 * RANK)
    model.train()
    recipe = Recipe.from_tables(recipe_tables("sft-lora"))
    optimizers = make_optimizers(model, recipe.optim, torch.float32)
    tokens = torch.tensor(rows(folder, ROWS * steps)).split(ROWS)
    seconds = []
    for batch in tokens:
        began = time.perf_counter()
        loss, n = sft_loss(model, Batch(batch[:, :-1], batch[:, 1:]))
        (loss / n).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds, "loss": (loss / n).item(), "peak_memory": peak_memory()}


def trl(folder: str, bf16: bool, steps: int) -> dict[str, Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times[-1] = time.perf_counter() - times[-1]

    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(folder),
        train_dataset=Dataset.from_dict({"input_ids": rows(folder, ROWS * steps)}),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=MAPS),
        args=SFTConfig(
            output_dir="/tmp/finetune-trl",
            per_device_train_batch_size=ROWS,
            max_steps=steps,
            max_length=SEQ,
            learning_rate=1e-3,
            bf16=bf16,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            logging_steps=steps,
            dataloader_pin_memory=False,
            disable_tqdm=True,
        ),
        callbacks=[Clock()],
    )
    trainer.train()
    loss = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
    return {"seconds": times, "loss": loss, "peak_memory": peak_memory()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trl", help="the Python of an environment with trl and peft")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, precision, folder = options.side
        measure = {"ours": ours, "trl": trl}[side]
        print(json.dumps(measure(folder, precision == "bf16", options.steps)))
        return
    from seq2chat.training.checkpoint import find_checkpoint

    folder = find_checkpoint(Path("smollm2"))
    pythons = {"ours": sys.executable} | ({"trl": options.trl} if options.trl else {})
    sides = [(side, precision) for precision in ("bf16", "fp32") for side in pythons]
    measured: dict[str, list[dict[str, Any]]] = {f"{a} {b}": [] for a, b in sides}
    for _ in range(options.rounds):
        for side, precision in sides:
            command = [pythons[side], __file__, "--steps", str(options.steps)]
            command += ["--side", side, precision, str(folder)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            measured[f"{side} {precision}"].append(json.loads(done.stdout.splitlines()[-1]))
    result: dict[str, Any] = {}
    for name, rounds in measured.items():
        seconds = statistics.median(statistics.median(r["seconds"][2:]) for r in rounds)
        result[name] = {
            "tokens_per_second": round(ROWS * SEQ / seconds),
            "peak_gb": round(max(r["peak_memory"] for r in rounds) / 1e9, 2),
        }
    if options.trl:
        best = {
            side: max(result[f"{side} {p}"]["tokens_per_second"] for p in ("bf16", "fp32"))
            for side in pythons
        }
        result["ratio"] = round(best["ours"] / best["trl"], 2)
    print(json.dumps({"benchmark": "finetune", "machine": machine()} | result))


if __name__ == "__main__":
    main()
