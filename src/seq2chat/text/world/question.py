"""A question, with all that grading an answer needs, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from seq2chat.text.chat import Message

CHECKS = ("value", "list", "words", "polite", "admit", "correct", "decline")


class Draft(NamedTuple):
    """What a family writes: the user's words and all of a question but its split.

    `check` names the rule that grades it, `key` is what a right answer says, `wrong` holds answers
    that look right and are not, `loose` one that has the content but not the form asked for.
    `names` are words an answer may use beside those of the demonstration. `earlier` are the turns
    before the user's words.
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

    `answer` is the demonstration: what a careful labeler would write. The fields after it are those
    of `Draft`.
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
