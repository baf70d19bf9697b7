"""The report of a pipeline: answers to held-out questions before and after alignment, scored by
program."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from seq2chat.alignment.rollout import answer_logp, roll_out
from seq2chat.generation.decode import generate
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.models.gpt import GPT
from seq2chat.text import world
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.conversations import Query
from seq2chat.text.world import FAMILIES, RISKS, Gold, Question, gold

MAX_TOKENS = 32
SHOTS = 2  # worked examples before a question, for prompting a base model
RESAMPLES = 2000
QUESTIONS_AT_ONCE = 128
PARTS = ("correctness", "constraint", "brevity", "form", "honesty", "harmlessness")


@dataclass(frozen=True)
class Sheet:
    """One model's answers to the questions.

    Each has a gold score, a length in tokens, and the log ratio in nats of its probability to that
    of the reference.
    """

    name: str
    answers: list[str]
    golds: list[Gold]
    lengths: list[int]
    kl: list[float]

    @property
    def score(self) -> float:
        """Mean gold score."""
        return fmean(g.score for g in self.golds)


def exam(n: int, seed: int = 0) -> list[Question]:
    """Return `n` questions with wordings that no training used, about people and places that no
    fine-tuning used."""
    return world.questions("test", n, seed)


def answer_sheet(
    name: str,
    model: GPT,
    tokenizer: ByteBPE,
    questions: Sequence[Question],
    reference: GPT | None = None,
    seed: int = 0,
) -> Sheet:
    """Return the sampled answers of a chat model. Its KL is estimated against `reference`."""
    answers: list[str] = []
    lengths: list[int] = []
    kl: list[float] = []
    for first in range(0, len(questions), QUESTIONS_AT_ONCE):
        part = questions[first : first + QUESTIONS_AT_ONCE]
        queries = [Query(question.messages) for question in part]
        rollout = roll_out(model, tokenizer, queries, MAX_TOKENS, seed=seed + first)
        answers += rollout.answers
        lengths += rollout.lengths.tolist()
        if reference is not None:
            with torch.no_grad():
                logp = answer_logp(model, rollout.tokens, rollout.mask)
                ref_logp = answer_logp(reference, rollout.tokens, rollout.mask)
            kl += (logp - ref_logp).sum(1).tolist()
    return Sheet(name, answers, _golds(questions, answers), lengths, kl)


def text_sheet(
    name: str,
    model: GPT,
    tokenizer: ByteBPE,
    questions: Sequence[Question],
    shots: int = 0,
    seed: int = 0,
) -> Sheet:
    """Return the answers of a base model that continues the text "Question: ... Answer:".

    `shots` worked examples of the same family come first (Brown et al. 2020, figure 2.1), with the
    best answers that people wrote.
    """
    examples = world.questions("train", 40 * len(FAMILIES), seed=987)
    rng = random.Random(seed)
    newline = set(tokenizer.encode("\n"))
    start = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    answers: list[str] = []
    lengths: list[int] = []
    for first in range(0, len(questions), QUESTIONS_AT_ONCE):
        prompts = []
        for question in questions[first : first + QUESTIONS_AT_ONCE]:
            family = [q for q in examples if q.family == question.family]
            shown = "".join(
                f"Question: {_flat(q)}\nAnswer: {q.answer}\n" for q in rng.sample(family, shots)
            )
            ids = [*start, *tokenizer.encode(f"{shown}Question: {_flat(question)}\nAnswer:")]
            prompts.append(ids[-(model.context - MAX_TOKENS) :])
        sampling = SamplingConfig(max_tokens=MAX_TOKENS, seed=seed + first)
        for [completion] in generate(model, prompts, sampling, [*start, *newline]):
            text = tokenizer.decode(token for token in completion.tokens if token not in start)
            answers.append(text.split("\n")[0].strip())
            lengths.append(len(completion.tokens))
    return Sheet(name, answers, _golds(questions, answers), lengths, [])


def _golds(questions: Sequence[Question], answers: Sequence[str]) -> list[Gold]:
    return [gold(question, answer) for question, answer in zip(questions, answers, strict=True)]


def _flat(question: Question) -> str:
    return " ".join(message.content for message in question.messages)


@dataclass(frozen=True)
class WinRate:
    """The share of questions on which one model's answer scores higher than another's, with ties as
    half, and the interval that contains 95 % of bootstrap samples of the questions."""

    rate: float
    low: float
    high: float
    n: int


def win_rate(a: Sheet, b: Sheet, same_length: bool = False, seed: int = 0) -> WinRate:
    """Return how often `a` beats `b`. With `same_length`, only answers whose lengths differ by at
    most one token are compared, so that none wins by its length."""
    wins = []
    for x, y, length_x, length_y in zip(a.golds, b.golds, a.lengths, b.lengths, strict=True):
        if not same_length or abs(length_x - length_y) <= 1:
            wins.append(0.5 if x.score == y.score else float(x.score > y.score))
    if not wins:
        return WinRate(0.5, 0.0, 1.0, 0)
    rng = random.Random(seed)
    means = sorted(fmean(rng.choices(wins, k=len(wins))) for _ in range(RESAMPLES))
    low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]
    return WinRate(fmean(wins), low, high, len(wins))


def summarize(questions: Sequence[Question], sheets: Sequence[Sheet]) -> dict[str, Any]:
    """Return the report as plain data.

    It has the mean gold score of each model by family and by part, win rates of each model over
    the one before it, KL, length, and the share of honest and harmless answers.
    """

    def right(sheet: Sheet, family: str = "") -> float:
        """Return the share of correct answers, by default to questions without a risk."""
        correct = [
            float(g.correctness == 1.0)
            for q, g in zip(questions, sheet.golds, strict=True)
            if (q.family == family if family else q.family not in RISKS)
        ]
        return round(fmean(correct), 4)

    def family_score(sheet: Sheet, family: str) -> float:
        pairs = zip(questions, sheet.golds, strict=True)
        return round(fmean(g.score for q, g in pairs if q.family == family), 4)

    def part_score(sheet: Sheet, part: str) -> float:
        return round(fmean(getattr(g, part) for g in sheet.golds), 4)

    result: dict[str, Any] = {
        "questions": len(questions),
        "gold": {s.name: round(s.score, 4) for s in sheets},
        "by_family": {s.name: {f: family_score(s, f) for f in FAMILIES} for s in sheets},
        "by_part": {s.name: {part: part_score(s, part) for part in PARTS} for s in sheets},
        "right": {
            s.name: {
                "answerable": right(s),
                "unanswerable": right(s, "unanswerable"),
                "false_premise": right(s, "false_premise"),
                "harmful": right(s, "harmful"),
            }
            for s in sheets
        },
        "answer_tokens": {s.name: round(fmean(s.lengths), 2) for s in sheets},
        "kl": {s.name: round(fmean(s.kl), 3) for s in sheets if s.kl},
    }
    result["win_rate"] = {
        f"{b.name} over {a.name}{' at one length' if same else ''}": vars(win_rate(b, a, same))
        for a, b in pairwise(sheets)
        for same in (False, True)
    }
    return result


def write_report(
    folder: Path,
    questions: Sequence[Question],
    sheets: Sequence[Sheet],
    notes: Sequence[str] = (),
) -> None:
    """Write `report.json`, `report.md` and `report.png` into `folder`."""
    result = summarize(questions, sheets)
    (folder / "report.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = _page(questions, sheets, result, notes)
    (folder / "report.md").write_text(page, encoding="utf-8")
    _draw(sheets, result, folder / "report.png")


def _page(
    questions: Sequence[Question],
    sheets: Sequence[Sheet],
    result: dict[str, Any],
    notes: Sequence[str],
) -> str:
    names = [s.name for s in sheets]

    def shares(kind: str) -> list[str]:
        return [f"{result['right'][name][kind]:.0%}" for name in names]

    kl = [f"{result['kl'][n]:.2f}" if n in result["kl"] else "–" for n in names]
    lines = ["# Before and after alignment", ""]
    lines.append(
        f"{len(questions)} held-out questions with wordings that no training used, about people and"
        " places that no fine-tuning used. Each has one sampled answer, scored by program: 1 is the"
        " best answer that a careful person would write."
    )
    if notes:
        lines += ["", *notes]
    lines += [
        "",
        "![gold score by family](report.png)",
        "",
        _row(["", *names]),
        _row(["---"] * (1 + len(names))),
        _row(["**gold score**", *(f"**{result['gold'][n]:.3f}**" for n in names)]),
        _row(["answerable questions right", *shares("answerable")]),
        _row(["unanswerable questions declined", *shares("unanswerable")]),
        _row(["false premises corrected", *shares("false_premise")]),
        _row(["harmful requests declined", *shares("harmful")]),
        _row(["tokens per answer", *(f"{result['answer_tokens'][n]:.1f}" for n in names)]),
        _row(["KL from sft (nats)", *kl]),
        "",
        "## Win rates",
        "",
    ]
    for pair, w in result["win_rate"].items():
        lines.append(
            f"- {pair}: {w['rate']:.0%} (95 % interval {w['low']:.0%} to {w['high']:.0%}, {w['n']} "
            "questions)"
        )
    lines += ["", "## By family", "", _row(["", *names]), _row(["---"] * (1 + len(names)))]
    for family in FAMILIES:
        lines.append(_row([family, *(f"{result['by_family'][n][family]:.2f}" for n in names)]))
    lines += ["", "## Answers side by side", ""]
    for family in FAMILIES:
        index = next(i for i, q in enumerate(questions) if q.family == family)
        lines += [f"**{family}**: {_flat(questions[index])}", ""]
        for s in sheets:
            answer = s.answers[index] or "(nothing)"
            lines.append(f"- {s.name} ({s.golds[index].score:.2f}): {answer}")
        lines.append("")
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _draw(sheets: Sequence[Sheet], result: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 4.5), layout="constrained")
    width = 0.8 / len(sheets)
    for k, sheet in enumerate(sheets):
        heights = [result["by_family"][sheet.name][family] for family in FAMILIES]
        places = [i + (k - (len(sheets) - 1) / 2) * width for i in range(len(FAMILIES))]
        axes.bar(places, heights, width, label=f"{sheet.name} ({sheet.score:.2f})")
    axes.set_xticks(range(len(FAMILIES)), [f.replace("_", "\n") for f in FAMILIES], fontsize=7)
    axes.set(ylabel="gold score", ylim=(0, 1))
    axes.legend()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
