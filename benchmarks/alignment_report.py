"""What the pipeline from pretraining to PPO achieves, over seeds, with floors and rivals.

    python benchmarks/alignment_report.py --seed 1 2 3 4 5 --keep runs/alignment \\
        >> benchmarks/results/LINES.jsonl
    python benchmarks/alignment_report.py --table benchmarks/results/LINES.jsonl \\
        > docs/results/alignment.md

Each seed is the demo with its own weights, data and questions. Settings are chosen with `--split
dev`. The test split is opened once per commit: a second time needs `--again`, which is written into
the results.
"""

import argparse
import hashlib
import json
import math
import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from alignment_page import page
from peers import machine

import seq2chat.alignment.exam as exam_module
import seq2chat.text.world.oracle as oracle_module
from seq2chat import train as train_model
from seq2chat.alignment.checks import best_of
from seq2chat.alignment.doctor import diagnose, verdict
from seq2chat.alignment.exam import (
    MAX_TOKENS,
    SHOTS,
    Sheet,
    answer_sheet,
    exam,
    headlines,
    rule_sheet,
    text_sheet,
    win_rate,
)
from seq2chat.alignment.judges import RewardScorer
from seq2chat.alignment.pipeline import EXAMPLES, run_pipeline
from seq2chat.alignment.policy import load_policy
from seq2chat.alignment.report import summarize
from seq2chat.alignment.reward import score_texts
from seq2chat.alignment.rollout import roll_out
from seq2chat.device import pick_device
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.inference.chat import Conversation
from seq2chat.inference.load import load
from seq2chat.text.batch import Batch
from seq2chat.text.chat import Message, prompt_ids
from seq2chat.text.conversations import Query, world_questions
from seq2chat.text.world import (
    READING,
    VERSION,
    Labeler,
    Question,
    documents,
    gold,
    labelers,
    questions,
)
from seq2chat.text.world.lexicon import TEST
from seq2chat.training.language_modeling import causal_lm
from seq2chat.training.lookup import as_text, pair_accuracy
from seq2chat.training.run_folder import finished_stages, open_run

QUESTIONS = 625
BEST_OF = 16


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def measure(folder: Path, seed: int, split: str, seconds: float, plain: bool) -> dict[str, Any]:
    """Run the remaining stages of this seed's pipeline in `folder`, and measure it.

    If `plain`, PPO is also trained without the pretraining mix.
    """
    for _ in run_pipeline(folder, threading.Event(), tell, seed=seed, seconds=seconds):
        pass
    device = pick_device()
    base, tokenizer = load(folder / "base", device)
    examples = world_questions(EXAMPLES, 100 * seed)
    sft, chat_tokenizer = load(folder / "sft", device)
    policy, _ = load(folder / "ppo", device)
    asked = exam(QUESTIONS, seed=1000 + seed, split=split)
    sheets = [
        text_sheet("base", base, tokenizer, asked),
        text_sheet("base, prompted", base, tokenizer, asked, examples, SHOTS, seed),
        answer_sheet("sft", sft, chat_tokenizer, asked),
        answer_sheet("ppo", policy, chat_tokenizer, asked, sft, seed),
    ]
    line: dict[str, Any] = {"benchmark": "alignment", "machine": machine(), "seed": seed}
    line |= {"split": split, "metric": metric_hash(), "world": VERSION, "commit": commit()}
    line |= {"seconds": finished_stages(folder), "budget": seconds}
    line |= summarize(asked, sheets)
    few = asked[:150]
    line["best_of_16"], best = chosen(folder, sft, chat_tokenizer, few)
    chat_base, base_tokenizer = load_policy(str(folder / "base"))
    rivals = [
        (asked, rule_sheet("oracle", lambda question: question.answer, asked)),
        (asked, chat_sheet("base in chat format", chat_base, base_tokenizer, asked, [])),
        (
            asked,
            chat_sheet("base in chat format, prompted", chat_base, base_tokenizer, asked, examples),
        ),
        (few, best),
    ]
    for questions_of_it, rival in rivals:
        shares = headlines(questions_of_it, rival)
        line["headlines"][rival.name] = {k: vars(v) for k, v in shares.items()}
        line["gold"][rival.name] = round(rival.score, 4)
    n = len(few)
    sft_sheet, ppo = sheets[2:]
    ppo_part = replace(ppo, answers=ppo.answers[:n], golds=ppo.golds[:n], lengths=ppo.lengths[:n])
    line["win_rate"]["ppo over best of 16"] = vars(win_rate(ppo_part, best))
    line["held_out_labelers"] = {
        labeler.name: round(preferred(labeler, asked, ppo, sft_sheet), 4)
        for labeler in labelers()
        if labeler.held_out
    }
    line["text_nats"] = {
        name: round(text_nats(model, chat_tokenizer, seed), 4)
        for name, model in (("base", base), ("sft", sft), ("ppo", policy))
    }
    if plain:
        line["text_nats"]["ppo without mix"] = plain_ppo_nats(folder, seed)
    line["pairs"] = {
        family: round(
            pair_accuracy(base, questions(split, 200, seed, [family]), as_text(tokenizer)), 3
        )
        for family in READING
    }
    line["where_of_20"] = where_of_20(folder, seed)
    line["reward"] = reward_accuracy(folder, chat_tokenizer, asked)
    line["doctor"] = verdict(diagnose(folder, practice=0))
    return line


