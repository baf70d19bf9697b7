"""Measured topics: the plan of their trainings, and lessons made from a file of results.

A record is a JSON object with one result. `benchmarks/lecture.py` writes one record per line.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seq2chat.config import UserError, check
from seq2chat.course.lesson import Lesson

Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The measurements of one topic: a training of `steps` steps for each case, and timings.

    `train(case, steps, progress)` returns the record of a case, and each function in `timings`
    returns one record.
    """

    cases: Sequence[Any]
    train: Callable[..., Record]
    steps: int
    timings: Sequence[Callable[[], Record]] = ()

    def __post_init__(self) -> None:
        check_positive(steps=self.steps)

    def run(self, on_timing: Callable[[], object], on_step: Callable[[], object]) -> list[Record]:
        """Return the records of the timings and of the cases.

        The timings run first. `on_timing` is called after each timing and `on_step` after each
        training step, for example to advance a progress bar.
        """
        records = []
        for timing in self.timings:
            records.append(timing())
            on_timing()
        return records + [
            self.train(case, self.steps, lambda step, n_steps: on_step()) for case in self.cases
        ]


def check_positive(**numbers: int) -> None:
    """Raise UserError, naming the number, unless all are positive."""
    for name, number in numbers.items():
        check(number > 0, f"{name} is {number}; write a positive number.")


def lesson_from_file(
    file: Path, lesson: Callable[[list[Record]], Lesson], topic: str, task: str | None = None
) -> Lesson:
    """Return the lesson made from the records of `topic` in `file`, of all tasks or of one.

    Raises UserError for a file that is missing, has no such record, or has a damaged one.
    """
    records = [r for r in read_records(file) if r.get("topic") == topic]
    if task is not None:
        records = [r for r in records if r.get("task") == task]
    check(
        bool(records),
        f"{file} has no result for {task or topic}; leave the file out to measure here.",
    )
    try:
        return lesson(records)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{file}: a result for {topic} lacks {error}; measure it again.") from error
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{file}: a result for {topic} is not as it was measured ({error}); measure it again."
        ) from error


def read_records(file: Path) -> list[Record]:
    """Return the records in `file`, one JSON object per line. Raises UserError for another line."""
    check(file.is_file(), f"There is no file {file}; leave it out to measure here.")
    lines = file.read_bytes().splitlines()
    return [_record(line, f"{file}, line {number}") for number, line in enumerate(lines, start=1)]


def _record(line: bytes, place: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError:  # neither JSON nor UTF-8
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{place}, is not a JSON object; write one result per line.")
    return record
