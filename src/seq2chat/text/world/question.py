"""A question, with all that grading an answer needs, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from seq2chat.config import check
from seq2chat.text.chat import Message, read_messages

CHECKS = ("value", "list", "words", "polite", "admit", "correct", "decline")


class Draft(NamedTuple):
    """What a family writes: the user's words and all of a question but its split.

    `check` names the rule that grades it, `key` is what a right answer says, `wrong` holds answers that look right and
    are not, `loose` one that has the content but not the form asked for. `names` are words an answer may use beside
    those of the demonstration. `earlier` are the turns before the user's words.
    """

    text: str
    answer: str
    check: str
    key: tuple[str, ...]
    wrong: tuple[str, ...]
    template: str
    loose: str = ""
    names: tuple[str, ...] = ()
    n_words: int = 0
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """A conversation that ends with the user, and what the oracle knows about its answer.

    `answer` is the demonstration: what a careful labeler would write. The fields after it are those of `Draft`.
    """

    family: str
    split: str
    messages: tuple[Message, ...]
    answer: str
    check: str
    key: tuple[str, ...]
    wrong: tuple[str, ...]
    template: str
    loose: str = ""
    names: tuple[str, ...] = ()
    n_words: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the question as what JSON can hold; `from_json` is its inverse."""
        return asdict(self) | {
            "messages": [asdict(message) for message in self.messages],
            "key": list(self.key),
            "wrong": list(self.wrong),
            "names": list(self.names),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Question:
        """Return the question in a row that `to_json` made. Raises UserError for others; more keys are ignored."""
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in row]
        check(not missing, f"A question lacks {', '.join(missing)}; write it with Question.to_json.")
        values: dict[str, Any] = {name: row[name] for name in names}
        for name, value in values.items():
            expected = list if name in ("messages", "key", "wrong", "names") else int if name == "n_words" else str
            check(type(value) is expected, f"The question's {name} is not a {expected.__name__}.")
        check(
            values["check"] in CHECKS,
            f"The question's check is {values['check']!r}; write one of: {', '.join(CHECKS)}.",
        )
        for name in ("key", "wrong", "names"):
            check(all(isinstance(item, str) for item in values[name]), f"The question's {name} holds more than text.")
            values[name] = tuple(values[name])
        values["messages"] = tuple(read_messages(values["messages"], "The question"))
        return cls(**values)
