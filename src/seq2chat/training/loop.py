"""The training loop: one for all tasks."""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import torch

from seq2chat.config import UserError
from seq2chat.training.clock import Clock
from seq2chat.training.parallel import whole
from seq2chat.training.processes import AgreedEvent
from seq2chat.training.saving import begin_checkpoint
from seq2chat.training.schedule import rate
from seq2chat.training.stop import Stopped, interruptible
from seq2chat.training.types import (
    Event,
    Job,
    Sampled,
    Saved,
    Step,
    Straggler,
    Update,
    Validated,
)


def train(job: Job, stop: threading.Event) -> Iterator[Event]:
    """Train `job` from its current step to the end of its budget, or until `stop` is set, and yield
    an event per step and milestone.

    Every milestone saves before it evaluates. A checkpoint is written while training continues,
    so its event comes before the next checkpoint, and the last one's before the last validation.

    Raises UserError if the loss diverges, if a checkpoint can't be written, or if a timed budget
    holds too few steps to learn from. The weights on disk are those of the last checkpoint then,
    and the files of a new run are deleted. A finished run yields nothing.

    Several processes of a run each call it, and take the same way through it.
    """
    stopped = AgreedEvent(stop)
    clock = Clock(job)
    if clock.is_over() and job.run.is_validated(job.progress.step):
        return
    # A signal interrupts a step only where nothing has changed yet, and a milestone only after the
    # weights are saved.
    try:
        with suppress(Stopped):
            yield from _steps(job, clock, stopped)
        is_over = clock.is_over()
        if is_over:
            clock.use_up()
        yield from _save(job, clock)
        yield from _saved(job, clock)
    finally:
        # An error, or a caller that wants no more events, must not leave a thread behind.
        if job.saving is not None:
            job.saving.join()
    if is_over and not stopped.is_set():
        with suppress(Stopped):
            yield _validate(job, clock, final=True)
            if job.recipe.train.samples:
                yield _sample(job, clock)


def is_over(job: Job) -> bool:
    """Return whether the budget of `job` is used up."""
    return Clock(job).is_over()


def _steps(job: Job, clock: Clock, stop: AgreedEvent) -> Iterator[Event]:
    progress = job.progress
    first = progress.step
    share_before = clock.share()
    job.model.train()
    while not clock.is_over() and not stop.is_set():
        began = time.perf_counter()
        multiplier = rate(job.recipe.schedule, clock.schedule_progress())
        for optimizer in job.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * multiplier
        update = job.task.step(job)
        progress.step += 1
        progress.tokens += update.n_tokens
        seconds = time.perf_counter() - began
        share = clock.tick(seconds)
        yield _record(job, update, multiplier, seconds, share)
        if job.saving is not None:
            clock.expect("checkpoint", job.saving.seconds)
            if job.saving.error is not None:
                stop.event.set()  # all processes end before the next step, and raise it together
        yield from _stragglers(job)
        # The first step is slow, so its duration is used only if there is no second one.
        if progress.step == first + 2:
            _check_usable(job, clock, stop)
        if clock.is_over():
            break
        yield from _milestones(job, clock, share_before, share)
        share_before = max(share_before, share)
    if progress.step == first + 1:
        _check_usable(job, clock, stop)


def _stragglers(job: Job) -> Iterator[Event]:
    """Record each process that has become slow, and yield its event."""
    if job.stopwatch is None:
        return
    step = job.progress.step
    for sentence in job.stopwatch.after_step(step):
        job.run.event("straggler", sentence, step=step)
        yield Straggler(step, sentence)


def _check_usable(job: Job, clock: Clock, stop: AgreedEvent) -> None:
    """Raise UserError for a budget of too few steps. A new run leaves nothing behind then, so that
    the corrected command can use its folder."""
    if stop.is_set():
        return
    try:
        clock.check_usable()
    except UserError:
        if job.is_new:
            if job.saving is not None:
                job.saving.join()  # it would go on writing into the deleted folder
            job.run.discard()
        raise


def _record(job: Job, update: Update, multiplier: float, seconds: float, share: float) -> Step:
    """Append the step to the metrics of the run, and return its event."""
    step = Step(
        step=job.progress.step,
        tokens=job.progress.tokens,
        loss=update.loss,
        lr=job.recipe.optim.matrix_lr * multiplier,
        grad_norm=update.grad_norm,
        tokens_per_second=update.n_tokens / seconds,
        peak_share=update.flops / seconds / job.precision.peak_flops,
        elapsed_seconds=job.progress.seconds,
        share=min(1.0, share),
        metrics=update.metrics,
    )
    values = {key: v for key, v in vars(step).items() if key not in ("share", "metrics")}
    job.run.record(values | update.metrics)
    return step


def _milestones(job: Job, clock: Clock, before: float, after: float) -> Iterator[Event]:
    def is_due(times: int) -> bool:
        return int(after * times) > int(before * times)

    config = job.recipe.train
    if is_due(config.checkpoints):
        yield from _save(job, clock)
    if is_due(config.evals):
        yield _validate(job, clock, final=False)
    if config.samples and is_due(config.samples):
        yield _sample(job, clock)


def _save(job: Job, clock: Clock) -> Iterator[Event]:
    """Begin to write a checkpoint, after the one before is complete."""
    step = job.progress.step
    yield from _saved(job, clock)
    if not job.is_finite():
        raise job.diverged(f"Weights are NaN or infinite after step {step}")
    job.saving = begin_checkpoint(
        job.run,
        job.task.published(),
        job.tokenizer,
        job.optimizers,
        job.progress,
        keep=job.recipe.train.keep,
        modules=job.task.modules(),
    )


def _saved(job: Job, clock: Clock) -> Iterator[Event]:
    """Wait for the checkpoint that is being written, if there is one."""
    saving = job.saving
    if saving is not None:
        saving.wait()
        clock.expect("checkpoint", saving.seconds)
        job.saving = None
        yield Saved(saving.step, saving.folder)


def _validate(job: Job, clock: Clock, final: bool) -> Validated:
    train = job.recipe.train
    limit = train.final_eval_tokens if final else train.eval_tokens
    available = job.task.validation_tokens
    n_tokens = min(available, limit) if limit else available
    # The last validation takes longer than this one by the ratio of their sizes.
    times = max(1.0, clock.validation_tokens / max(1, n_tokens))
    with clock.timed("validation", times), interruptible():
        seconds = clock.validation_seconds(final, train.evals)
        evaluation, metrics = job.task.validate(limit, seconds)
    values = ({} if evaluation is None else evaluation.values()) | metrics
    job.run.record(
        {"step": job.progress.step, "tokens": job.progress.tokens}
        | {f"val_{name}": value for name, value in values.items()}
        | {"elapsed_seconds": time.monotonic() - clock.began}
    )
    return Validated(job.progress.step, evaluation, final, metrics)


# Generation has other shapes than training, and is not worth compiling.
@torch.compiler.set_stance("force_eager")
def _sample(job: Job, clock: Clock) -> Sampled:
    with clock.timed("sample"), interruptible():
        text = job.task.sample(whole(job.task.published()))
    job.run.sample(job.progress.step, text)
    return Sampled(job.progress.step, text)
