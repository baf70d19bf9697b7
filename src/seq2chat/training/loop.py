"""The training loop, in the open: one for every objective."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seq2chat.config import Budget, Recipe, UserError
from seq2chat.device import Precision
from seq2chat.models.folder import Model
from seq2chat.text.tokenizer import Tokenizer
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.checkpoint import Progress, save_checkpoint
from seq2chat.training.metrics import Evaluation, evaluate, token_lengths
from seq2chat.training.runlog import RunLog
from seq2chat.training.schedule import rate
from seq2chat.training.task import Objective, Task


@dataclass
class Job:
    """All that a run needs in memory; `seq2chat.training.job` makes it. `objective` is the task's, perhaps compiled."""

    log: RunLog
    recipe: Recipe
    model: Model
    tokenizer: Tokenizer | WordPiece
    task: Task
    objective: Objective
    optimizers: list[torch.optim.Optimizer]
    precision: Precision
    device: torch.device
    progress: Progress


@dataclass(frozen=True)
class Step:
    """One optimizer step; `share` of the run is done after it."""

    step: int
    tokens: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    peak_share: float
    elapsed_seconds: float
    share: float
    metrics: dict[str, float] = field(default_factory=dict)


class Update(NamedTuple):
    """What a step did: mean loss in nats, gradient norm before clipping, labels, floating point operations, and what
    else its task measures."""

    loss: float
    grad_norm: float
    n_tokens: int
    flops: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Validated:
    step: int
    evaluation: Evaluation | None
    whole: bool
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    step: int
    folder: Path


@dataclass(frozen=True)
class Sampled:
    step: int
    text: str


