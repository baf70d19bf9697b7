"""Train a run of any kind from Python: pretraining or an alignment method, as its recipe says."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seq2chat.alignment.setup import prepare
from seq2chat.config import Recipe
from seq2chat.log import Log, ignore
from seq2chat.training import loop
from seq2chat.training.run_folder import RunFolder
from seq2chat.training.setup import resume_job, start_job
from seq2chat.training.types import Event, Job


def train(
    recipe: Recipe,
    folder: Path | str,
    on_event: Callable[[Event], object] | None = None,
    log: Log = ignore,
    stop: threading.Event | None = None,
) -> RunFolder:
    """Train by `recipe` into the new run `folder`, and return that folder.

    `on_event` is called after each step (`Step`), each milestone (`Saved`, `Validated`, `Sampled`),
    and for a slow process (`Straggler`), all in `seq2chat.training.types`; `log` with one line per
    choice. Setting `stop`, from any thread, ends the run after the current step with a checkpoint.
    Raises UserError as `start_job` and the loop do.
    """
    return _run(start_job(recipe, Path(folder), log, prepare=prepare), on_event, stop)


def resume(
    folder: Path | str,
    changes: dict[str, dict[str, Any]] | None = None,
    on_event: Callable[[Event], object] | None = None,
    log: Log = ignore,
    stop: threading.Event | None = None,
) -> RunFolder:
    """Continue the run in `folder` from its newest checkpoint, exactly, and return that folder.

    `changes` replace options, for example `{"train": {"budget": "200 steps"}}`. The other arguments
    are those of `train`. Raises UserError for changes to the data or to the shape of the model.
    """
    return _run(resume_job(Path(folder), changes or {}, log, prepare=prepare), on_event, stop)


def _run(
    job: Job, on_event: Callable[[Event], object] | None, stop: threading.Event | None
) -> RunFolder:
    for event in loop.train(job, stop or threading.Event()):
        if on_event is not None:
            on_event(event)
    return job.run
