"""Data for alignment: demonstrations, ranked answers and prompts, from files or the built-in world.

`formats` lists the formats of a row. A row with more than needed is used, too: for example, a
demonstration also contains a prompt.
"""

import json
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from seq2chat.config import UserError, check
from seq2chat.log import Log, ignore
from seq2chat.text import formats
from seq2chat.text.chat import ChatTokens, Message, chat_tokens
from seq2chat.text.fields import Fields
from seq2chat.text.files import check_format
from seq2chat.text.named import NAMED, find_corpus
from seq2chat.text.rows import ROW_SUFFIXES, Row, is_rows, read_rows
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.world import (
    FAMILIES,
    READING,
    RISKS,
    Labeler,
    Question,
    candidates,
    demonstration,
    labelers,
    questions,
)

Prompt = tuple[Message, ...]
Columns = Collection[str] | None
T = TypeVar("T")


WORLD = "world"
TRAINING = 10_000
VALIDATION = 500
"""Default numbers of examples of the world for training and validation."""


@dataclass(frozen=True)
class Query:
    """A prompt to answer, and the columns of its row that a reward function reads."""

    prompt: Prompt
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Demonstration:
    """A conversation that ends with an answer.

    The assistant's turns are trained on, except those with a number in `unlearned`.
    """

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
    """Several answers to one prompt. `ranks[i]` is the rank of answer i, where 0 is the best and
    ties have equal ranks."""

    prompt: Prompt
    answers: tuple[str, ...]
    ranks: tuple[int, ...]

    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs (better, worse) of all answers that are not tied."""
        ranked = list(zip(self.answers, self.ranks, strict=True))
        return [(a, b) for a, i in ranked for b, j in ranked if i < j]


def read_demonstrations(
    source: str,
    n: int,
    seed: int,
    log: Log = ignore,
    strict: bool = True,
    columns: Columns = frozenset(),
) -> list[Demonstration]:
    """Return the demonstrations in a file, in `world`, or in `gsm8k`.

    `n` is the number of examples, which are spread over a file, and 0 returns all. `columns`
    names the fields that are kept for a reward function, where None keeps all other fields. `log`
    is called with one line about the number of examples, unused keys, and the lines left out with
    the reason. Raises UserError at the first invalid row if `strict`, and otherwise if no row is
    valid. A file that can't be read to its end always raises UserError.
    """
    if source == WORLD:
        rng = random.Random(f"demonstrations/{seed}")
        return [
            Demonstration((*q.messages, Message("assistant", demonstration(q, rng))))
            for q in world_questions(n or TRAINING, seed)
        ]

    def parse(fields: Fields) -> Demonstration:
        return _demonstration(fields, columns)

    return _read(source, n, seed, parse=parse, log=log, strict=strict)


def nth_demonstration(source: str, number: int) -> Demonstration:
    """Return the demonstration in row `number` of a file, counted from 1, without reading further.

    Raises UserError if the file has fewer rows, or if that row is invalid.
    """
    for row in islice(_rows(source), number - 1, number):
        return _demonstration(Fields(row), frozenset())
    raise UserError(f"{source} has fewer than {number:,} rows.")


def _demonstration(fields: Fields, columns: Columns) -> Demonstration:
    turns = formats.demonstration(fields)
    messages = tuple(turn.message for turn in turns)
    unlearned = frozenset(number for number, turn in enumerate(turns) if not turn.learned)
    return Demonstration(messages, unlearned, fields.columns(columns))


def read_comparisons(
    source: str, n: int, seed: int, log: Log = ignore, strict: bool = True
) -> list[Comparison]:
    """Return the comparisons in a file or in `hh-rlhf`, or candidates of the world ranked by its
    labelers.

    `log` and invalid rows as in `read_demonstrations`.
    """
    if source == WORLD:
        return world_comparisons(world_questions(n or TRAINING, seed), seed)

    def parse(fields: Fields) -> Comparison:
        prompt, answers, ranks = formats.comparison(fields)
        return Comparison(tuple(prompt), tuple(answers), tuple(ranks))

    return _read(source, n, seed, parse=parse, log=log, strict=strict)


def read_queries(
    source: str,
    n: int,
    seed: int,
    log: Log = ignore,
    strict: bool = True,
    columns: Columns = frozenset(),
) -> list[Query]:
    """Return the prompts in a file or of the world, also from demonstrations and comparisons.

    Arguments as in `read_demonstrations`.
    """
    if source == WORLD:
        return [Query(q.messages) for q in world_questions(n or TRAINING, seed)]

    def parse(fields: Fields) -> Query:
        return Query(tuple(formats.prompt(fields)), fields.columns(columns))

    return _read(source, n, seed, parse=parse, log=log, strict=strict)


def demonstration_tokens(
    tokenizer: TextTokenizer, demonstration: Demonstration, reply: bool = False
) -> ChatTokens:
    """Return the tokens as in `chat_tokens`, without training on the turns in `unlearned`."""
    tokens = chat_tokens(tokenizer, demonstration.messages, reply)
    learned = zip(tokens.trained, tokens.messages, strict=True)
    trained = [is_answer and n not in demonstration.unlearned for is_answer, n in learned]
    return replace(tokens, trained=trained)


def world_questions(n: int, seed: int) -> list[Question]:
    """Return `n` training questions of the world.

    Risky questions are twice as frequent as others, because errors on them matter more. So are
    questions about a passage, three times, so that admitting ignorance does not become a habit.
    """
    return questions("train", n, seed, (*FAMILIES, *RISKS, *READING, *READING))


def world_comparisons(
    questions: Sequence[Question], seed: int, answers: Sequence[Sequence[str]] = ()
) -> list[Comparison]:
    """Return a ranking by one of the world's labelers for each question.

    The labeler ranks the demonstration, the sampled `answers` to the question, and candidates made
    from the question.
    """
    rng = random.Random(f"labelers/{seed}")
    panel = [labeler for labeler in labelers() if not labeler.held_out]
    comparisons = []
    for index, question in enumerate(questions):
        sampled = [text.strip() for text in answers[index]] if answers else []
        # With the right answer next to the policy's own, a reward model learns correctness and not
        # only manners.
        kept = list(dict.fromkeys([question.answer, *sampled[: MAX_ANSWERS - 2]]))
        # The right answer to another question, so that a reward model has to read the question.
        foreign = rng.choice(questions).answer
        made = dict.fromkeys([foreign, *(text.strip() for text in candidates(question, rng))])
        made = [text for text in made if text and text not in kept]
        ranked = kept + rng.sample(made, min(len(made), MAX_ANSWERS - len(kept)))
        comparisons.append(rank(question, ranked, rng.choice(panel), rng))
    return comparisons


MAX_ANSWERS = 6
"""Number of answers that a labeler of the world ranks at once. InstructGPT's ranked 4 to 9."""


