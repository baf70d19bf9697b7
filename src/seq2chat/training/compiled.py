"""Compiled training steps, accepted only if their gradients equal the plain ones."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.config import Budget, check
from seq2chat.device import seed_everything, synchronize
from seq2chat.log import Log
from seq2chat.models.folder import CausalLM
from seq2chat.training.language_modeling import LanguageModeling
from seq2chat.training.nll import chunked_nll_sum, nll_sum
from seq2chat.training.types import Job

MIN_SECONDS = 120  # the shortest run that compiling makes faster; docs/log.md
# Fraction of a batch for plain passes, so that they need no more memory than compiled training.
PLAIN_PARTS = 4
# Largest relative distance of gradients that rounding explains. With dropout it is 1, because the
# two draw different masks.
MAX_DISTANCE = 0.1


def compile_steps(job: Job, log: Log) -> bool:
    """Compile the blocks and the loss of `job` if that is requested or pays, and return whether
    they are compiled.

    Training stays plain if the compiler fails or its gradients are wrong.
    """
    train, task = job.recipe.train, job.task
    if not isinstance(task, LanguageModeling):
        align = job.recipe.align
        name = job.model.config.family if align is None else align.method
        check(
            train.compile != "on",
            f"train.compile is for pretraining; for {name} write auto or off.",
        )
        return False
    if not job.parallel.is_alone:
        log("torch.compile off: several processes train without it")
        return False
    is_wanted = train.compile == "on" or (train.compile == "auto" and _pays(job, log))
    is_compiled = is_wanted and _compile(job, task, log)
    seed_everything(train.seed)
    return is_compiled


def _pays(job: Job, log: Log) -> bool:
    train = job.recipe.train
    budget = Budget.parse(train.budget)
    seconds = budget.amount
    if budget.unit != "seconds":
        rows = max(1, train.batch_size // PLAIN_PARTS)
        passes = job.total_steps() * train.accumulation * train.batch_size / rows
        seconds = passes * min(_pass_seconds(job, rows) for _ in range(2))
    if seconds < MIN_SECONDS:
        log(
            f"torch.compile off: the run takes about {seconds:.0f} s, and compiling pays from "
            f"{MIN_SECONDS} s on"
        )
    return seconds >= MIN_SECONDS


def _pass_seconds(job: Job, rows: int) -> float:
    began = time.perf_counter()
    _gradient(job, rows)
    return time.perf_counter() - began


def _compile(job: Job, task: LanguageModeling, log: Log) -> bool:
    """Compile, and compare with the plain gradient.

    Torch's compiler writes vector code for the processor at hand. A wrong kernel shows in nothing
    but a worse loss, or one that is not finite (docs/log.md), so it is tested before use. If the
    processor's own vectors fail, vectors of 256 bits are tried.
    """
    model = job.model
    assert isinstance(model, CausalLM)
    rows = job.recipe.train.batch_size
    reason = "torch.compile gives wrong gradients here"
    with _without_zeros(model):
        expected = _gradient(job, rows, max(1, rows // PLAIN_PARTS))
        for simdlen in (None, 256) if job.device.type == "cpu" else (None,):
            # The compiler reads this again for every new shape, so it stays set during the run.
            torch._inductor.config.cpp.simdlen = simdlen
            # The blocks share one compiled function, which takes a fraction of the time of
            # compiling the whole model.
            for block in model.layers:
                block.compile(dynamic=False)
            task.nll = torch.compile(nll_sum, dynamic=False)
            began = time.perf_counter()
            try:
                gradient = _gradient(job, rows)
            except Exception as error:
                reason = f"torch.compile failed here ({type(error).__name__})"
                break
            distance = (gradient - expected).norm() / expected.norm()
            if distance < (1 if model.config.dropout else MAX_DISTANCE):
                narrower = ", with 256-bit vectors: wider ones gave wrong gradients here"
                seconds = time.perf_counter() - began
                log(f"torch.compile on: ready after {seconds:.0f} s{narrower if simdlen else ''}")
                return True
            torch._dynamo.reset()
    torch._inductor.config.cpp.simdlen = None
    for block in model.layers:
        block._compiled_call_impl = None
    task.nll = chunked_nll_sum
    log(f"{reason}, so training is not compiled.")
    return False


def _gradient(job: Job, rows: int, rows_per_pass: int = 0) -> Float[Tensor, " n_parameters"]:
    """Return the gradient of the first `rows` sequences, computed in passes of `rows_per_pass`; 0
    is one pass."""
    size = rows_per_pass or rows
    for start in range(0, rows, size):
        batch = job.task.loader.batch(start, min(size, rows - start)).to(job.device)
        job.task.loss(job.model, batch)[0].backward()
    synchronize(job.device)
    grads = [p.grad.flatten().float() for p in job.model.parameters() if p.grad is not None]
    job.model.zero_grad(set_to_none=True)
    return torch.cat(grads)


@contextmanager
def _without_zeros(model: CausalLM) -> Iterator[None]:
    """Temporarily fill weights that are initialized to zero, which would hide every gradient behind
    them."""
    zeros = [parameter for parameter in model.parameters() if not parameter.any()]
    try:
        for parameter in zeros:
            torch.nn.init.normal_(parameter, std=0.02)
        yield
    finally:
        for parameter in zeros:
            torch.nn.init.zeros_(parameter)