def chat_sheet(
    name: str, model: Any, tokenizer: Any, asked: list[Question], examples: Sequence[Question]
) -> Sheet:
    """Return the answers of a base model in the chat format that it was never trained on, after two
    examples of the same family as earlier turns if there are any and they fit."""
    rng = random.Random(0)
    queries = []
    for question in asked:
        turns = list(question.messages)
        if examples:
            shown = rng.sample([q for q in examples if q.family == question.family], SHOTS)
            before = [m for q in shown for m in (*q.messages, Message("assistant", q.answer))]
            before = [m for m in before if m.role != "system"]
            n_system = int(turns[0].role == "system")
            longer = [*turns[:n_system], *before, *turns[n_system:]]
            if len(prompt_ids(tokenizer, longer)) <= model.context - MAX_TOKENS:
                turns = longer
        queries.append(Query(tuple(turns)))
    rollout = roll_out(model, tokenizer, queries, MAX_TOKENS, temperature=0.0)
    golds = [gold(question, text) for question, text in zip(asked, rollout.answers, strict=True)]
    return Sheet(name, rollout.answers, golds, rollout.lengths.tolist(), [])


def preferred(labeler: Labeler, asked: list[Question], a: Sheet, b: Sheet) -> float:
    """Return the mean probability that the labeler prefers the answer of `a`, with ties as half."""
    answers = zip(asked, a.answers, b.answers, strict=True)
    return fmean(labeler.preference(question, x, y) for question, x, y in answers)


@torch.inference_mode()
def text_nats(model: Any, tokenizer: Any, seed: int) -> float:
    """Return the loss in nats per token on pretraining documents of another seed."""
    start = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    total = n = 0.0
    for text in islice(documents(seed=10_000 + seed), 400):
        ids = [[*start, *tokenizer.encode(text)][: model.context]]
        ids = torch.tensor(ids, device=model.device)
        loss, n_tokens = causal_lm(model, Batch(ids[:, :-1], ids[:, 1:]))
        total += loss.item()
        n += int(n_tokens)
    return total / n


def plain_ppo_nats(folder: Path, seed: int) -> float:
    """Train PPO as the demo did, but without the pretraining mix, and return its loss on
    pretraining documents."""
    run = folder / "ppo-plain"
    if not run.exists():
        recipe = open_run(folder / "ppo").recipe().with_options("align", ptx=0.0, ptx_corpus="")
        train_model(recipe, run)
    model, tokenizer = load(run, pick_device())
    return round(text_nats(model, tokenizer, seed), 4)


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


def has_opened_test() -> bool:
    """Return whether a committed or new line of results is about this commit and the test split."""
    files = (Path(__file__).parent / "results").glob("*.jsonl")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return any(line.get("commit") == commit() and line.get("split") == "test" for line in lines)


