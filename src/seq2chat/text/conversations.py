"""What alignment learns from: demonstrations, ranked answers and prompts, from JSONL files or the built-in world.

A line of a file is one of

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}     a demonstration
    {"prompt": "...", "answer": "..."}                                                              the same, one turn
    {"prompt": "...", "chosen": "...", "rejected": "..."}                                           a comparison
    {"prompt": "...", "answers": ["best", "worse", "worst"], "ranks": [0, 1, 1]}                    K ranked answers
    {"chosen": "\\n\\nHuman: ... \\n\\nAssistant: ...", "rejected": "..."}                             hh-rlhf's form
    {"prompt": "..."}                                                                               a prompt

where a prompt may also be called question or instruction, with a context or an input that belongs to it, and an answer
response, completion or output. A prompt may be a list of messages, and `ranks` may be left out when the best answer
comes first and no two are equal. What holds more than is asked for is used for what it holds: a demonstration is a
prompt as well.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from seq2chat.config import UserError, check
from seq2chat.text.chat import Message, read_messages
from seq2chat.text.corpus import NAMED, find_corpus, numbered_lines
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
T = TypeVar("T")

WORLD = "world"
TRAINING, VALIDATION = 10_000, 500
"""Examples of the world that are learned from, unless another number is asked for, and held out."""


@dataclass(frozen=True)
class Demonstration:
    """A conversation that ends with an answer of the assistant, as it should be."""

    messages: tuple[Message, ...]

    @property
    def prompt(self) -> Prompt:
        return self.messages[:-1]


@dataclass(frozen=True)
class Comparison:
    """Several answers to one prompt; `ranks[i]` is the place of answer i, 0 the best, equal where nobody preferred."""

    prompt: Prompt
    answers: tuple[str, ...]
    ranks: tuple[int, ...]

    def pairs(self) -> list[tuple[str, str]]:
        """Return (better, worse) for every two answers that are not tied."""
        ranked = list(zip(self.answers, self.ranks, strict=True))
        return [(a, b) for a, i in ranked for b, j in ranked if i < j]


def read_demonstrations(source: str, n: int, seed: int, say: Say | None = None) -> list[Demonstration]:
    """Return the demonstrations in a file, of `world`, or of `gsm8k`.

    `n` of the world's; of a file the first `n`, and all where that is 0. Lines that are none are left out, and `say` is
    told how many and what is wrong with the first. Raises UserError naming the first bad line where there is no `say`,
    where no line is good, and for one that is no JSON.
    """
    if source == WORLD:
        asked, chance = world_questions(n or TRAINING, seed), random.Random(f"demonstrations/{seed}")
        return [Demonstration((*q.messages, Message("assistant", demonstration(q, chance)))) for q in asked]
    return _read(source, n, _demonstration, say)


def read_comparisons(source: str, n: int, seed: int, say: Say | None = None) -> list[Comparison]:
    """Return ranked answers: a file's, `hh-rlhf`'s, or the world's own candidates ranked by its labelers. Bad lines as
    in `read_demonstrations`."""
    if source == WORLD:
        return world_comparisons(world_questions(n or TRAINING, seed), seed)
    return _read(source, n, _comparison, say)


def read_prompts(source: str, n: int, seed: int, say: Say | None = None) -> list[Prompt]:
    """Return prompts: a file's, or the world's. Demonstrations and comparisons in a file lend theirs. Bad lines as in
    `read_demonstrations`."""
    if source == WORLD:
        return [q.messages for q in world_questions(n or TRAINING, seed)]
    return _read(source, n, _prompt, say)


def world_questions(n: int, seed: int) -> list[Question]:
    """Return `n` questions of the world to learn from; the risky ones are asked twice as often as the others, because
    more hangs on them."""
    return questions("train", n, seed, (*FAMILIES, *RISKS))


def world_comparisons(asked: Sequence[Question], seed: int, answers: Sequence[Sequence[str]] = ()) -> list[Comparison]:
    """Return for each question the demonstration, the `answers` given to it and some candidates, as one of the world's
    labelers ranks them."""
    chance, panel = random.Random(f"labelers/{seed}"), [labeler for labeler in labelers() if not labeler.held_out]
    compared = []
    for index, question in enumerate(asked):
        # With the right answer beside the policy's own a judge learns what is right, and not manners alone.
        sampled = [text.strip() for text in answers[index]][: MOST_ANSWERS - 2] if answers else []
        given = list(dict.fromkeys([question.answer, *sampled]))
        beside = chance.choice(asked).answer  # right for another question: a judge must read the one it is given
        made = dict.fromkeys([beside, *(text.strip() for text in candidates(question, chance))])
        made = [text for text in made if text and text not in given]
        chosen = given + chance.sample(made, min(len(made), MOST_ANSWERS - len(given)))
        compared.append(rank(question, chosen, chance.choice(panel), chance))
    return compared


MOST_ANSWERS = 6
"""Answers that a labeler of the world ranks at once; InstructGPT's ranked 4 to 9."""


