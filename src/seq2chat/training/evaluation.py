"""The loss of a model on text, in comparable units."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from seq2chat.generation.decode import evaluating
from seq2chat.models.folder import Model
from seq2chat.text.batch import IGNORED, Batch
from seq2chat.text.tokenizers import Tokenizer
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.nll import Loss
from seq2chat.training.parallel import SINGLE, Parallel, full
from seq2chat.training.processes import agree, alive


@dataclass(frozen=True)
class Evaluation:
    """Cross-entropy on a text: `loss_sum` nats over `tokens` tokens, which decode to `bytes` bytes
    and `characters` characters."""

    loss_sum: float
    tokens: int
    bytes: int
    characters: int

    @property
    def loss(self) -> float:
        """Nats per token, which depends on the tokenizer."""
        return self.loss_sum / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte, comparable between tokenizers and languages."""
        return self.loss_sum / self.bytes / math.log(2)

    @property
    def loss_per_character(self) -> float:
        """Nats per character, the loss of character-level models."""
        return self.loss_sum / self.characters

    def values(self) -> dict[str, float]:
        """Return the values by their names in `metrics.jsonl`. Rates per byte and character are
        included if the tokens decode to a text."""
        by_token = {"loss": self.loss, "tokens": self.tokens}
        if not self.bytes:
            return by_token
        return by_token | {"bpb": self.bits_per_byte, "loss_per_character": self.loss_per_character}


def token_lengths(tokenizer: Tokenizer) -> Int[Tensor, "vocab 2"]:
    """Return the number of UTF-8 bytes and characters of each token.

    Both are 0 for control tokens and for WordPiece, because a BERT predicts single tokens and no
    text. A character is counted at its first byte, so sums are exact even if a token boundary
    splits a character.
    """
    if isinstance(tokenizer, WordPiece):
        return torch.zeros(tokenizer.vocab_size, 2, dtype=torch.int64)
    control = set(tokenizer.control.values())
    pieces = [
        b"" if i in control else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)
    ]
    return torch.tensor(
        [(len(piece), sum(byte & 0xC0 != 0x80 for byte in piece)) for piece in pieces]
    )


# Another mode and other shapes than training's: not worth compiling.
@torch.compiler.set_stance("force_eager")
@torch.inference_mode()
def evaluate(
    model: Model,
    objective: Callable[[Any, Batch], Loss],
    batches: Iterable[Batch],
    lengths: Int[Tensor, "vocab 2"],
    seconds: float = math.inf,
    parallel: Parallel = SINGLE,
) -> Evaluation:
    """Return the loss of `model` over `batches`, or over those that take `seconds`, with dropout
    off. Several processes share the batches."""
    device = next(model.parameters()).device
    loss_sum = 0.0
    n_tokens = 0
    size = torch.zeros(2, dtype=torch.int64)
    with evaluating(model):
        for batch, counts in within(seconds, parallel.deal(batches)):
            with parallel.computing():
                loss, n = objective(model, batch.to(device))
            if counts:
                loss_sum += full(loss).item()
                n_tokens += int(n)
                size += lengths[batch.labels[batch.labels != IGNORED]].sum(0)
    counts = torch.tensor([loss_sum, n_tokens, *size.tolist()], dtype=torch.float64)
    sums = parallel.total(*(counts.to(device) if parallel.size > 1 else counts))
    return Evaluation(sums[0].item(), *(int(value) for value in sums[1:]))


Item = TypeVar("Item")


def within(seconds: float, items: Iterable[Item]) -> Iterator[Item]:
    """Yield items until `seconds` have passed on process 0, and at least one."""
    end = time.perf_counter() + seconds
    for item in items:
        yield item
        alive()
        if seconds < math.inf and agree(time.perf_counter() >= end):
            return
