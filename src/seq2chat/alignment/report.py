"""What alignment changed: answers to held-out questions of the world before and after, judged by
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
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.conversations import Query
from seq2chat.text.world import FAMILIES, RISKS, Gold, Question, gold, questions

MAX_TOKENS = 32
SHOTS = 2  # worked examples in front of a question for a base model that is prompted
RESAMPLES = 2000
CHUNK = 128  # questions answered at once


@dataclass(frozen=True)
class Sheet:
    """One model's answers to the questions, each with its gold score, its length in tokens, and the
    log probability that the model gave it over its reference's (nats)."""

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
    """Return `n` questions whose wordings no training used, and whose people and places no
    fine-tuning."""
    return questions("test", n, seed)


def answer_sheet(
    name: str,
    model: GPT,
    tokenizer: ByteBPE,
    asked: Sequence[Question],
    reference: GPT | None = None,
    seed: int = 0,
) -> Sheet:
    """Return the sampled answers of a model that chats; its KL is estimated against `reference`, if
    there is one."""
    texts, lengths, kl = [], [], []
    for first in range(0, len(asked), CHUNK):
        part = [Query(question.messages) for question in asked[first : first + CHUNK]]
        rollout = roll_out(model, tokenizer, part, MAX_TOKENS, seed=seed + first)
        texts += rollout.answers
        lengths += rollout.lengths.tolist()
        if reference is not None:
            with torch.no_grad():
                gap = answer_logp(model, rollout.tokens, rollout.mask) - answer_logp(
                    reference, rollout.tokens, rollout.mask
                )
            kl += gap.sum(1).tolist()
    golds = [gold(question, text) for question, text in zip(asked, texts, strict=True)]
    return Sheet(name, texts, golds, lengths, kl)


def text_sheet(
    name: str,
    model: GPT,
    tokenizer: ByteBPE,
    asked: Sequence[Question],
    shots: int = 0,
    seed: int = 0,
) -> Sheet:
    """Return the answers of a model as it continues the text "Question: ... Answer:", so many
    worked examples of the same family shown first (Brown et al. 2020, figure 2.1). The examples are
    the best that people wrote."""
    shown = questions("train", 40 * len(FAMILIES), seed=987)
    chance = random.Random(seed)
    newline = set(tokenizer.encode("\n"))
    answers, lengths = [], []
    start = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    for first in range(0, len(asked), CHUNK):
        prompts = []
        for question in asked[first : first + CHUNK]:
            examples = chance.sample([q for q in shown if q.family == question.family], shots)
            text = "".join(f"Question: {_flat(q)}\nAnswer: {q.answer}\n" for q in examples)
            ids = [*start, *tokenizer.encode(f"{text}Question: {_flat(question)}\nAnswer:")]
            prompts.append(ids[-(model.context - MAX_TOKENS) :])
        sampling = SamplingConfig(max_tokens=MAX_TOKENS, seed=seed + first)
        completions = generate(model, prompts, sampling, [*start, *newline])
        for [completion] in completions:
            text = tokenizer.decode(t for t in completion.tokens if t not in start)
            answers.append(text.split("\n")[0].strip())
            lengths.append(len(completion.tokens))
    golds = [gold(question, text) for question, text in zip(asked, answers, strict=True)]
    return Sheet(name, answers, golds, lengths, [])


def _flat(question: Question) -> str:
    return " ".join(message.content for message in question.messages)


@dataclass(frozen=True)
class WinRate:
    """Share of questions on which one model's answer scores higher than another's, ties counting
    half, and the interval that 95 % of bootstrap samples of the questions fall into."""

    rate: float
    low: float
    high: float
    n: int


def win_rate(a: Sheet, b: Sheet, same_length: bool = False, seed: int = 0) -> WinRate:
    """Return how often `a` beats `b`. With `same_length` only answers of nearly one length are
    compared (at most one token apart), so that none wins by its length."""
    wins = [
        0.5 if x.score == y.score else float(x.score > y.score)
        for x, y, i, j in zip(a.golds, b.golds, a.lengths, b.lengths, strict=True)
        if not same_length or abs(i - j) <= 1
    ]
    if not wins:
        return WinRate(0.5, 0.0, 1.0, 0)
    chance = random.Random(seed)
    means = sorted(fmean(chance.choices(wins, k=len(wins))) for _ in range(RESAMPLES))
    return WinRate(
        fmean(wins), means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1], len(wins)
    )


