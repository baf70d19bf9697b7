"""What a pipeline is about: the built-in world, or a text of the user."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from seq2chat.config import UserError, check
from seq2chat.log import Log
from seq2chat.text import world
from seq2chat.text.conversations import world_questions
from seq2chat.text.corpus import load_corpus
from seq2chat.text.quiz import Quiz
from seq2chat.text.world import Question, demonstration

Tables = dict[str, dict[str, Any]]

MOST_CHARACTERS = 20_000_000  # of a text that questions are made from
DEMONSTRATIONS = 7500
QUIZ_DOCUMENTS = 20_000
PIECE = 2000  # characters of one document of the text


@dataclass(frozen=True)
class Subject:
    """The questions about a subject, and what it changes in the recipes of the stages.

    `training(n, seed)` returns questions to train on, and `exam(n, seed)` held-out ones.
    """

    training: Callable[[int, int], list[Question]]
    exam: Callable[[int, int], list[Question]]
    tables: Callable[[str], Tables]


def the_world(folder: Path, seed: int) -> Subject:
    """Return the built-in world. Errors as in `check_identity`."""
    check_identity(folder, {"subject": "world", "version": world.VERSION, "seed": seed})
    return Subject(
        world_questions,
        lambda n, seed: world.questions("test", n, seed),
        lambda stage: {},
    )


def a_text(file: Path, folder: Path, seed: int, log: Log) -> Subject:
    """Return the text in `file` as a subject, with files for its stages in `folder`/text.

    The base model reads the text and documents of questions about it. Raises UserError if there is
    no text, if it is too short for questions, or as in `check_identity`.
    """
    text = "\n".join(_read(file))
    quiz = Quiz(str(file), text)
    log(f"{len(quiz.statements):,} sentences, families of questions: {', '.join(quiz.families)}")
    if quiz.missing:
        log(quiz.missing)
    digest = hashlib.sha256(text.encode()).hexdigest()
    check_identity(folder, {"subject": str(file), "sha256": digest, "seed": seed})
    made = folder / "text"
    if not (made / "demonstrations.jsonl").exists():
        made.mkdir(parents=True, exist_ok=True)
        pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
        documents = quiz.documents(QUIZ_DOCUMENTS, seed)
        rows = ({"text": part} for part in _interleaved(pieces, list(documents)))
        _write(made / "corpus.jsonl", rows)
        rng = random.Random(f"demonstrations/{seed}")
        questions = quiz.questions("train", DEMONSTRATIONS, seed)
        _write(made / "demonstrations.jsonl", (_row(q, rng) for q in questions))
    corpus, demonstrations = str(made / "corpus.jsonl"), str(made / "demonstrations.jsonl")
    tables: dict[str, Tables] = {
        "base": {"data": {"corpus": corpus}},
        "sft": {"data": {"corpus": demonstrations}, "align": {"ptx_corpus": corpus}},
        "ppo": {"data": {"corpus": demonstrations}, "align": {"ptx_corpus": corpus}},
    }
    return Subject(
        lambda n, seed: quiz.questions("train", n, seed),
        lambda n, seed: quiz.questions("test", n, seed),
        lambda stage: tables.get(stage, {}),
    )


def check_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Record what the pipeline in `folder` is about. Raises UserError if it was started with
    another subject, another version of the world, or another seed."""
    file = folder / "about.json"
    if not file.exists():
        check(
            not (folder / "base" / "config.toml").exists(),
            f"{folder} was started by an older version, with another world; remove it to make a "
            "new demo, or choose another folder with --out.",
        )
        file.write_text(json.dumps(identity) + "\n", encoding="utf-8")
        return
    started = json.loads(file.read_text(encoding="utf-8"))
    if started != identity:
        raise UserError(
            f"{folder} was started with {_difference(started, identity)}; continue with that, or "
            "choose another folder with --out."
        )


def _difference(started: dict[str, Any], identity: dict[str, Any]) -> str:
    """Return the first difference of two identities, as the end of a sentence."""

    def subject(one: dict[str, Any]) -> str:
        return "the world" if one["subject"] == "world" else f"the text {one['subject']}"

    if started["subject"] != identity["subject"]:
        return f"{subject(started)}, and not with {subject(identity)}"
    if started["seed"] != identity["seed"]:
        return f"seed {started['seed']}, and not with seed {identity['seed']}"
    if "version" in started:
        return f"version {started['version']} of the world, and not with {identity['version']}"
    return f"another content of {identity['subject']}"


def _read(file: Path) -> Iterator[str]:
    """Yield the documents of a text, up to `MOST_CHARACTERS`."""
    n = 0
    for document in load_corpus(str(file)).documents():
        yield document[: MOST_CHARACTERS - n]
        n += len(document)
        if n >= MOST_CHARACTERS:
            return


def _interleaved(pieces: list[str], documents: list[str]) -> Iterator[str]:
    """Yield all pieces and documents, evenly mixed."""
    per_piece = -(-len(documents) // len(pieces))
    groups = (documents[at : at + per_piece] for at in range(0, len(documents), per_piece or 1))
    for piece, group in zip_longest(pieces, groups, fillvalue=None):
        if piece is not None:
            yield piece
        yield from group or []


def _row(question: Question, rng: random.Random) -> dict[str, Any]:
    turns = [{"role": m.role, "content": m.content} for m in question.messages]
    return {"messages": [*turns, {"role": "assistant", "content": demonstration(question, rng)}]}


def _write(file: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Write a file of rows, which appears complete or not at all."""
    temporary = file.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as output:
        for row in rows:
            output.write(json.dumps(row, ensure_ascii=False) + "\n")
    temporary.replace(file)
