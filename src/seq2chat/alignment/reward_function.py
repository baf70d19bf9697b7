"""Rewards by a function of the user's: `reward(prompts, answers, **columns)`, as TRL calls it."""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.alignment.rollout import Rollout, Scorer
from seq2chat.config import UserError, check
from seq2chat.text.conversations import Columns, Query


class FunctionScorer:
    """A scorer that calls `function(prompts, answers, **columns)` for one number per answer.

    `columns` names the columns that the function takes by name; None where it takes all (`**kwargs`).
    Each is passed as a list with one value per answer. `required` are those without a default.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function, self.name = function, name
        parameters = list(inspect.signature(function).parameters.values())
        by_place = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        # The first two are the prompts and the answers, whatever they are called.
        self.first = by_place[:2]
        named = [
            p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in self.first
        ]
        takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters)
        self.columns: Columns = None if takes_all else frozenset(p.name for p in named)
        self.required = [p.name for p in named if p.default is p.empty]

    def check_columns(self, queries: Sequence[Query], source: str) -> None:
        """Raise UserError unless every query has the columns that the function needs."""
        for name in self.required:
            lacking = [query for query in queries if name not in query.columns]
            check(
                not lacking,
                f"{self.name} needs the column {name!r}, which {len(lacking):,} of {len(queries):,} prompts in "
                f"{source} do not have; add it to each line, or give the parameter a default.",
            )

    def __call__(self, rollout: Rollout) -> Float[Tensor, " batch"]:
        """Return the score of each answer. Raises UserError for another number of them, and for one not finite."""
        names = dict.fromkeys(name for columns in rollout.columns for name in columns if name not in self.first)
        columns = {name: [row.get(name) for row in rollout.columns] for name in names}
        scores = self.function(rollout.prompts, rollout.answers, **columns)
        try:
            values = torch.as_tensor(scores, dtype=torch.float32).flatten()
        except (TypeError, ValueError, RuntimeError):
            what = f"a {type(scores).__name__} that holds no numbers" if scores is not None else "nothing"
            raise UserError(f"{self.name} returned {what}; return a list with one number for each answer.") from None
        check(
            len(values) == len(rollout),
            f"{self.name} gave {len(values)} rewards for {len(rollout)} answers; return one number for each.",
        )
        bad = (~values.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise UserError(f"{self.name} gave {values[bad[0]].item()} for the answer {rollout.answers[bad[0]]!r}.")
        return values.to(rollout.tokens.device)


def wanted_columns(scorer: Scorer | None) -> Columns:
    """Return the columns of the prompts that a scorer takes: none for a model, None for all."""
    return scorer.columns if isinstance(scorer, FunctionScorer) else frozenset()


def load_function(source: str) -> Callable[..., Any]:
    """Return the function in `FILE.py:FUNCTION`. Raises UserError for a file or function that is not there."""
    path, _, name = source.rpartition(":")
    check(Path(path).is_file(), f"There is no file {path}; write FILE.py:FUNCTION.")
    spec = importlib.util.spec_from_file_location("seq2chat_reward", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    check(callable(getattr(module, name, None)), f"{path} has no function {name}.")
    return getattr(module, name)