def rank(question: Question, answers: Sequence[str], labeler: Labeler, chance: random.Random) -> Comparison:
    """Return the answers as `labeler` ranks them."""
    return Comparison(question.messages, tuple(answers), tuple(labeler.rank(question, list(answers), chance)))


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
    temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(file)


def split(examples: Sequence[T], fraction: float) -> tuple[list[T], list[T]]:
    """Return examples to learn from, and the last `fraction` of them, one at least, held out.

    Raises UserError for fewer than two.
    """
    check(len(examples) > 1, f"There are {len(examples)} examples; give at least two: one to learn from, one held out.")
    held_out = min(len(examples) - 1, max(1, round(len(examples) * fraction)))
    return list(examples[:-held_out]), list(examples[-held_out:])


# Reading a line


def _read(source: str, n: int, parse: Callable[[dict[str, Any], str], T], say: Say | None) -> list[T]:
    examples, wrong = list[T](), list[UserError]()
    for row, where in _rows(source):
        try:
            examples.append(parse(row, where))
        except UserError as error:
            if say is None:
                raise
            wrong.append(error)
        if len(examples) == n:
            break
    if wrong and not examples:
        raise wrong[0]
    check(bool(examples), f"{source} holds no example.")
    if wrong and say is not None:
        say(f"{len(wrong):,} of {len(wrong) + len(examples):,} lines are left out. {wrong[0]}")
    return examples


