"""The training loop, in the open: one for every objective."""

import math
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seq2chat.config import Budget, Recipe, UserError, check
from seq2chat.device import Precision
from seq2chat.models.folder import Model
from seq2chat.text.batch import Batch
from seq2chat.text.tokenizers import Tokenizer
from seq2chat.training.checkpoint import Progress, save_checkpoint
from seq2chat.training.evaluation import Evaluation, evaluate, token_lengths
from seq2chat.training.run_folder import RunLog
from seq2chat.training.schedule import rate
from seq2chat.training.stop import Stopped, interruptible
from seq2chat.training.tasks import Objective, Task

# Of a timed budget that the last validation may take, and all the others together.
VALIDATION_SHARE = 0.1
LEAST_STEPS = 20  # of a timed run; with fewer there is no warmup and decay to speak of


@dataclass
class Job:
    """All that a run needs in memory; `training.setup` makes it. `objective` is the task's, perhaps
    compiled."""

    log: RunLog
    recipe: Recipe
    model: Model
    tokenizer: Tokenizer
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
    """What a step did: mean loss in nats, gradient norm before clipping, labels, floating point
    operations, and what else its task measures."""

    loss: float
    grad_norm: float
    n_tokens: int
    flops: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Validated:
    step: int
    evaluation: Evaluation | None
    final: bool
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


def train(job: Job, stop: threading.Event) -> Iterator[Event]:
    """Train `job` from where it stands to the end of its budget, or until `stop` is set; yields
    what happens.

    Every milestone saves before it evaluates. Raises `UserError` when the loss is no longer a
    number, or when a timed budget holds too few steps to learn in; the weights on disk are those of
    the last checkpoint. A run that is at its end yields nothing.
    """
    clock = _Clock(job)
    if clock.over() and job.log.is_validated(job.progress.step):
        return
    # A signal leaves a step only where it has changed nothing, and a milestone only after it was
    # saved.
    with suppress(Stopped):
        yield from _steps(job, clock, stop)
    over = clock.over()
    if over:
        clock.use_up()
    yield _save(job, clock)
    if over and not stop.is_set():
        with suppress(Stopped):
            yield _validate(job, clock, final=True)
            if job.recipe.train.samples:
                yield _sample(job, clock)


def is_over(job: Job) -> bool:
    """Return whether the budget of `job` is used up."""
    return _Clock(job).over()


def _steps(job: Job, clock: "_Clock", stop: threading.Event) -> Iterator[Event]:
    progress = job.progress
    first = progress.step
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
            progress.step,
            progress.tokens,
            loss,
            job.recipe.optim.matrix_lr * multiplier,
            grad_norm,
            speed,
            flops / seconds / job.precision.peak_flops,
            progress.seconds,
            min(1.0, after),
            metrics,
        )
        job.log.record(
            {k: v for k, v in vars(step).items() if k not in ("share", "metrics")} | metrics
        )
        yield step
        # The first step is slow, and tells nothing unless it is the only one.
        if progress.step == first + 2:
            clock.check_usable()
        if clock.over():
            break
        yield from _milestones(job, clock, mark, after)
        mark = max(mark, after)
    if progress.step == first + 1 and not stop.is_set():
        clock.check_usable()


def train_step(job: Job) -> Update:
    """One optimizer step over `accumulation` forward passes.

    Summed gradients are divided by the number of labels of the whole step, so accumulation never
    changes the loss.
    """
    config, loader, progress = job.recipe.train, job.task.loader, job.progress
    loss_sum, n_tokens, flops = (
        torch.zeros((), device=job.device),
        torch.zeros((), device=job.device),
        0,
    )
    for _ in range(config.accumulation):
        batch = loader.batch(progress.samples, config.batch_size).to(job.device)
        progress.samples += loader.n_samples(progress.samples, config.batch_size)
        loss, n = job.objective(job.model, batch)
        loss.backward()
        loss_sum, n_tokens, flops = (
            loss_sum + loss.detach(),
            n_tokens + n,
            flops + job.model.flops(batch),
        )
    mean, norm = apply_gradients(job, job.optimizers, loss_sum, n_tokens)
    return Update(mean, norm, int(n_tokens), flops, {})


