"""The tables of docs/concepts/world.md are what the world says; run this file to write them
anew."""

import random
import re
from itertools import islice
from pathlib import Path

from seq2chat.text.world import (
    FAMILIES,
    WEIGHTS,
    agreement,
    ceiling,
    documents,
    gold,
    labelers,
    pairs,
    questions,
)

PAGE = Path(__file__).parents[3] / "docs" / "concepts" / "world.md"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def documents_section() -> str:
    return "\n\n".join(f"```text\n{text}\n```" for text in islice(documents(start=2), 6))


def families_section() -> str:
    rows = []
    for seed, family in enumerate(FAMILIES):
        question = questions("train", 1, seed=seed, families=[family])[0]
        turns = [message.content for message in question.messages if message.role != "system"]
        grade = gold(question, question.wrong[0])
        parts = " ".join(f"{getattr(grade, part):.2g}" for part in WEIGHTS)
        assert gold(question, question.answer).score == 1.0
        rows.append(
            [
                family,
                " / ".join(turns),
                question.answer,
                question.wrong[0],
                parts,
                f"{grade.score:.2f}",
            ]
        )
    return table(
        ["family", "the user's words", "demonstration", "a wrong answer", "its parts", "its score"],
        rows,
    )


def weights_section() -> str:
    return table([*WEIGHTS], [[f"{weight:.2f}" for weight in WEIGHTS.values()]])


def labelers_section() -> str:
    everyone = labelers()
    training = [labeler for labeler in everyone if not labeler.held_out]
    compared = pairs(questions("train", 42, seed=6), random.Random(6))
    rows = []
    among = []
    for labeler in everyone:
        found = [agreement(labeler, other, compared) for other in training if other is not labeler]
        among += [] if labeler.held_out else found
        weights = [f"{labeler.weights[part]:.3g}" for part in WEIGHTS]
        name = f"{labeler.name} (held out)" if labeler.held_out else labeler.name
        rows.append([name, *weights, f"{100 * sum(found) / len(found):.0f} %"])
    return (
        table(["labeler", *WEIGHTS, "agrees with the training labelers"], rows)
        + f"\n\nTwo different training labelers agree on {100 * sum(among) / len(among):.0f} % of"
        " the pairs. "
        + f"No reward model can order more than {100 * ceiling(training, compared):.0f} % as"
        " they do."
    )


SECTIONS = {
    "documents": documents_section,
    "families": families_section,
    "weights": weights_section,
    "labelers": labelers_section,
}


def written(page: str) -> str:
    """The page with each section between its marks made anew."""
    for name, section in SECTIONS.items():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        assert len(marks.findall(page)) == 1, name
        text = section()
        page = marks.sub(lambda match, text=text: f"{match[1]}\n{text}\n{match[2]}", page)
    return page


def test_the_page_shows_what_the_world_says():
    page = PAGE.read_text()
    assert written(page) == page, "write it again: python tests/text/world/test_world_page.py"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
