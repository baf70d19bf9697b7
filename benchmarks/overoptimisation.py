"""Over-optimisation of a reward model (Gao et al. 2022, figure 1): gold score against the square
root of the KL divergence from the fine-tuned policy, for reward models that learned from more or
fewer comparisons.

    python benchmarks/overoptimisation.py runs/demo >> benchmarks/results/LINES.jsonl
    python benchmarks/overoptimisation.py --draw benchmarks/results/LINES.jsonl \\
        docs/results/overoptimisation.png

Begins with the folder of a finished `seq2chat demo`: its policy, and the answers that labelers
ranked. PPO runs with next to no KL penalty and without the pretraining mix, and each of its
checkpoints answers held-out questions; best-of-n chooses among answers of the fine-tuned policy, at
a KL of log n - (n - 1)/n. All are means over the same questions.
"""

import argparse
import json
import math
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peers import machine

from seq2chat.alignment.checks import best_of
from seq2chat.alignment.exam import MAX_TOKENS, answer_sheet, exam
from seq2chat.alignment.judges import RewardScorer
from seq2chat.alignment.kl import best_of_n_kl
from seq2chat.alignment.rollout import Rollout, ended_scores, roll_out
from seq2chat.alignment.setup import prepare_alignment
from seq2chat.config import Recipe, recipe_tables
from seq2chat.models.gpt import GPT
from seq2chat.models.reward import RewardModel
from seq2chat.text.conversations import Query
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.world import Question, gold
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.loop import train
from seq2chat.training.setup import start_job

QUESTIONS, MISSING_EOS = 210, 3.0
BEST_OF = (1, 2, 4, 8, 16, 32)


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(recipe: str, folder: Path, **tables: dict[str, Any]) -> None:
    made = Recipe.from_tables(recipe_tables(recipe), tables)
    for _ in train(start_job(made, folder, tell, prepare=prepare_alignment), threading.Event()):
        pass


def measure(demo: Path, n: int, steps: int, seed: int, scratch: Path) -> dict[str, Any]:
    """Train a reward model on the first `n` ranked prompts and a policy against it; measure both
    ways of using it."""
    rows = (demo / "comparisons.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:n]
    file, judge, policy = scratch / f"{n}.jsonl", scratch / f"reward-{n}", scratch / f"ppo-{n}"
    file.write_text("".join(rows), encoding="utf-8")
    start = str(demo / "sft")
    run(
        "demo-reward",
        judge,
        data={"corpus": str(file)},
        align={"start": start},
        train={"seed": seed},
    )
    align = {"start": start, "reward": str(judge), "beta": 0.002, "ptx": 0.0, "ptx_corpus": ""}
    train_table = {"seed": seed, "budget": f"{steps} steps", "checkpoints": 8, "keep": 8}
    run("demo-ppo", policy, align=align, train=train_table)
    reward, tokenizer = load_checkpoint(judge)
    sft, _ = load_checkpoint(demo / "sft")
    assert (
        isinstance(reward, RewardModel)
        and isinstance(tokenizer, TextTokenizer)
        and isinstance(sft, GPT)
    )
    asked = exam(QUESTIONS, seed=seed)
    line = {
        "benchmark": "overoptimisation",
        "machine": machine(),
        "seed": seed,
        "prompts": len(rows),
    }
    line["best_of_n"] = best_of_n(sft, tokenizer, reward, asked)
    line["ppo"] = [
        checkpoint_at(folder, sft, tokenizer, reward, asked) for folder in checkpoints(policy)
    ]
    return line


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


def checkpoint_at(
    folder: Path, sft: GPT, tokenizer: TextTokenizer, reward: RewardModel, asked: list[Question]
) -> dict[str, float]:
    model, _ = load_checkpoint(folder)
    assert isinstance(model, GPT)
    sheet = answer_sheet(folder.name, model, tokenizer, asked, sft)
    rollout = roll_out(model, tokenizer, [Query(q.messages) for q in asked], MAX_TOKENS, seed=0)
    return {
        "step": int(folder.name.removeprefix("step-")),
        "kl": round(sum(sheet.kl) / len(sheet.kl), 3),
        "gold": round(sheet.score, 4),
        "reward": round(
            ended_scores(rollout, RewardScorer(reward)(rollout), MISSING_EOS).mean().item(), 4
        ),
    }


def best_of_n(
    sft: GPT, tokenizer: TextTokenizer, reward: RewardModel, asked: list[Question]
) -> list[dict[str, float]]:
    """The expected gold and reward of the answer with the highest reward among n, from one large
    sample of each."""
    most = 2 * BEST_OF[-1]
    rollout: Rollout = roll_out(
        sft, tokenizer, [Query(q.messages) for q in asked], MAX_TOKENS, n=most, seed=1
    )
    each = [question for question in asked for _ in range(most)]
    golds = torch.tensor([gold(q, a).score for q, a in zip(each, rollout.answers, strict=True)])
    scores = ended_scores(rollout, RewardScorer(reward)(rollout), MISSING_EOS)
    return [
        {
            "n": n,
            "kl": round(best_of_n_kl(n), 3),
            "gold": round(best_of(golds, scores, n, most)[1], 4),
            "reward": round(best_of(scores, scores, n, most)[1], 4),
        }
        for n in BEST_OF
    ]


def draw(lines: list[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for panel, way, title in zip(
        panels, ("best_of_n", "ppo"), ("best of n", "PPO, almost no KL penalty"), strict=True
    ):
        for place, line in enumerate(lines):
            points = sorted(line[way], key=lambda point: point["kl"])
            places = [math.sqrt(max(0.0, point["kl"])) for point in points]
            label = f"{line['prompts']:,} ranked prompts"
            panel.plot(
                places,
                [point["gold"] for point in points],
                "o-",
                color=f"C{place}",
                ms=4,
                label=label,
            )
        panel.set(title=title, xlabel="√KL from the fine-tuned policy (√nats)")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("gold score of held-out answers")
    panels[1].legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path, nargs="?", help="folder of a finished `seq2chat demo`")
    parser.add_argument(
        "--prompts",
        type=int,
        nargs="+",
        default=[200, 800, 3000],
        help="ranked prompts learned from",
    )
    parser.add_argument("--steps", type=int, default=80, help="iterations of PPO")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--draw", type=Path, nargs=2, metavar=("LINES", "PNG"), help="draw the lines instead"
    )
    options = parser.parse_args()
    if options.draw:
        rows = [
            json.loads(line) for line in options.draw[0].read_text(encoding="utf-8").splitlines()
        ]
        draw([row for row in rows if row["benchmark"] == "overoptimisation"], options.draw[1])
        return
    if options.demo is None:
        parser.error("name the folder of a finished demo")
    with TemporaryDirectory() as scratch:
        for n in options.prompts:
            print(
                json.dumps(measure(options.demo, n, options.steps, options.seed, Path(scratch))),
                flush=True,
            )


if __name__ == "__main__":
    main()