Event = Step | Validated | Saved | Sampled


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one acts as it would have without us."""
    stop = threading.Event()
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for s in before:
        signal.signal(s, on_signal)
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def train(job: Job, stop: threading.Event) -> Iterator[Event]:
    """Train `job` from where it stands to the end of its budget, or until `stop` is set; yields what happens.

    Every milestone saves before it evaluates. Raises `UserError` when the loss is no longer a number; the weights on
    disk are those of the last checkpoint. A run that is at its end yields nothing.
    """
    config, progress = job.recipe.train, job.progress
    clock = _Clock(job)
    if clock.over() and job.log.is_validated(progress.step):
        return
    mark = clock.share()
    job.model.train()
    while not clock.over() and not stop.is_set():
        began = time.perf_counter()
        multiplier = rate(job.recipe.schedule, clock.schedule_progress())
        for optimizer in job.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * multiplier
        loss, grad_norm, n_tokens, flops, metrics = (job.task.step or train_step)(job)
        progress.step += 1
        progress.tokens += n_tokens
        seconds = time.perf_counter() - began
        after = clock.tick(seconds)
        speed = n_tokens / seconds
        step = Step(
            progress.step, progress.tokens, loss, job.recipe.optim.matrix_lr * multiplier, grad_norm, speed,
            flops / seconds / job.precision.peak_flops, progress.seconds, min(1.0, after), metrics,
        )  # fmt: skip
        job.log.record({k: v for k, v in vars(step).items() if k not in ("share", "metrics")} | metrics)
        yield step
        if clock.over():
            break
        yield from _milestones(job, clock, mark, after)
        mark = max(mark, after)
    over = clock.over()
    if over:
        clock.use_up()
    yield _save(job, clock)
    if over:
        yield _validate(job, clock, whole=True)
        if config.samples:
            yield _sample(job, clock)


def train_step(job: Job) -> Update:
    """One optimizer step over `accumulation` forward passes.

    Summed gradients are divided by the number of labels of the whole step, so accumulation never changes the loss.
    """
    config, loader, progress = job.recipe.train, job.task.loader, job.progress
    loss_sum, n_tokens, flops = torch.zeros((), device=job.device), torch.zeros((), device=job.device), 0
    for _ in range(config.accumulation):
        batch = loader.batch(progress.samples, config.batch_size).to(job.device)
        progress.samples += loader.n_samples(progress.samples, config.batch_size)
        loss, n = job.objective(job.model, batch)
        loss.backward()
        loss_sum, n_tokens, flops = loss_sum + loss.detach(), n_tokens + n, flops + job.model.flops(batch)
    mean, norm = apply_gradients(job, job.optimizers, loss_sum, n_tokens)
    return Update(mean, norm, int(n_tokens), flops, {})


def apply_gradients(
    job: Job, optimizers: list[torch.optim.Optimizer], loss_sum: Tensor, n_tokens: Tensor
) -> tuple[float, float]:
    """Step the optimizers with their summed gradients divided by `n_tokens`, clipped together. Returns the mean loss
    and the gradient norm before clipping. Raises `UserError` when either is no number, and then changes nothing."""
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"] if p.grad is not None]
    grads = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_div_(grads, n_tokens)
    norm = nn.utils.get_total_norm(grads)
    mean = (loss_sum / n_tokens).item()
    if not (math.isfinite(mean) and math.isfinite(norm.item())):
        raise _diverged(job, f"The loss is {mean} with gradient norm {norm.item()} at step {job.progress.step + 1}")
    if job.recipe.optim.clip:
        nn.utils.clip_grads_with_norm_(parameters, job.recipe.optim.clip, norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return mean, norm.item()


def _diverged(job: Job, what: str) -> UserError:
    checkpoints = job.log.list_checkpoints()
    kept = f"The last good checkpoint is {checkpoints[-1]}" if checkpoints else "There is no checkpoint yet"
    return UserError(f"{what}, so training stopped. {kept}. Lower optim.matrix_lr and optim.embedding_lr.")


def total_steps(job: Job) -> int:
    """Steps that the budget of `job` allows; 0 if it is a time."""
    budget, train, loader = Budget.parse(job.recipe.train.budget), job.recipe.train, job.task.loader
    if budget.unit == "seconds":
        return 0
    epoch = loader.epoch_batches(train.batch_size) / train.accumulation
    per_step = {"steps": 1.0, "epochs": 1 / epoch, "tokens": loader.epoch_tokens / epoch}
    return math.ceil(round(budget.amount / per_step[budget.unit], 6))


class _Clock:
    """Share of the budget that is used, whatever its unit, counted over all the sessions of a run."""

    def __init__(self, job: Job) -> None:
        self.progress = job.progress
        self.steps = total_steps(job)
        self.seconds = Budget.parse(job.recipe.train.budget).amount
        self.began = time.monotonic() - job.progress.seconds
        self.step_seconds = 0.0
        # Seconds that each kind of milestone will take at the end. Until a validation was timed: passes over its text
        # at half the price of a step.
        self.reserve: dict[str, float] = {}
        loader, batch_size = job.task.loader, job.recipe.train.batch_size
        tokens_per_batch = loader.epoch_tokens / loader.epoch_batches(batch_size)
        self.validation_steps = job.task.validation_tokens / (2 * tokens_per_batch)

    def tick(self, step_seconds: float) -> float:
        """Count a step that took so long; the share used after it."""
        self.step_seconds = min(step_seconds, 2 * self.step_seconds or step_seconds)
        return self.share()

    def share(self, steps: float = 0.0) -> float:
        """Share used, `steps` steps from now."""
        self.progress.seconds = time.monotonic() - self.began
        if self.steps:
            return (self.progress.step + steps) / self.steps
        reserve = sum(({"validation": self.validation_steps * self.step_seconds} | self.reserve).values())
        return (self.progress.seconds + steps * self.step_seconds) / max(1e-9, self.seconds - reserve)

    def schedule_progress(self) -> float:
        """Share at the middle of the next step, counted from the first step on, before which nothing was learned."""
        share = self.share(0.5)
        if self.progress.step == 0:
            self.progress.start = 0.0 if self.steps else min(share, 0.5)
        return min(1.0, max(0.0, (share - self.progress.start) / (1 - self.progress.start)))

    @contextmanager
    def timed(self, kind: str, times: float = 1.0) -> Iterator[None]:
        """Measure a milestone, and expect the last one of its kind to take `times` as long."""
        began = time.perf_counter()
        yield
        self.reserve[kind] = (time.perf_counter() - began) * times

    def over(self) -> bool:
        # A timed run ends with the step that would cross its end.
        return self.share() >= 1 if self.steps else self.share(1.0) >= 1

    def use_up(self) -> None:
        """A run that ended has nothing left of its budget, so that resuming it trains no further."""
        if not self.steps:
            self.progress.seconds = max(self.progress.seconds, self.seconds)


def _milestones(job: Job, clock: _Clock, before: float, after: float) -> Iterator[Event]:
    def crossed(parts: int) -> bool:
        return int(after * parts) > int(before * parts)

    config = job.recipe.train
    if crossed(config.checkpoints):
        yield _save(job, clock)
    if crossed(config.evals):
        yield _validate(job, clock, whole=False)
    if config.samples and crossed(config.samples):
        yield _sample(job, clock)


def _save(job: Job, clock: _Clock) -> Saved:
    if not all(parameter.isfinite().all() for parameter in job.model.parameters()):
        raise _diverged(job, f"Weights are no longer numbers after step {job.progress.step}")
    with clock.timed("checkpoint"):
        model = job.task.publish() if job.task.publish else job.model
        keep, modules = job.recipe.train.keep, job.task.modules
        folder = save_checkpoint(job.log, model, job.tokenizer, job.optimizers, job.progress, keep, modules)
    return Saved(job.progress.step, folder)


def _validate(job: Job, clock: _Clock, whole: bool) -> Validated:
    limit = 0 if whole else job.recipe.train.eval_tokens
    with clock.timed("validation", times=max(1.0, job.task.validation_tokens / limit) if limit else 1.0):
        evaluation = validate(job, limit)
        metrics = {} if job.task.report is None else job.task.report(job.model, limit)
    where = {"step": job.progress.step, "tokens": job.progress.tokens}
    values = {
        f"val_{name}": value for name, value in (({} if evaluation is None else evaluation.values()) | metrics).items()
    }
    job.log.record(where | values | {"elapsed_seconds": time.monotonic() - clock.began})
    return Validated(job.progress.step, evaluation, whole, metrics)


def validate(job: Job, limit: int) -> Evaluation | None:
    """Loss on the validation split, or on about its first `limit` tokens where that is not 0; None for a task that has
    no loss to measure, such as reinforcement learning."""
    if job.task.measure is None:
        return None
    return evaluate(job.model, job.task.measure, job.task.validation(limit), token_lengths(job.tokenizer))


@torch.compiler.set_stance("force_eager")
def _sample(job: Job, clock: _Clock) -> Sampled:
    with clock.timed("sample"):
        text = job.task.sample(job.model)
    job.log.sample(job.progress.step, text)
    return Sampled(job.progress.step, text)
