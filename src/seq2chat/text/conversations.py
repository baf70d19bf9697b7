"""What alignment learns from: demonstrations, ranked answers and prompts, from files of rows or the
built-in world.

`formats` lists the forms of a row. What holds more than is needed is used for what it holds: a
demonstration is a prompt as well.
"""

import json
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from seq2chat.config import UserError, check
from seq2chat.text import formats
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import ChatTokens, Message, chat_tokens
from seq2chat.text.fields import Fields
from seq2chat.text.files import check_format
from seq2chat.text.named import NAMED, find_corpus
from seq2chat.text.rows import ROW_SUFFIXES, Row, is_rows, read_rows
from seq2chat.text.world import (
    FAMILIES,
    RISKS,
    Labeler,
    Question,
    candidates,
    demonstration,
    labelers,
    questions,
)

Prompt = tuple[Message, ...]
Say = Callable[[str], object]
Columns = Collection[str] | None
T = TypeVar("T")


def silent(line: str) -> None:
    """Print nothing: the default of `say`."""


WORLD = "world"
TRAINING, VALIDATION = 10_000, 500
"""Examples of the world that are learned from, unless another number is asked for, and held out."""


@dataclass(frozen=True)
class Query:
    """A prompt to answer, and the other columns of its row that a reward function takes."""

    prompt: Prompt
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Demonstration:
    """A conversation that ends with an answer. The assistant's turns are learned, but for those in
    `unlearned`."""

    messages: tuple[Message, ...]
    unlearned: frozenset[int] = frozenset()
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def prompt(self) -> Prompt:
        """The messages before the last answer."""
        return self.messages[:-1]

    @property
    def query(self) -> Query:
        return Query(self.prompt, self.columns)


@dataclass(frozen=True)
class Comparison:
    """Several answers to one prompt; `ranks[i]` is the place of answer i, 0 the best, equal where
    nobody preferred."""

    prompt: Prompt
    answers: tuple[str, ...]
    ranks: tuple[int, ...]

    def pairs(self) -> list[tuple[str, str]]:
        """Return (better, worse) for every two answers that are not tied."""
        ranked = list(zip(self.answers, self.ranks, strict=True))
        return [(a, b) for a, i in ranked for b, j in ranked if i < j]


def read_demonstrations(
    source: str,
    n: int,
    seed: int,
    say: Say = silent,
    strict: bool = True,
    columns: Columns = frozenset(),
) -> list[Demonstration]:
    """Return the demonstrations in a file, of `world`, or of `gsm8k`.

    `n` of the world's; of a file `n` spread over it, and all where that is 0. `columns` names the
    fields that are kept beside each for a reward function; None keeps all that are not part of it.
    `say` gets one line: how many examples there are, which keys were not used, and which lines were
    left out and why. Raises UserError at the first bad row if `strict`, and otherwise if no row is
    good; always for a file that cannot be read to its end.
    """
    if source == WORLD:
        asked, chance = (
            world_questions(n or TRAINING, seed),
            random.Random(f"demonstrations/{seed}"),
        )
        return [
            Demonstration((*q.messages, Message("assistant", demonstration(q, chance))))
            for q in asked
        ]

    def parse(fields: Fields) -> Demonstration:
        turns = formats.demonstration(fields)
        unlearned = frozenset(number for number, turn in enumerate(turns) if not turn.learned)
        return Demonstration(
            tuple(turn.message for turn in turns), unlearned, fields.columns(columns)
        )

    return _read(source, n, seed, parse, say, strict)


def read_comparisons(
    source: str, n: int, seed: int, say: Say = silent, strict: bool = True
) -> list[Comparison]:
    """Return ranked answers: a file's, `hh-rlhf`'s, or the world's own candidates ranked by its
    labelers.

    `say` and bad rows as in `read_demonstrations`.
    """
    if source == WORLD:
        return world_comparisons(world_questions(n or TRAINING, seed), seed)

    def parse(fields: Fields) -> Comparison:
        prompt, answers, ranks = formats.comparison(fields)
        return Comparison(tuple(prompt), tuple(answers), tuple(ranks))

    return _read(source, n, seed, parse, say, strict)


def read_queries(
    source: str,
    n: int,
    seed: int,
    say: Say = silent,
    strict: bool = True,
    columns: Columns = frozenset(),
) -> list[Query]:
    """Return prompts: a file's, or the world's. Demonstrations and comparisons in a file lend
    theirs.

    The arguments are those of `read_demonstrations`.
    """
    if source == WORLD:
        return [Query(q.messages) for q in world_questions(n or TRAINING, seed)]
    return _read(
        source,
        n,
        seed,
        lambda fields: Query(tuple(formats.prompt(fields)), fields.columns(columns)),
        say,
        strict,
    )


def demonstration_tokens(
    tokenizer: ByteBPE, demonstration: Demonstration, reply: bool = False
) -> ChatTokens:
    """Return the tokens as `chat_tokens` does; the turns in `unlearned` are not trained on."""
    tokens = chat_tokens(tokenizer, demonstration.messages, reply)
    if not demonstration.unlearned:
        return tokens
    answers = [
        number
        for number, message in enumerate(demonstration.messages)
        if message.role == "assistant"
    ]
    trained: list[bool] = []
    turn = -1
    for is_answer, run in groupby(tokens.trained):
        turn += is_answer
        trained += [is_answer and answers[turn] not in demonstration.unlearned for _ in run]
    return replace(tokens, trained=trained)