def apply_gradients(
    job: Job, optimizers: list[torch.optim.Optimizer], loss_sum: Tensor, n_tokens: Tensor
) -> tuple[float, float]:
    """Step the optimizers with their summed gradients divided by `n_tokens`, clipped together.
    Returns the mean loss and the gradient norm before clipping. Raises `UserError` when either is
    no number, and then changes nothing."""
    parameters = [
        p
        for o in optimizers
        for group in o.param_groups
        for p in group["params"]
        if p.grad is not None
    ]
    grads = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_div_(grads, n_tokens)
    norm = nn.utils.get_total_norm(grads)
    mean = (loss_sum / n_tokens).item()
    if not (math.isfinite(mean) and math.isfinite(norm.item())):
        raise _diverged(
            job,
            f"The loss is {mean} with gradient norm {norm.item()} at step {job.progress.step + 1}",
        )
    if job.recipe.optim.clip:
        nn.utils.clip_grads_with_norm_(parameters, job.recipe.optim.clip, norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return mean, norm.item()


def _diverged(job: Job, what: str) -> UserError:
    checkpoints = job.log.list_checkpoints()
    optim = job.recipe.optim
    lower = (
        f"--optim.matrix-lr {optim.matrix_lr / 3:.2g} --optim.embedding-lr "
        f"{optim.embedding_lr / 3:.2g}"
    )
    method = job.recipe.align.method
    command = (
        f"seq2chat {method} --out {job.log.folder}"
        if method
        else f"seq2chat train {job.log.folder}"
    )
    kept = (
        f"from {checkpoints[-1].name}"
        if checkpoints
        else "from the start, as there is no checkpoint yet"
    )
    return UserError(
        f"{what}, so training stopped. Go on {kept} with lower rates: {command} --resume {lower}"
    )


def total_steps(job: Job) -> int:
    """Steps that the budget of `job` allows; 0 if it is a time."""
    budget, train, loader = Budget.parse(job.recipe.train.budget), job.recipe.train, job.task.loader
    if budget.unit == "seconds":
        return 0
    epoch = loader.epoch_batches(train.batch_size) / train.accumulation
    per_step = {"steps": 1.0, "epochs": 1 / epoch, "tokens": loader.epoch_tokens / epoch}
    return math.ceil(round(budget.amount / per_step[budget.unit], 6))


class _Clock:
    """Share of the budget that is used, whatever its unit, counted over all the sessions of a
    run."""

    def __init__(self, job: Job) -> None:
        self.progress = job.progress
        self.steps = total_steps(job)
        self.seconds = Budget.parse(job.recipe.train.budget).amount
        self.began = time.monotonic() - job.progress.seconds
        self.step_seconds = 0.0
        # Seconds that each kind of milestone will take at the end. Until a validation was timed:
        # passes over its text at half the price of a step.
        self.reserve: dict[str, float] = {}
        loader, batch_size = job.task.loader, job.recipe.train.batch_size
        tokens_per_batch = loader.epoch_tokens / loader.epoch_batches(batch_size)
        self.validation_tokens = job.task.validation_tokens
        if job.recipe.train.final_eval_tokens:
            self.validation_tokens = min(self.validation_tokens, job.recipe.train.final_eval_tokens)
        self.validation_steps = self.validation_tokens / (2 * tokens_per_batch)

    def tick(self, step_seconds: float) -> float:
        """Count a step that took so long; the share used after it."""
        self.step_seconds = min(step_seconds, 2 * self.step_seconds or step_seconds)
        return self.share()

    def share(self, steps: float = 0.0) -> float:
        """Share used, `steps` steps from now."""
        self.progress.seconds = time.monotonic() - self.began
        if self.steps:
            return (self.progress.step + steps) / self.steps
        reserve = {"validation": self.validation_steps * self.step_seconds} | self.reserve
        # Whatever the size of the validation split, it gets a tenth of the budget and is cut short
        # there.
        reserve["validation"] = min(reserve["validation"], VALIDATION_SHARE * self.seconds)
        usable = self.seconds - min(sum(reserve.values()), self.seconds / 2)
        return (self.progress.seconds + steps * self.step_seconds) / usable

    def schedule_progress(self) -> float:
        """Share at the middle of the next step, counted from the first step on, before which
        nothing was learned."""
        share = self.share(0.5)
        if self.progress.step == 0:
            self.progress.start = 0.0 if self.steps else min(share, 0.99)
        return min(1.0, max(0.0, (share - self.progress.start) / (1 - self.progress.start)))

    def check_usable(self) -> None:
        """Raise `UserError` when a timed budget holds fewer steps than any schedule needs."""
        if self.steps:
            return
        used = self.progress.start * self.seconds
        n_steps = self.progress.step + (1 - self.share()) * self.seconds / self.step_seconds
        least = used + LEAST_STEPS * self.step_seconds / (1 - 2 * VALIDATION_SHARE)
        check(
            n_steps >= LEAST_STEPS,
            f"The budget of {self.seconds:.0f}s holds {n_steps:.0f} steps of "
            f"{self.step_seconds:.1f} s, too few to learn from; write at least --budget "
            f"{math.ceil(1.2 * least)}s, or make the model or the batch smaller.",
        )

    def left(self, final: bool, evals: int) -> float:
        """Return the seconds that a validation may take; infinite unless the budget is a time."""
        if self.steps:
            return math.inf
        if not final:
            return VALIDATION_SHARE * self.seconds / evals
        # The last validation of a run that was trained before.
        if self.progress.seconds >= self.seconds:
            return VALIDATION_SHARE * self.seconds
        return self.seconds - (time.monotonic() - self.began) - self.reserve.get("sample", 0.0)

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
        """A run that ended has nothing left of its budget, so that resuming it trains no
        further."""
        if not self.steps:
            self.progress.seconds = max(self.progress.seconds, self.seconds)


def _milestones(job: Job, clock: _Clock, before: float, after: float) -> Iterator[Event]:
    def crossed(parts: int) -> bool:
        return int(after * parts) > int(before * parts)

    config = job.recipe.train
    if crossed(config.checkpoints):
        yield _save(job, clock)
    if crossed(config.evals):
        yield _validate(job, clock, final=False)
    if config.samples and crossed(config.samples):
        yield _sample(job, clock)


def _save(job: Job, clock: _Clock) -> Saved:
    if not all(parameter.isfinite().all() for parameter in job.model.parameters()):
        raise _diverged(job, f"Weights are no longer numbers after step {job.progress.step}")
    with clock.timed("checkpoint"):
        keep, modules = job.recipe.train.keep, job.task.modules
        folder = save_checkpoint(
            job.log, _published(job), job.tokenizer, job.optimizers, job.progress, keep, modules
        )
    return Saved(job.progress.step, folder)


def _validate(job: Job, clock: _Clock, final: bool) -> Validated:
    train = job.recipe.train
    limit = train.final_eval_tokens if final else train.eval_tokens
    available = job.task.validation_tokens
    tokens = min(available, limit) if limit else available
    with (
        clock.timed("validation", times=max(1.0, clock.validation_tokens / max(1, tokens))),
        interruptible(),
    ):
        evaluation = validate(job, limit, clock.left(final, train.evals))
        metrics = {} if job.task.report is None else job.task.report(_published(job), limit)
    where = {"step": job.progress.step, "tokens": job.progress.tokens}
    measured = ({} if evaluation is None else evaluation.values()) | metrics
    values = {f"val_{name}": value for name, value in measured.items()}
    job.log.record(where | values | {"elapsed_seconds": time.monotonic() - clock.began})
    return Validated(job.progress.step, evaluation, final, metrics)


def validate(job: Job, limit: int, seconds: float = math.inf) -> Evaluation | None:
    """Loss on the validation split, or on about `limit` tokens spread over it where that is not 0.

    After so many `seconds` it is that of what was measured until then. None for a task that has no
    loss to measure, such as reinforcement learning.
    """
    if job.task.measure is None:
        return None
    if not limit and seconds < math.inf:
        limit = job.task.validation_tokens  # in an order of which each beginning is a sample
    batches = _within(seconds, job.task.validation(limit))
    return evaluate(_published(job), job.task.measure, batches, token_lengths(job.tokenizer))


def _within(seconds: float, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield batches until `seconds` have passed; the first one in any case."""
    end = time.perf_counter() + seconds
    for batch in batches:
        yield batch
        if time.perf_counter() >= end:
            return


def _published(job: Job) -> Model:
    """Return the model that a checkpoint holds: validation, samples and checkpoints are of the same
    weights."""
    return job.task.publish() if job.task.publish else job.model


@torch.compiler.set_stance("force_eager")
def _sample(job: Job, clock: _Clock) -> Sampled:
    with clock.timed("sample"), interruptible():
        text = job.task.sample(_published(job))
    job.log.sample(job.progress.step, text)
    return Sampled(job.progress.step, text)
