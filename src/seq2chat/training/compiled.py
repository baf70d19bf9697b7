"""Compiled training steps, accepted only where their gradients are those of the plain ones."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.config import Budget, check
from seq2chat.device import seed_everything, synchronize
from seq2chat.models.gpt import GPT
from seq2chat.training.loop import Job, total_steps
from seq2chat.training.nll import nll_sum
from seq2chat.training.objective import causal_lm
from seq2chat.training.tasks import Say

COMPILE_PAYS = 120  # seconds of the shortest run in which it does; docs/log.md
# Of a batch: plain passes over parts of it leave the memory of one over all of it unused.
PLAIN_PARTS = 4
FARTHEST = 0.1  # of the gradient's norm that rounding explains; with dropout, whose draws differ, 1


def compile_steps(job: Job, say: Say) -> bool:
    """Compile the blocks and the loss of `job` if that is asked for or pays. Returns whether they
    are compiled.

    Training stays plain where the compiler fails or its gradients are wrong.
    """
    train, model = job.recipe.train, job.model
    if not isinstance(model, GPT) or job.recipe.align.method:
        family = job.recipe.align.method or model.config.family
        check(
            train.compile != "on",
            f"train.compile is for pretraining a GPT; for {family} write auto or off.",
        )
        return False
    is_wanted = train.compile == "on" or (train.compile == "auto" and _pays(job, say))
    is_compiled = is_wanted and _compile(job, model, say)
    seed_everything(train.seed)
    return is_compiled


def _pays(job: Job, say: Say) -> bool:
    train, budget = job.recipe.train, Budget.parse(job.recipe.train.budget)
    seconds = budget.amount
    if budget.unit != "seconds":
        rows = max(1, train.batch_size // PLAIN_PARTS)
        passes = total_steps(job) * train.accumulation * train.batch_size / rows
        seconds = passes * min(_seconds_of_a_pass(job, rows) for _ in range(2))
    if seconds < COMPILE_PAYS:
        say(
            f"torch.compile off: the run takes about {seconds:.0f} s, and compiling pays from "
            f"{COMPILE_PAYS} s on"
        )
    return seconds >= COMPILE_PAYS


def _seconds_of_a_pass(job: Job, rows: int) -> float:
    began = time.perf_counter()
    _gradient(job, rows)
    return time.perf_counter() - began


def _compile(job: Job, model: GPT, say: Say) -> bool:
    """Compile and compare with the plain gradient.

    Torch's compiler writes vector code for the processor it finds, and a wrong kernel shows in
    nothing but a loss that is not finite, or is worse (docs/log.md). Vectors of 256 bits are tried
    where the processor's own fail.
    """
    plain, rows = job.objective, job.recipe.train.batch_size
    reason = "torch.compile gives wrong gradients here"
    with _without_zeros(model):
        expected = _gradient(job, rows, max(1, rows // PLAIN_PARTS))
        for simdlen in (None, 256) if job.device.type == "cpu" else (None,):
            # Read again whenever another shape is compiled.
            torch._inductor.config.cpp.simdlen = simdlen
            # The blocks share one compiled function, so this takes a fraction of compiling the
            # model whole.
            for block in model.layers:
                block.compile(dynamic=False)
            job.objective = partial(causal_lm, nll=torch.compile(nll_sum, dynamic=False))
            began = time.perf_counter()
            try:
                gradient = _gradient(job, rows)
            except Exception as error:
                reason = f"torch.compile failed here ({type(error).__name__})"
                break
            distance = (gradient - expected).norm() / expected.norm()
            if distance < (1 if model.config.dropout else FARTHEST):
                width = (
                    ""
                    if simdlen is None
                    else ", with narrower vectors: wider ones gave wrong gradients here"
                )
                say(f"torch.compile on: ready after {time.perf_counter() - began:.0f} s{width}")
                return True
            torch._dynamo.reset()
    torch._inductor.config.cpp.simdlen = None
    for block in model.layers:
        block._compiled_call_impl = None
    job.objective = plain
    say(f"{reason}, so training is not compiled.")
    return False


def _gradient(job: Job, rows: int, at_once: int = 0) -> Float[Tensor, " n_parameters"]:
    """Return the gradient of the first `rows` sequences, with `at_once` of them in a pass (0 takes
    all)."""
    for start in range(0, rows, at_once or rows):
        batch = job.task.loader.batch(start, min(at_once or rows, rows - start)).to(job.device)
        job.objective(job.model, batch)[0].backward()
    synchronize(job.device)
    gradient = torch.cat(
        [p.grad.flatten().float() for p in job.model.parameters() if p.grad is not None]
    )
    job.model.zero_grad(set_to_none=True)
    return gradient


@contextmanager
def _without_zeros(model: GPT) -> Iterator[None]:
    """Fill weights that begin as zeros for a while: nothing would pass backward through them."""
    zeros = [parameter for parameter in model.parameters() if not parameter.any()]
    try:
        for parameter in zeros:
            torch.nn.init.normal_(parameter, std=0.02)
        yield
    finally:
        for parameter in zeros:
            torch.nn.init.zeros_(parameter)
