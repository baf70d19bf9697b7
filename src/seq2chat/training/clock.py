"""The clock of a run: how much of its budget is used, for budgets of any unit."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from seq2chat.config import Budget, check
from seq2chat.training.processes import agree
from seq2chat.training.types import Job

# The share of a timed budget that the last validation may take, and all others together.
VALIDATION_SHARE = 0.1


class Clock:
    """The used share of a run's budget, counted over all sessions of the run.

    A timed run has to end on time and still validate, sample and save its last weights. The clock
    therefore measures these milestones during the run and reserves that much time at the end.
    Several processes go by the time of process 0, so that they take the same decisions.
    """

    def __init__(self, job: Job) -> None:
        train = job.recipe.train
        self.progress = job.progress
        self.least_steps = job.least_steps
        self.steps = job.total_steps()
        self.seconds = Budget.parse(train.budget).amount
        self.began = time.monotonic() - job.progress.seconds
        self.step_seconds = 0.0
        # Expected seconds of each kind of milestone at the end of the run. Until a validation has
        # been timed, it is estimated as passes over its text at half the cost of a training step.
        self.reserve: dict[str, float] = {}
        loader = job.task.loader
        tokens_per_batch = loader.epoch_tokens / loader.epoch_batches(train.batch_size)
        self.validation_tokens = job.task.validation_tokens
        if train.final_eval_tokens:
            self.validation_tokens = min(self.validation_tokens, train.final_eval_tokens)
        self.validation_steps = self.validation_tokens / (2 * tokens_per_batch)

    def tick(self, step_seconds: float) -> float:
        """Count a step of this duration, and return the used share after it."""
        step_seconds = self._agreed(step_seconds)
        # One slow step, such as the first, must not end the run early.
        self.step_seconds = min(step_seconds, 2 * self.step_seconds or step_seconds)
        return self.share()

    def share(self, steps: float = 0.0) -> float:
        """Return the used share, `steps` steps from now."""
        self.progress.seconds = self._agreed(time.monotonic() - self.began)
        if self.steps:
            return (self.progress.step + steps) / self.steps
        reserve = {"validation": self.validation_steps * self.step_seconds} | self.reserve
        # A validation gets at most a tenth of the budget, and is cut short there.
        reserve["validation"] = min(reserve["validation"], VALIDATION_SHARE * self.seconds)
        usable = self.seconds - min(sum(reserve.values()), self.seconds / 2)
        return (self.progress.seconds + steps * self.step_seconds) / usable

    def schedule_progress(self) -> float:
        """Return the used share in the middle of the next step, counted from the first step.

        Preparation, before the first step, uses budget but must not use up the warmup.
        """
        share = self.share(0.5)
        if self.progress.step == 0:
            self.progress.start = 0.0 if self.steps else min(share, 0.99)
        return min(1.0, max(0.0, (share - self.progress.start) / (1 - self.progress.start)))

    def check_usable(self) -> None:
        """Raise UserError if a timed budget holds fewer steps than any schedule needs."""
        if self.steps:
            return
        used = self.progress.start * self.seconds
        n_steps = self.progress.step + (1 - self.share()) * self.seconds / self.step_seconds
        least = used + self.least_steps * self.step_seconds / (1 - 2 * VALIDATION_SHARE)
        check(
            n_steps >= self.least_steps,
            f"The budget of {self.seconds:.0f}s holds {n_steps:.0f} steps of "
            f"{self.step_seconds:.1f} s, too few to learn from; write at least --budget "
            f"{math.ceil(1.2 * least)}s, or make the model or the batch smaller.",
        )

    def validation_seconds(self, final: bool, evals: int) -> float:
        """Return the time limit of a validation; infinite unless the budget is a time."""
        if self.steps:
            return math.inf
        if not final:
            return VALIDATION_SHARE * self.seconds / evals
        # The last validation of a run whose training ended in an earlier session.
        if self.progress.seconds >= self.seconds:
            return VALIDATION_SHARE * self.seconds
        elapsed = self._agreed(time.monotonic() - self.began)
        return self.seconds - elapsed - self.reserve.get("sample", 0.0)

    @contextmanager
    def timed(self, kind: str, times: float = 1.0) -> Iterator[None]:
        """Measure a milestone; the last one of its kind is expected to take `times` as long."""
        began = time.perf_counter()
        yield
        self.expect(kind, (time.perf_counter() - began) * times)

    def expect(self, kind: str, seconds: float) -> None:
        """Reserve this time at the end of the run for the last milestone of a kind."""
        self.reserve[kind] = self._agreed(seconds)

    def is_over(self) -> bool:
        """Return whether the run has ended. A timed run ends before the step that would exceed its
        budget."""
        return self.share() >= 1 if self.steps else self.share(1.0) >= 1

    def _agreed(self, seconds: float) -> float:
        """Return the seconds of process 0. Without a timed budget they decide nothing."""
        return seconds if self.steps else agree(seconds)

    def use_up(self) -> None:
        """Mark the budget of a timed run as used, so that resuming it trains no further."""
        if not self.steps:
            self.progress.seconds = max(self.progress.seconds, self.seconds)
