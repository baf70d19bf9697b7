"""A question, with everything that grading an answer needs, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from seq2chat.text.chat import Message


class Draft(NamedTuple):
    """The output of a family: the user's words, and the fields of a question except its split.

    `check` names the rule of the oracle, and `key` holds the words of a right answer. `wrong` holds
    plausible wrong answers, and `loose` an answer with the right content in the wrong form. `names`
    are words that an answer may use, besides the words of the demonstration. `earlier` holds the
    turns before the user's words.
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
    """A conversation that ends with the user's turn, and the data for grading an answer.

    `answer` is the demonstration, the answer of a careful labeler. The fields after it are as in
    `Draft`.
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
