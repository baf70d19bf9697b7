"""What the line from pretraining to PPO achieves, over seeds, against thresholds that were fixed
beforehand.

    python benchmarks/alignment_report.py --seed 1 2 3 4 5 --keep runs/alignment \\
        >> benchmarks/results/LINES.jsonl
    python benchmarks/alignment_report.py --table benchmarks/results/LINES.jsonl \\
        > docs/results/alignment.md

Each seed is the demo's line with weights, data and questions of its own, and one PPO run without
the pretraining mix beside it. All answers are sampled, to held-out questions whose wordings no
training used, and whose people and places stood in the text of pretraining alone.
"""

import argparse
import json
import math
import random
import statistics
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from alignment_page import QUESTIONS, page
from peers import machine

from seq2chat.alignment.checks import best_of
from seq2chat.alignment.doctor import diagnose, verdict
from seq2chat.alignment.exam import (
    MAX_TOKENS,
    SHOTS,
    Sheet,
    answer_sheet,
    exam,
    text_sheet,
    win_rate,
)
from seq2chat.alignment.judges import RewardScorer
from seq2chat.alignment.pipeline import run_pipeline, stage_tables
from seq2chat.alignment.report import summarize
from seq2chat.alignment.reward import score_texts
from seq2chat.alignment.rollout import roll_out
from seq2chat.alignment.setup import prepare_alignment
from seq2chat.config import Recipe, recipe_tables
from seq2chat.device import pick_device
from seq2chat.inference.evaluate import evaluate_text
from seq2chat.models.folder import n_parameters
from seq2chat.text.conversations import Query
from seq2chat.text.world import Question, ceiling, gold, labelers, pairs
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.loop import train
from seq2chat.training.run_folder import finished_stages, open_run
from seq2chat.training.setup import prepare_training, resume_job, start_job

BEST_OF, PAIRS = 16, 400


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def measure(folder: Path, seed: int, large: bool) -> dict[str, Any]:
    """Run the remaining stages of this seed's pipeline in `folder`, and measure it.

    `large` adds a base model with eight times the parameters, trained on the same text.
    """
    for _ in run_pipeline(folder, threading.Event(), tell, seed=seed):
        pass
    tables = stage_tables(folder, "ppo", seed)
    tables["align"] |= {"ptx": 0.0, "ptx_corpus": ""}
    run(
        Recipe.from_tables(recipe_tables("demo-ppo"), tables),
        folder / "ppo-without-mix",
        prepare_alignment,
    )
    names = {"base": "base", "sft": "sft", "ppo": "ppo", "ppo without mix": "ppo-without-mix"}
    models: dict[str, Any] = {name: loaded(folder / run)[0] for name, run in names.items()}
    _, tokenizer = loaded(folder / "sft")
    asked = exam(QUESTIONS, seed=1000 + seed)
    base, prompted = (
        text_sheet("base", models["base"], tokenizer, asked, shots, seed) for shots in (0, SHOTS)
    )
    sft, ppo, plain = (
        answer_sheet(name, models[name], tokenizer, asked, models["sft"], seed)
        for name in list(names)[1:]
    )
    line: dict[str, Any] = {"benchmark": "alignment", "machine": machine(), "seed": seed}
    line |= {"seconds": finished_stages(folder)}
    line |= summarize(asked, [base, sft, ppo])
    line["gold"]["base, prompted"] = round(prompted.score, 4)
    line["without_mix"] = {
        "gold": round(plain.score, 4),
        "kl": round(statistics.fmean(plain.kl), 3),
    }
    line["bits_per_byte"] = {
        name: round(
            evaluate_text(
                folder / run, {"corpus": "world:1MB"}, 32, None, None, lambda b, n: b
            ).bits_per_byte,
            4,
        )
        for name, run in names.items()
    }
    # What a model still does with a text that is no chat, and that neither SFT nor PPO asked for.
    line["prompted"] = {
        name: round(text_sheet(name, model, tokenizer, asked, SHOTS, seed).score, 4)
        for name, model in models.items()
    }
    if large:
        line["large"] = beside_large(folder, seed, asked, {"sft": sft, "ppo": ppo})
    line |= judge(folder, models["sft"], tokenizer, asked[:126])
    line["doctor"] = verdict(diagnose(folder))
    return line


