"""The pretraining mix: each update also learns from the text of pretraining, so that alignment
forgets less of it (Ouyang et al. 2022, section 3.5, equation 2, the term γ; appendix C.3 for the
policy that PPO begins with)."""

import torch
from torch import Tensor

from seq2chat.config import Recipe
from seq2chat.models.gpt import GPT
from seq2chat.text.batch import Loader
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.corpus import load_corpus
from seq2chat.text.shards import cached_shards, open_shards
from seq2chat.training.loop import Job, Update, apply_gradients
from seq2chat.training.objective import causal_lm
from seq2chat.training.tasks import Say


def pretraining_text(recipe: Recipe, tokenizer: ByteBPE, context: int, doing: Say) -> Loader | None:
    """Return what deals windows of `align.ptx_corpus`, or None where nothing is mixed in."""
    if not recipe.align.ptx:
        return None
    folder = cached_shards(
        load_corpus(recipe.align.ptx_corpus, recipe.data.field),
        tokenizer,
        recipe.data.val_fraction,
        progress=lambda n: doing(f"tokenizing: {n:,} characters"),
    )
    return Loader(open_shards(folder, "train"), context, recipe.train.seed)


def add_pretraining(
    job: Job, policy: GPT, text: Loader, update: int, n: Tensor
) -> tuple[float, int]:
    """Add the gradient of `align.ptx` times the mean pretraining loss, on the windows that belong
    to this `update` of the run, to the gradients in the buffers, which will be divided by `n`.
    Returns that loss in nats, and the floating point operations.

    One buffer, and so one optimizer step: in two steps Adam would cancel most of the weight.
    """
    size = job.recipe.align.ptx_batch
    batch = text.batch(update * size, size).to(job.device)
    loss, tokens = causal_lm(policy, batch)
    (loss * (job.recipe.align.ptx * n / tokens)).backward()
    return (loss.detach() / tokens).item(), policy.flops(batch)


def mixed_step(job: Job, text: Loader) -> Update:
    """One optimizer step on the task's batch and windows of pretraining text together."""
    size, progress = job.recipe.train.batch_size, job.progress
    assert isinstance(job.model, GPT)
    batch = job.task.loader.batch(progress.samples, size).to(job.device)
    progress.samples += size
    loss, n = job.objective(job.model, batch)
    loss.backward()
    ptx_loss, flops = add_pretraining(job, job.model, text, progress.step, n)
    mean, norm = apply_gradients(job, job.optimizers, loss.detach(), torch.as_tensor(n))
    return Update(mean, norm, int(n), flops + job.model.flops(batch), {"ptx_loss": ptx_loss})
