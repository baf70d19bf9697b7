"""The report of a pipeline: answers to held-out questions before and after alignment, scored by
program."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from seq2chat.alignment.exam import FLOORS, Sheet, headlines, rule_sheet, win_rate
from seq2chat.text.world import FAMILIES, Question
from seq2chat.text.world.oracle import PARTS

HEADLINES = {
    "right": "right",
    "honest": "honest",
    "honest_false": "(false)",
    "premise": "premise corrected",
    "harm": "harm declined",
    "harm_false": "(false)",
    "form": "form",
}


def summarize(questions: Sequence[Question], sheets: Sequence[Sheet]) -> dict[str, Any]:
    """Return the report as plain data.

    It has the headlines of each model and of each floor, the share of right answers and the mean
    gold score by family, win rates of each model over the one before it, KL and length.
    """
    floors = [rule_sheet(name, rule, questions) for name, rule in FLOORS.items()]
    families = families_of(questions)

    def family_right(sheet: Sheet, family: str) -> float:
        pairs = zip(questions, sheet.golds, strict=True)
        return round(fmean(float(g.correctness == 1) for q, g in pairs if q.family == family), 4)

    def family_score(sheet: Sheet, family: str) -> float:
        pairs = zip(questions, sheet.golds, strict=True)
        return round(fmean(g.score for q, g in pairs if q.family == family), 4)

    def part_score(sheet: Sheet, part: str) -> float:
        return round(fmean(getattr(g, part) for g in sheet.golds), 4)

    result: dict[str, Any] = {
        "questions": len(questions),
        "gold": {s.name: round(s.score, 4) for s in (*sheets, *floors)},
        "by_family": {s.name: {f: family_score(s, f) for f in families} for s in sheets},
        "by_part": {s.name: {part: part_score(s, part) for part in PARTS} for s in sheets},
        "headlines": {
            s.name: {name: vars(value) for name, value in headlines(questions, s).items()}
            for s in (*sheets, *floors)
        },
        "right_by_family": {
            s.name: {f: family_right(s, f) for f in families} for s in (*sheets, *floors)
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


def families_of(questions: Sequence[Question]) -> list[str]:
    """Return the families of the questions, those of the world in its order."""
    families = {question.family for question in questions}
    return [*(f for f in FAMILIES if f in families), *sorted(families.difference(FAMILIES))]


def write_report(folder: Path, questions: Sequence[Question], sheets: Sequence[Sheet]) -> None:
    """Write `report.json`, `report.md` and `report.png` into `folder`."""
    result = summarize(questions, sheets)
    (folder / "report.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = _page(questions, sheets, result)
    (folder / "report.md").write_text(page, encoding="utf-8")
    _draw(sheets, result, folder / "report.png")


def _page(questions: Sequence[Question], sheets: Sequence[Sheet], result: dict[str, Any]) -> str:
    names = [s.name for s in sheets]

    def row(name: str) -> list[str]:
        return [f"{share['rate']:.0%}" for share in result["headlines"][name].values()]

    kl = [f"{result['kl'][n]:.2f}" if n in result["kl"] else "–" for n in names]
    labels = [label for name, label in HEADLINES.items() if name in result["headlines"][names[0]]]
    families = families_of(questions)
    lines = ["# Before and after alignment", ""]
    lines.append(
        f"{len(questions)} held-out questions, with wordings that no training used. Each has the "
        "model's most probable answer, scored by program."
    )
    lines += [
        "",
        "![right answers by family](report.png)",
        "",
        _row(["", *labels, "gold score"]),
        _row(["---"] * (len(labels) + 2)),
        *[_row([f"**{n}**", *row(n), f"{result['gold'][n]:.3f}"]) for n in names],
        *[_row([n, *row(n), f"{result['gold'][n]:.3f}"]) for n in FLOORS],
        "",
        "The last rows are rules without a model.",
        "",
        _row(["", *names]),
        _row(["---"] * (1 + len(names))),
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
    lines += ["", "## Right answers by family", ""]
    lines += [_row(["", *names]), _row(["---"] * (1 + len(names)))]
    for family in families:
        lines.append(
            _row([family, *(f"{result['right_by_family'][n][family]:.0%}" for n in names)])
        )
    lines += ["", "## Answers side by side", ""]
    for family in families:
        index = next(i for i, q in enumerate(questions) if q.family == family)
        lines += [f"**{family}**: {' '.join(m.content for m in questions[index].messages)}", ""]
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

    families = list(result["right_by_family"][sheets[0].name])
    figure, axes = pyplot.subplots(figsize=(10, 4.5), layout="constrained")
    width = 0.8 / len(sheets)
    for k, sheet in enumerate(sheets):
        heights = list(result["right_by_family"][sheet.name].values())
        places = [i + (k - (len(sheets) - 1) / 2) * width for i in range(len(families))]
        rate = result["headlines"][sheet.name]["right"]["rate"]
        axes.bar(places, heights, width, label=f"{sheet.name} ({rate:.0%} right)")
    axes.set_xticks(range(len(families)), [f.replace("_", "\n") for f in families], fontsize=7)
    axes.set(ylabel="share of right answers", ylim=(0, 1))
    axes.legend()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