def loaded(run: Path) -> tuple[Any, Any]:
    """The model of a run, on the machine's device, and its tokenizer."""
    model, tokenizer = load_checkpoint(run)
    return model.to(pick_device()), tokenizer


def run(recipe: Recipe, folder: Path, prepare: Any) -> None:
    """Train to the end, from the newest checkpoint where the run was begun before."""
    begun = (folder / "config.toml").exists()
    job = (
        resume_job(folder, {}, tell, prepare=prepare)
        if begun
        else start_job(recipe, folder, tell, prepare=prepare)
    )
    for _ in train(job, threading.Event()):
        pass


def beside_large(
    folder: Path, seed: int, asked: list[Question], sheets: dict[str, Sheet]
) -> dict[str, Any]:
    """How often the aligned models beat a base model of eight times their parameters, prompted with
    worked examples."""
    small = open_run(folder / "base")
    steps = max(m["step"] for m in small.metrics())
    tables: dict[str, dict[str, Any]] = {
        "model": {"d_model": 384, "n_layer": 5, "n_head": 6},
        "train": {"seed": 100 * seed, "budget": f"{steps} steps"},
    }
    run(Recipe.from_tables(recipe_tables("demo-base"), tables), folder / "large", prepare_training)
    model, tokenizer = loaded(folder / "large")
    sheet = text_sheet("large", model, tokenizer, asked, SHOTS, seed)
    ratio = n_parameters(model.config) / n_parameters(small.recipe().model)
    wins = {f"{name} over large": vars(win_rate(mine, sheet)) for name, mine in sheets.items()}
    return {"ratio": round(ratio, 2), "gold": round(sheet.score, 4), "win_rate": wins}


def judge(folder: Path, sft: Any, tokenizer: Any, asked: list) -> dict[str, Any]:
    """The reward model on held-out questions and labelers, beside what is possible, and as a
    chooser among answers."""
    model, _ = loaded(folder / "reward")
    held_out = [labeler for labeler in labelers() if labeler.held_out]
    compared = pairs(asked, random.Random(0))[: PAIRS * 10]
    right = total = 0.0
    for first in range(0, len(compared), 64):
        part = compared[first : first + 64]
        scores = [
            score_texts(model, tokenizer, [q.messages for q, _, _ in part], [p[i] for p in part])
            for i in (1, 2)
        ]
        for (question, a, b), above in zip(part, (scores[0] > scores[1]).tolist(), strict=True):
            odds = [labeler.odds(question, a, b) for labeler in held_out]
            first_better, second_better = sum(x for x, _ in odds), sum(y for _, y in odds)
            right += first_better if above else second_better
            total += first_better + second_better
    possible = ceiling(held_out, compared)
    rollout = roll_out(
        sft, tokenizer, [Query(q.messages) for q in asked], MAX_TOKENS, n=BEST_OF, seed=5
    )
    each = [question for question in asked for _ in range(BEST_OF)]
    golds = torch.tensor(
        [gold(question, text).score for question, text in zip(each, rollout.answers, strict=True)]
    )
    by_model = RewardScorer(model)(rollout).where(rollout.finished, -math.inf).cpu()
    mean, chosen, _ = best_of(golds, by_model, BEST_OF)
    return {
        "reward_accuracy": round(right / total, 4),
        "reward_ceiling": round(possible, 4),
        "best_of_16": {
            "mean": round(mean, 4),
            "by reward": round(chosen, 4),
            "by oracle": round(best_of(golds, golds, BEST_OF)[1], 4),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument(
        "--keep",
        type=Path,
        help="folder to leave the lines in; what is there already is not run again",
    )
    parser.add_argument(
        "--large",
        action="store_true",
        help="train and ask a base model of 8 times the parameters, too",
    )
    parser.add_argument(
        "--table", type=Path, help="print the page of results of these lines instead"
    )
    options = parser.parse_args()
    if options.table:
        print(page([json.loads(line) for line in options.table.read_text().splitlines()]))
        return
    with TemporaryDirectory() as scratch:
        for seed in options.seed:
            print(
                json.dumps(
                    measure((options.keep or Path(scratch)) / str(seed), seed, options.large)
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