def _rows(source: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the JSON objects of a file or a named corpus of lines, and where each stood."""
    file = find_corpus(source) if source in NAMED else Path(source)
    check(file.is_file(), f"There is no file {source}; give a .jsonl file of conversations, or {WORLD}.")
    check(
        file.name.endswith((".jsonl", ".jsonl.gz")),
        f"{source} is not a .jsonl file; write one JSON object a line: "
        '{"messages": [{"role": "user", "content": "..."}, ...]}.',
    )
    for line, number in numbered_lines(file):
        where = f"Line {number} of {file}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not valid JSON ({error.msg}); write one object a line.") from None
        check(isinstance(row, dict), f"{where} is not a JSON object.")
        yield row, where


def _demonstration(row: dict[str, Any], where: str) -> Demonstration:
    if "messages" in row:
        messages = read_messages(row["messages"], where)
    else:
        answer = next((row[key] for key in ("answer", "response", "completion", "output") if key in row), None)
        check(
            answer is not None,
            f'{where} is no demonstration; write "messages", or "prompt" and "answer". It has {_keys(row)}.',
        )
        messages = [*_prompt(row, where), Message("assistant", _text(answer, "answer", where))]
    answers = [number for number, message in enumerate(messages) if message.role == "assistant"]
    check(bool(answers), f"{where}: there is no message of the assistant to learn; end with its answer.")
    # Nothing is learned from what comes after the last answer.
    return Demonstration(tuple(messages[: answers[-1] + 1]))


def _comparison(row: dict[str, Any], where: str) -> Comparison:
    if "prompt" not in row and "chosen" in row:
        chosen, rejected = (_transcript(row.get(key), key, where) for key in ("chosen", "rejected"))
        check(chosen[:-1] == rejected[:-1], f"{where}: chosen and rejected answer different prompts.")
        prompt, answers = chosen[:-1], [chosen[-1].content, rejected[-1].content]
    else:
        prompt = _prompt(row, where)
        given = row["answers"] if "answers" in row else [row.get("chosen"), row.get("rejected")]
        check(
            isinstance(given, list) and len(given) > 1 and None not in given,
            f'{where} is no comparison; write "prompt", "chosen" and "rejected", or "answers", a list of two or more. '
            f"It has {_keys(row)}.",
        )
        answers = [_text(answer, f"answer {i}", where) for i, answer in enumerate(given, start=1)]
    check(len(set(answers)) == len(answers), f"{where}: two of its answers are equal, so neither can be preferred.")
    ranks = row.get("ranks", list(range(len(answers))))
    check(
        isinstance(ranks, list) and len(ranks) == len(answers) and all(isinstance(r, int) for r in ranks),
        f'{where}: "ranks" is {ranks!r}; write a whole number for each of the {len(answers)} answers, 0 the best.',
    )
    return Comparison(tuple(prompt), tuple(answers), tuple(ranks))


def _prompt(row: dict[str, Any], where: str) -> Prompt:
    given = next((row[key] for key in ("prompt", "question", "instruction") if key in row), None)
    if given is None and "messages" in row:
        messages = read_messages(row["messages"], where)
        return tuple(messages[:-1] if messages[-1].role == "assistant" else messages)
    if given is None and "chosen" in row:
        return _transcript(row["chosen"], "chosen", where)[:-1]
    check(given is not None, f'{where} has no prompt; write "prompt" or "messages". It has {_keys(row)}.')
    if isinstance(given, str):
        beside = next((row[key] for key in ("context", "input") if row.get(key)), None)  # as Dolly and Alpaca name it
        text = _text(given, "prompt", where)
        return (Message("user", text if beside is None else f"{text}\n\n{_text(beside, 'context', where)}"),)
    messages = read_messages(given, where)
    check(
        messages[-1].role == "user", f"{where}: the prompt ends with the assistant's turn; it must end with a user's."
    )
    return tuple(messages)


def _transcript(text: Any, key: str, where: str) -> Prompt:
    """Return the conversation that hh-rlhf writes as one string."""
    text = _text(text, key, where)
    check(text.startswith("Human:"), f'{where}: {key} does not begin with "Human:", and there is no "prompt".')
    messages, parts = [], ("\n\n" + text).split("\n\n")
    for part in parts[1:]:
        for name, role in (("Human:", "user"), ("Assistant:", "assistant")):
            if part.startswith(name):
                messages.append([role, part.removeprefix(name).strip()])
                break
        else:
            messages[-1][1] += "\n\n" + part
    turns = [Message(role, content) for role, content in messages]
    check(all(turn.content for turn in turns), f"{where}: a turn of {key} is empty.")
    check(
        [turn.role for turn in turns[-2:]] != ["assistant", "assistant"],
        f"{where}: {key} ends with two answers; the question of the last one is missing.",
    )
    check(turns[-1].role == "assistant", f"{where}: {key} ends with a human's turn; it must end with an answer.")
    return tuple(turns)


def _text(value: Any, name: str, where: str) -> str:
    check(isinstance(value, str), f"{where}: {name} is a {type(value).__name__}; write a text.")
    check(value.strip() != "", f"{where}: {name} is empty.")
    return value.strip()


def _keys(row: dict[str, Any]) -> str:
    return ", ".join(row) or "no keys"