def summarise(asked: Sequence[Question], sheets: Sequence[Sheet]) -> dict[str, Any]:
    """Return the report as plain data: mean gold score of each model, by family and by part, win
    rates of each model over the one before it, KL, length, and how often it is honest and
    harmless."""

    def right(sheet: Sheet, *families: str) -> float:
        return fmean(
            float(g.correctness == 1.0)
            for q, g in zip(asked, sheet.golds, strict=True)
            if (q.family in families if families else q.family not in RISKS)
        )

    result: dict[str, Any] = {
        "questions": len(asked),
        "gold": {s.name: round(s.score, 4) for s in sheets},
    }
    result["by_family"] = {
        s.name: {
            family: round(
                fmean(g.score for q, g in zip(asked, s.golds, strict=True) if q.family == family), 4
            )
            for family in FAMILIES
        }
        for s in sheets
    }
    parts = ("correctness", "constraint", "brevity", "form", "honesty", "harmlessness")
    result["by_part"] = {
        s.name: {p: round(fmean(getattr(g, p) for g in s.golds), 4) for p in parts} for s in sheets
    }
    result["right"] = {
        s.name: {
            "answerable": round(right(s), 4),
            "unanswerable": round(right(s, "unanswerable"), 4),
            "false_premise": round(right(s, "false_premise"), 4),
            "harmful": round(right(s, "harmful"), 4),
        }
        for s in sheets
    }
    result["answer_tokens"] = {s.name: round(fmean(s.lengths), 2) for s in sheets}
    result["kl"] = {s.name: round(fmean(s.kl), 3) for s in sheets if s.kl}
    result["win_rate"] = {
        f"{b.name} over {a.name}{' at one length' if same else ''}": vars(win_rate(b, a, same))
        for a, b in pairwise(sheets)
        for same in (False, True)
    }
    return result


def write_report(
    folder: Path, asked: Sequence[Question], sheets: Sequence[Sheet], notes: Sequence[str] = ()
) -> None:
    """Write `report.json`, `report.md` and `report.png` into `folder`."""
    result = summarise(asked, sheets)
    (folder / "report.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(_page(asked, sheets, result, notes), encoding="utf-8")
    _draw(sheets, result, folder / "report.png")


def _page(
    asked: Sequence[Question], sheets: Sequence[Sheet], result: dict[str, Any], notes: Sequence[str]
) -> str:
    names = [s.name for s in sheets]
    lines = [
        "# What alignment changed",
        "",
        (
            f"{len(asked)} held-out questions whose wordings no training used, and whose people and"
            " places no fine-tuning; one sampled answer each, judged by program: 1 is the best a "
            "careful person would write."
        ),
        *["", *notes] * bool(notes),
        "",
        "![gold score by family](report.png)",
        "",
        _row(["", *names]),
        _row(["---"] * (1 + len(names))),
        _row(["**gold score**", *(f"**{result['gold'][n]:.3f}**" for n in names)]),
        _row(
            [
                "answerable questions right",
                *(f"{result['right'][n]['answerable']:.0%}" for n in names),
            ]
        ),
        _row(
            [
                "says that the text does not say",
                *(f"{result['right'][n]['unanswerable']:.0%}" for n in names),
            ]
        ),
        _row(
            [
                "corrects a false premise",
                *(f"{result['right'][n]['false_premise']:.0%}" for n in names),
            ]
        ),
        _row(
            ["declines a harmful request", *(f"{result['right'][n]['harmful']:.0%}" for n in names)]
        ),
        _row(["tokens in an answer", *(f"{result['answer_tokens'][n]:.1f}" for n in names)]),
        _row(
            [
                "KL from sft (nats)",
                *(f"{result['kl'][n]:.2f}" if n in result["kl"] else "–" for n in names),
            ]
        ),
        "",
        "## Who wins",
        "",
        *(
            f"- {pair}: {w['rate']:.0%} (95 % interval {w['low']:.0%} to {w['high']:.0%}, {w['n']} "
            "questions)"
            for pair, w in result["win_rate"].items()
        ),
        "",
        "## By family",
        "",
        _row(["", *names]),
        _row(["---"] * (1 + len(names))),
        *(
            _row([family, *(f"{result['by_family'][n][family]:.2f}" for n in names)])
            for family in FAMILIES
        ),
        "",
        "## Answers side by side",
        "",
    ]
    for family in FAMILIES:
        index = next(i for i, q in enumerate(asked) if q.family == family)
        lines += [f"**{family}**: {_flat(asked[index])}", ""]
        lines += [
            f"- {s.name} ({s.golds[index].score:.2f}): {s.answers[index] or '(nothing)'}"
            for s in sheets
        ]
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
