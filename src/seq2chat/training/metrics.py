"""Loss of a model on text, in the units people compare."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from seq2chat.config import Recipe, check
from seq2chat.device import pick_device, pick_precision
from seq2chat.models.gpt import GPT
from seq2chat.text.batch import IGNORED, Batch, evaluation_batches
from seq2chat.text.corpus import load_corpus
from seq2chat.text.shards import shards_in_memory, split_texts
from seq2chat.text.tokenizer import Tokenizer
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.objective import Loss, causal_lm
from seq2chat.training.runlog import open_run


@dataclass(frozen=True)
class Evaluation:
    """Cross-entropy on a text: `loss_sum` nats over `tokens` tokens, which spell `bytes` bytes and `characters`."""

    loss_sum: float
    tokens: int
    bytes: int
    characters: int

    @property
    def loss(self) -> float:
        """Nats per token; depends on the tokenizer."""
        return self.loss_sum / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte: comparable between tokenizers and languages."""
        return self.loss_sum / self.bytes / math.log(2)

    @property
    def loss_per_character(self) -> float:
        """Nats per character: what character-level models report as their loss."""
        return self.loss_sum / self.characters


def token_lengths(tokenizer: Tokenizer) -> Int[Tensor, "vocab 2"]:
    """UTF-8 bytes and characters that each token adds to a text; 0 and 0 for control tokens.

    A character is counted where its first byte is, so the sums are exact even where tokens cut characters apart.
    """
    control = set(tokenizer.control.values())
    pieces = [b"" if i in control else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    return torch.tensor([(len(piece), sum(byte & 0xC0 != 0x80 for byte in piece)) for piece in pieces])


@torch.compiler.set_stance("force_eager")  # another mode and other shapes than training's: not worth compiling
@torch.inference_mode()
def evaluate(
    model: GPT,
    objective: Callable[[GPT, Batch], Loss],
    batches: Iterable[Batch],
    lengths: Int[Tensor, "vocab 2"],
) -> Evaluation:
    """Loss of `model` over `batches`, with dropout off; leaves the model in the mode it was in."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    loss_sum, n_tokens, size = 0.0, 0, torch.zeros(2, dtype=torch.int64)
    for batch in batches:
        loss, n = objective(model, batch.to(device))
        loss_sum, n_tokens = loss_sum + loss.item(), n_tokens + int(n)
        size += lengths[batch.labels[batch.labels != IGNORED]].sum(0)
    model.train(was_training)
    return Evaluation(loss_sum, n_tokens, *size.tolist())


def evaluate_text(
    path: Path,
    data: str,
    batch_size: int,
    context: int | None,
    watch: Callable[[Iterable[Batch], int], Iterable[Batch]],
) -> Evaluation:
    """Loss of the run or model folder `path` on the corpus or file `data`; on the run's own validation split if empty.

    Every token is scored once, in windows of `context` tokens that don't overlap. `watch(batches, number)` passes the
    batches on, for a progress display. Raises `UserError` for text or folders that can't be used.
    """
    model, tokenizer = load_checkpoint(path)
    device = pick_device()
    recipe = open_run(path).recipe() if not data or (path / "config.toml").exists() else Recipe()
    if data:
        texts = load_corpus(data, recipe.data.field).documents()
    else:
        corpus = load_corpus(recipe.data.corpus, recipe.data.field)
        texts = split_texts(corpus, recipe.data.val_fraction, "val")
    context = model.config.context if context is None else context
    check(batch_size > 0, f"--batch-size is {batch_size}; write a positive number.")
    check(
        0 < context <= model.config.context,
        f"--context is {context}; write at most {model.config.context}, the model's own.",
    )
    shards = shards_in_memory(texts, tokenizer)
    batches = evaluation_batches(shards, context, batch_size, recipe.data.document_mask)
    batches = watch(batches, -(-(shards.n_tokens - 1) // (batch_size * context)))
    model.to(device).compute_dtype = pick_precision("auto", device).dtype
    return evaluate(model, causal_lm, batches, token_lengths(tokenizer))