def world_questions(n: int, seed: int) -> list[Question]:
    """Return `n` questions of the world to learn from; the risky ones are asked twice as often as
    the others, because more hangs on them."""
    return questions("train", n, seed, (*FAMILIES, *RISKS))


def world_comparisons(
    asked: Sequence[Question], seed: int, answers: Sequence[Sequence[str]] = ()
) -> list[Comparison]:
    """Return for each question the demonstration, the `answers` given to it and some candidates, as
    one of the world's labelers ranks them."""
    chance, panel = (
        random.Random(f"labelers/{seed}"),
        [labeler for labeler in labelers() if not labeler.held_out],
    )
    compared = []
    for index, question in enumerate(asked):
        # With the right answer beside the policy's own a judge learns what is right, and not
        # manners alone.
        sampled = [text.strip() for text in answers[index]][: MOST_ANSWERS - 2] if answers else []
        given = list(dict.fromkeys([question.answer, *sampled]))
        # Right for another question: a judge must read the one it is given.
        beside = chance.choice(asked).answer
        made = dict.fromkeys([beside, *(text.strip() for text in candidates(question, chance))])
        made = [text for text in made if text and text not in given]
        chosen = given + chance.sample(made, min(len(made), MOST_ANSWERS - len(given)))
        compared.append(rank(question, chosen, chance.choice(panel), chance))
    return compared


MOST_ANSWERS = 6
"""Answers that a labeler of the world ranks at once; InstructGPT's ranked 4 to 9."""


def rank(
    question: Question, answers: Sequence[str], labeler: Labeler, chance: random.Random
) -> Comparison:
    """Return the answers as `labeler` ranks them."""
    return Comparison(
        question.messages, tuple(answers), tuple(labeler.rank(question, list(answers), chance))
    )


def write_comparisons(file: Path, comparisons: Sequence[Comparison]) -> None:
    """Write them as a file that `read_comparisons` reads, whole or not at all."""
    rows = [
        {
            "prompt": [{"role": m.role, "content": m.content} for m in c.prompt],
            "answers": list(c.answers),
            "ranks": list(c.ranks),
        }
        for c in comparisons
    ]
    temporary = file.with_suffix(".tmp")
    temporary.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    temporary.replace(file)


def split(examples: Sequence[T], fraction: float) -> tuple[list[T], list[T]]:
    """Return examples to learn from, and the last `fraction` of them, one at least, held out.

    Raises UserError for fewer than two.
    """
    check(
        len(examples) > 1,
        f"There are {len(examples)} examples; give at least two: one to learn from, one held out.",
    )
    held_out = min(len(examples) - 1, max(1, round(len(examples) * fraction)))
    return list(examples[:-held_out]), list(examples[-held_out:])


# Reading files


def _read(
    source: str, n: int, seed: int, parse: Callable[[Fields], T], say: Say, strict: bool
) -> list[T]:
    """Return the examples of a file, `n` spread over it if that is not 0."""
    examples: list[T] = []
    wrong: list[tuple[int, UserError]] = []
    unused: dict[str, None] = {}
    for row in _rows(source):
        try:
            fields = Fields(row)
            examples.append(parse(fields))
        except UserError as error:
            if strict:
                raise
            wrong.append((row.number, error))
            continue
        unused |= dict.fromkeys(fields.unused())
    if wrong and not examples:
        raise wrong[0][1]
    check(bool(examples), f"{source} holds no example.")
    say(_summary(source, len(examples), list(unused), wrong))
    if 0 < n < len(examples):
        say(f"{n:,} of them are taken, spread over the file, as align.examples says.")
        taken = sorted(random.Random(f"examples/{seed}").sample(range(len(examples)), n))
        examples = [examples[index] for index in taken]
    return examples


def _summary(
    source: str, n: int, unused: Sequence[str], wrong: Sequence[tuple[int, UserError]]
) -> str:
    """Return one line: how many examples were read, which keys were not used, and which lines were
    left out."""
    line = f"{n:,} examples in {source}."
    if unused:
        line += f" Keys not used: {', '.join(unused)}."
    if wrong:
        numbers = ", ".join(str(number) for number, _ in wrong[:5]) + (
            ", ..." if len(wrong) > 5 else ""
        )
        line += (
            f" {len(wrong):,} of {len(wrong) + n:,} rows are left out ({numbers}). {wrong[0][1]}"
        )
    return line


def _rows(source: str) -> Iterator[Row]:
    """Return the rows of a file or of a named corpus of rows."""
    file = find_corpus(source) if source in NAMED else Path(source)
    check(
        file.exists() and not file.is_dir(),
        f"There is no file {source}; give a file of conversations such as talks.jsonl, or {WORLD}.",
    )
    check_format(file)
    check(
        is_rows(file),
        f"{source} is no file of rows ({', '.join(ROW_SUFFIXES)}); write one JSON object per line"
        ' in a .jsonl file: {"messages": [{"role": "user", "content": "..."},'
        " ...]}.",
    )
    return read_rows(file)
