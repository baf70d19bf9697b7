"""Rewards from a user's function: `reward(prompts, answers, **columns)`, or the signatures of
TRL."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.alignment.rollout import Rollout
from seq2chat.config import UserError, check
from seq2chat.text.conversations import Columns, Query

PROMPTS = "prompts"
ANSWERS = ("completions", "answers")  # TRL's name comes first: next to it, `answers` is a column


class FunctionScorer:
    """A scorer that calls `function` for one number per answer.

    Parameters named `prompts`, and `completions` or `answers`, are passed by keyword. A function
    without such a name for the answers is called as `function(prompts, answers, **columns)`.
    `columns` are the names of the columns that the function takes, or None if it takes all
    (`**kwargs`). Each is passed as a list with one value per answer. `required` are the columns
    without a default.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        self.name = name
        parameters = list(inspect.signature(function).parameters.values())
        kinds = {p.kind for p in parameters}
        positional = [
            p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        by_keyword = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        keywords = {p.name for p in by_keyword}
        takes_all = Parameter.VAR_KEYWORD in kinds
        takes_two = len(positional) >= 2 or Parameter.VAR_POSITIONAL in kinds
        answers = next((keyword for keyword in ANSWERS if keyword in keywords), "")
        if not answers and takes_all and not takes_two:
            answers = ANSWERS[0]
        if Parameter.POSITIONAL_ONLY in kinds and takes_two:
            answers = ""
        check(
            answers != "" or takes_two,
            f"{name} takes no prompts and answers; write it as def reward(prompts, answers), or "
            "with the columns that it needs as def reward(prompts, answers, solution).",
        )
        # Both keywords are empty if prompts and answers are the first two positional arguments.
        self.prompts_keyword = PROMPTS if answers and (PROMPTS in keywords or takes_all) else ""
        self.answers_keyword = answers
        self.taken = {PROMPTS, answers} if answers else set(positional[:2])
        named = [p for p in by_keyword if p.name not in self.taken]
        self.columns: Columns = None if takes_all else frozenset(p.name for p in named)
        self.required = [p.name for p in named if p.default is p.empty]

    def check_columns(self, queries: Sequence[Query], source: str) -> None:
        """Raise UserError unless every query has the columns that the function needs."""
        for name in self.required:
            lacking = [query for query in queries if name not in query.columns]
            check(
                not lacking,
                f"{self.name} needs the column {name!r}, which {len(lacking):,} of {len(queries):,}"
                f" prompts in {source} do not have; add it to each line, or give the parameter a "
                "default.",
            )

    def __call__(self, rollout: Rollout) -> Float[Tensor, " batch"]:
        """Return the score of each answer. Raises UserError for a wrong number of scores, and for
        scores that are not finite."""
        names = dict.fromkeys(
            name for columns in rollout.columns for name in columns if name not in self.taken
        )
        columns = {name: [row.get(name) for row in rollout.columns] for name in names}
        try:
            scores = self._call(rollout, columns)
        except (Exception, SystemExit) as error:
            raise _fault(error, inspect.getsourcefile(self.function) or self.name) from error
        try:
            values = torch.as_tensor(scores, dtype=torch.float32).flatten()
        except (TypeError, ValueError, RuntimeError):
            kind = "nothing" if scores is None else f"a {type(scores).__name__} without numbers"
            raise UserError(
                f"{self.name} returned {kind}; return a list with one number per answer."
            ) from None
        check(
            len(values) == len(rollout),
            f"{self.name} returned {len(values)} rewards for {len(rollout)} answers; return one "
            "number per answer.",
        )
        bad = (~values.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise UserError(
                f"{self.name} returned {values[bad[0]].item()} for the answer "
                f"{rollout.answers[bad[0]]!r}."
            )
        return values.to(rollout.tokens.device)

    def _call(self, rollout: Rollout, columns: dict[str, list[Any]]) -> Any:
        if not self.answers_keyword:
            return self.function(rollout.prompts, rollout.answers, **columns)
        keywords: dict[str, Any] = {self.answers_keyword: rollout.answers}
        if self.prompts_keyword:
            keywords[self.prompts_keyword] = rollout.prompts
        return self.function(**keywords, **columns)


def load_function(source: str) -> Callable[..., Any]:
    """Return the function `FILE.py:FUNCTION`. Raises UserError if the file or the function is
    missing."""
    path, _, name = source.rpartition(":")
    check(Path(path).is_file(), f"There is no file {path}; write FILE.py:FUNCTION.")
    spec = importlib.util.spec_from_file_location("seq2chat_reward", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _fault(error, path) from error
    check(callable(getattr(module, name, None)), f"{path} has no function {name}.")
    return getattr(module, name)


def _fault(error: BaseException, file: str) -> UserError:
    """Return an error that names the file, the line and the exception of the user's code."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == Path(file)
    ]
    line = error.lineno if isinstance(error, SyntaxError) else next(reversed(lines), 0)
    message = str(error) or "no message"
    return UserError(
        f"Line {line} of {file} failed ({type(error).__name__}: {message}); fix the function."
    )