def rank(
    question: Question, answers: Sequence[str], labeler: Labeler, rng: random.Random
) -> Comparison:
    """Return the ranking of the answers by `labeler`."""
    ranks = labeler.rank(question, list(answers), rng)
    return Comparison(question.messages, tuple(answers), tuple(ranks))


def write_comparisons(file: Path, comparisons: Sequence[Comparison]) -> None:
    """Write a file for `read_comparisons`, which appears complete or not at all."""
    lines = []
    for comparison in comparisons:
        row = {
            "prompt": [{"role": m.role, "content": m.content} for m in comparison.prompt],
            "answers": list(comparison.answers),
            "ranks": list(comparison.ranks),
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(file)


def split(examples: Sequence[T], fraction: float) -> tuple[list[T], list[T]]:
    """Return training examples, and a `fraction` of held-out examples and at least one, spread
    evenly so that each topic of a sorted file is on both sides.

    Raises UserError for fewer than two.
    """
    n = len(examples)
    check(n > 1, f"There are {n} examples; give at least two, to train on and to hold out.")
    n_held_out = min(n - 1, max(1, round(n * fraction)))
    places = {(2 * i + 1) * n // (2 * n_held_out) for i in range(n_held_out)}
    sides: tuple[list[T], list[T]] = ([], [])
    for place, example in enumerate(examples):
        sides[place in places].append(example)
    return sides


# Reading files


def _read(
    source: str, n: int, seed: int, parse: Callable[[Fields], T], log: Log, strict: bool
) -> list[T]:
    """Return the examples of a file, or `n` of them spread over it if `n` is not 0."""
    examples: list[T] = []
    invalid: list[tuple[int, UserError]] = []
    unused: dict[str, None] = {}
    for row in _rows(source):
        try:
            fields = Fields(row)
            examples.append(parse(fields))
        except UserError as error:
            if strict:
                raise
            invalid.append((row.number, error))
            continue
        unused |= dict.fromkeys(fields.unused())
    if invalid and not examples:
        raise invalid[0][1]
    check(bool(examples), f"{source} holds no example.")
    log(_summary(source, len(examples), list(unused), invalid))
    if 0 < n < len(examples):
        log(f"{n:,} of them are used, spread over the file, because of align.examples.")
        indices = sorted(random.Random(f"examples/{seed}").sample(range(len(examples)), n))
        examples = [examples[index] for index in indices]
    return examples


def _summary(
    source: str, n: int, unused: Sequence[str], invalid: Sequence[tuple[int, UserError]]
) -> str:
    """Return one line with the number of examples, the unused keys, and the rows left out."""
    line = f"{n:,} examples in {source}."
    if unused:
        line += f" Keys not used: {', '.join(unused)}."
    if invalid:
        numbers = [str(number) for number, _ in invalid[:5]]
        if len(invalid) > 5:
            numbers.append("...")
        line += (
            f" {len(invalid):,} of {len(invalid) + n:,} rows are left out ({', '.join(numbers)}). "
            f"{invalid[0][1]}"
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
        f"{source} is not a file of rows ({', '.join(ROW_SUFFIXES)}); write one JSON object per "
        'line in a .jsonl file: {"messages": [{"role": "user", "content": "..."}, ...]}.',
    )
    return read_rows(file)
