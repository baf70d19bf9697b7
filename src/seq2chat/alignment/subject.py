"""The subject of a pipeline: the built-in world, or a text of the user."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seq2chat.alignment.exam import exam
from seq2chat.config import UserError, check
from seq2chat.log import Log
from seq2chat.text import world
from seq2chat.text.conversations import world_questions
from seq2chat.text.corpus import load_corpus
from seq2chat.text.quiz import Quiz
from seq2chat.text.world import Question, demonstration
from seq2chat.text.world.lexicon import shuffle

Tables = dict[str, dict[str, Any]]

MOST_CHARACTERS = 20_000_000  # of a text that questions are made from
DEMONSTRATIONS = 7500
FEWEST_DOCUMENTS, MOST_DOCUMENTS = 4000, 20_000  # of questions, for the base model
CHARACTERS_PER_DOCUMENT = 400
PIECE = 2000  # characters of one document of the text


@dataclass(frozen=True)
class Subject:
    """The questions about a subject, and what it changes in the recipes of the stages.

    `training(n, seed)` returns questions to train on, and `exam(n, seed)` held-out ones.
    `prepare()` writes the files that `tables(stage)` names. Two subjects are the same if their
    `identity` is, and `name` is for messages.
    """

    name: str
    identity: dict[str, Any]
    training: Callable[[int, int], list[Question]]
    exam: Callable[[int, int], list[Question]]
    tables: Callable[[str], Tables]
    prepare: Callable[[], None]


def the_world() -> Subject:
    """Return the built-in world."""
    return Subject(
        f"version {world.VERSION} of the world",
        {"world": world.VERSION},
        world_questions,
        exam,
        lambda stage: {},
        lambda: None,
    )


def a_text(file: Path, folder: Path, log: Log) -> Subject:
    """Return the text in `file` as the subject of the pipeline in `folder`.

    The base model reads the text and documents of questions about it. Raises UserError if there is
    no text, or if it is too short for questions.
    """
    text = "\n\n".join(_read(file))
    quiz = Quiz(str(file), text)
    log(f"{len(quiz.statements):,} sentences, families of questions: {', '.join(quiz.families)}")
    if quiz.missing:
        log(quiz.missing)
    check(
        not (file.is_dir() and folder.resolve().is_relative_to(file.resolve())),
        f"{folder} is inside {file}; name another folder with --out.",
    )
    # Documents are held out one by one, and of a hundred at two percent none may be.
    is_small = len(text) < 1000 * PIECE and not {"who", "where"} & {*quiz.families}
    made = folder / "text"
    corpus = made / "corpus.jsonl"
    demonstrations = made / "demonstrations.jsonl"
    tables: dict[str, Tables] = {
        "base": {"data": {"corpus": str(corpus), "val_fraction": 0.1 if is_small else 0.02}},
        "sft": {"data": {"corpus": str(demonstrations)}, "align": {"examples": 0}},
        "ppo": {"data": {"corpus": str(demonstrations)}},
    }

    def prepare() -> None:
        if not demonstrations.exists():
            made.mkdir(parents=True, exist_ok=True)
            _write(corpus, ({"text": document} for document in _documents(text, quiz)))
            rng = random.Random("demonstrations")
            questions = quiz.questions("train", DEMONSTRATIONS)
            _write(demonstrations, (_row(question, rng) for question in questions))

    return Subject(
        f"the text {file}",
        {"text": hashlib.sha256(text.encode()).hexdigest()},
        lambda n, seed: quiz.questions("train", n, seed),
        lambda n, seed: quiz.questions("test", n, seed),
        lambda stage: tables.get(stage, {}),
        prepare,
    )


def check_same(folder: Path, subject: Subject, seed: int) -> None:
    """Raise UserError if the pipeline in `folder` was started with another subject or seed."""
    if not (folder / "stages.json").exists() and not (folder / "base" / "config.toml").exists():
        return
    try:
        started = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} was started by an older version, with another world; remove it to make a "
            "new demo, or choose another folder with --out."
        ) from error
    other = "another content of " if started["name"] == subject.name else ""
    for mine, theirs, same in (
        (subject.name, f"{other}{started['name']}", started["identity"] == subject.identity),
        (f"seed {seed}", f"seed {started['seed']}", started["seed"] == seed),
    ):
        check(
            same,
            f"{folder} was started with {theirs}, and not with {mine}; choose another folder with "
            f"--out, or use what is there: seq2chat serve {folder}.",
        )


def record(folder: Path, subject: Subject, seed: int) -> None:
    """Write into `folder` what its pipeline is started with, for `check_same`."""
    about = {"name": subject.name, "identity": subject.identity, "seed": seed}
    file = folder / "about.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != about:
        # A start that failed, with another text.
        shutil.rmtree(folder / "text", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    _write(file, [about])


def _read(file: Path) -> Iterator[str]:
    """Yield the documents of a text, up to `MOST_CHARACTERS`."""
    n = 0
    for document in load_corpus(str(file)).documents():
        yield document[: MOST_CHARACTERS - n]
        n += len(document)
        if n >= MOST_CHARACTERS:
            return


def _documents(text: str, quiz: Quiz) -> list[str]:
    """Return pieces of the text and about as many characters of questions, shuffled.

    A small text is repeated, so that the questions don't drown it.
    """
    n = max(FEWEST_DOCUMENTS, min(MOST_DOCUMENTS, len(text) // CHARACTERS_PER_DOCUMENT))
    questions = list(quiz.documents(n, seed=0))
    pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
    pieces *= max(1, sum(map(len, questions)) // len(text))
    documents = [*pieces, *questions]
    shuffle(random.Random("documents"), documents)
    return documents


def _row(question: Question, rng: random.Random) -> dict[str, Any]:
    turns = [{"role": m.role, "content": m.content} for m in question.messages]
    return {"messages": [*turns, {"role": "assistant", "content": demonstration(question, rng)}]}


def _write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a file of rows, which appears complete or not at all."""
    temporary = file.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as output:
        for row in rows:
            output.write(json.dumps(row, ensure_ascii=False) + "\n")
    temporary.replace(file)
