"""Tools of the measured topics: synthetic tasks, a short training, and the exact-match metric."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from seq2chat.config import Seq2SeqConfig, TransformerConfig
from seq2chat.course.results import check_positive
from seq2chat.models.folder import make_model
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.batch import IGNORED, Batch
from seq2chat.text.parallel import pair_batch
from seq2chat.training.nll import Loss

EOS = 0
PAD = 1
FIRST = 2  # the first symbol

Progress = Callable[[int, int], None]
EncoderDecoder = Seq2Seq | Transformer
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Case:
    """One training: the name of the model, and the seed of its weights and data."""

    model: str
    seed: int


def cases(models: Sequence[str], seeds: int) -> list[Case]:
    """Return the cases of all `models` for seeds 0 to `seeds` - 1. Raises UserError for less than
    one seed."""
    check_positive(seeds=seeds)
    return [Case(model, seed) for seed in range(seeds) for model in models]


def repetition(
    task: str, lengths: Int64[Tensor, " n"], n_symbol: int, generator: torch.Generator
) -> Batch:
    """Return random sequences of these lengths, and as targets the same sequences ("copy") or
    reversed ones ("reverse")."""
    symbols = [
        torch.randint(FIRST, FIRST + n_symbol, (n,), generator=generator).tolist()
        for n in lengths.tolist()
    ]
    targets = symbols if task == "copy" else [row[::-1] for row in symbols]
    return pair_batch(symbols, targets, EOS, PAD)


def make(config: Seq2SeqConfig | TransformerConfig, seed: int) -> EncoderDecoder:
    """Return a new model of that shape, with weights that depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make_model(config)
    assert isinstance(model, EncoderDecoder)
    return model


def fit(
    model: M,
    objective: Callable[[M, Batch], Loss],
    batches: Iterator[Batch],
    steps: int,
    lr: float,
    progress: Progress | None = None,
) -> None:
    """Train for `steps` batches with AdamW and gradients clipped to 1, and leave the model in
    evaluation mode.

    The learning rate rises to `lr` in a tenth of the steps, and then falls linearly to zero.
    `progress(step, steps)` is called after each step.
    """
    warmup = max(1, steps // 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    model.train()
    for step in range(steps):
        share = min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))
        for group in optimizer.param_groups:
            group["lr"] = lr * share
        loss, n_tokens = objective(model, next(batches))
        (loss / n_tokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if progress is not None:
            progress(step + 1, steps)
    model.eval()


@torch.inference_mode()
def exact_match(model: EncoderDecoder, batch: Batch) -> float:
    """Return the share of rows that greedy decoding reproduces exactly, including the end.

    Greedy decoding reproduces the target exactly if the most probable token after each true prefix
    is the next true one, so one pass over the target is enough.
    """
    assert batch.source is not None
    predictions = model(batch.source, batch.target, batch.source_mask).argmax(-1)
    is_right = (predictions == batch.labels) | (batch.labels == IGNORED)
    return is_right.all(1).double().mean().item()