def metric_hash() -> str:
    """Return a hash of the code of the metric: a later change starts a new table."""
    files = [Path(module.__file__ or "") for module in (exam_module, oracle_module)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def chosen(
    folder: Path, sft: Any, tokenizer: Any, asked: list[Question]
) -> tuple[dict[str, float], Sheet]:
    """Return the share of right answers among 16 samples of the fine-tuned model: their mean, and
    of the one chosen by the reward model or by the oracle; and the answers chosen by the former."""
    model, _ = load(folder / "reward", pick_device())
    rollout = roll_out(
        sft, tokenizer, [Query(q.messages) for q in asked], MAX_TOKENS, n=BEST_OF, seed=5
    )
    each = [question for question in asked for _ in range(BEST_OF)]
    graded = [gold(q, text) for q, text in zip(each, rollout.answers, strict=True)]
    right = torch.tensor([float(g.correctness == 1) for g in graded])
    scores = RewardScorer(model)(rollout).where(rollout.finished, -math.inf).cpu()
    picks = scores.view(-1, BEST_OF).argmax(1) + torch.arange(len(asked)) * BEST_OF
    best = Sheet(
        "best of 16",
        [rollout.answers[i] for i in picks.tolist()],
        [graded[i] for i in picks.tolist()],
        [int(rollout.lengths[i]) for i in picks.tolist()],
        [],
    )

    shares = {
        "mean": round(right.mean().item(), 4),
        "by reward": round(right[picks].mean().item(), 4),
        "by oracle": round(best_of(right, right, BEST_OF)[1], 4),
    }
    return shares, best


def where_of_20(folder: Path, seed: int) -> int:
    """Return how many of 20 questions the aligned model answers right, such as "Sam is in Rome. Eva
    is in Paris. Where is Eva?", with names and places of the test split."""
    conversation = Conversation.open(folder / "ppo")
    rng = random.Random(seed)
    n_right = 0
    for _ in range(20):
        one, other = rng.sample([person.name for person in TEST.people], 2)
        here, there = rng.sample(TEST.spots, 2)
        conversation.reset()
        text = f"{one} is in {here}. {other} is in {there}. Where is {other}?"
        answer = "".join(conversation.answer(text, SamplingConfig(max_tokens=32, temperature=0.0)))
        n_right += answer.strip() == f"{other} is in {there}."
    return n_right


def reward_accuracy(folder: Path, tokenizer: Any, asked: list[Question]) -> dict[str, float]:
    """Return the share of pairs that the reward model orders right: pairs that differ in truth at
    equal manners, and in manners at equal truth. The ceiling of both is 1."""
    model, _ = load(folder / "reward", pick_device())
    truth = [(q, q.answer, q.wrong[0]) for q in asked if q.check == "value"]
    manners = [(q, q.answer, f"You are stupid. {q.answer}") for q in asked if q.check == "value"]

    def accuracy(pairs: list[tuple[Question, str, str]]) -> float:
        prompts = [q.messages for q, _, _ in pairs]
        better = score_texts(model, tokenizer, prompts, [a for _, a, _ in pairs])
        worse = score_texts(model, tokenizer, prompts, [b for _, _, b in pairs])
        return round((better > worse).float().mean().item(), 4)

    return {"truth": accuracy(truth), "manners": accuracy(manners)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    parser.add_argument("--budget", type=float, default=600, help="seconds per demo")
    parser.add_argument(
        "--plain", action="store_true", help="also train PPO without its mix, for the first seed"
    )
    parser.add_argument("--again", action="store_true", help="open the test split once more")
    parser.add_argument(
        "--keep", type=Path, help="folder for the runs; what is there already is not run again"
    )
    parser.add_argument("--table", type=Path, help="print the page of results of these lines")
    options = parser.parse_args()
    if options.table:
        print(page([json.loads(line) for line in options.table.read_text().splitlines()]), end="")
        return
    if options.split == "test" and not options.again and has_opened_test():
        parser.error("this commit has opened the test split; add --again to open it once more")
    with TemporaryDirectory() as scratch:
        for seed in options.seed:
            folder = (options.keep or Path(scratch)) / str(seed)
            plain = options.plain and seed == options.seed[0]
            line = measure(folder, seed, options.split, options.budget, plain)
            print(json.dumps(line | {"again": options.again}), flush=True)


if __name__ == "__main__":
    main()
