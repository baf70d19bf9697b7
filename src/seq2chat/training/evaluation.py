"""Loss of a model on text, in the units people compare."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seq2chat.models.folder import Model
from seq2chat.text.batch import IGNORED, Batch
from seq2chat.text.tokenizers import Tokenizer
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.objective import Loss


@dataclass(frozen=True)
class Evaluation:
    """Cross-entropy on a text: `loss_sum` nats over `tokens` tokens, which spell `bytes` bytes and
    `characters`."""

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

    def values(self) -> dict[str, float]:
        """What is measured, by the names of `metrics.jsonl`; by byte and character where tokens
        spell a text."""
        by_token = {"loss": self.loss, "tokens": self.tokens}
        if not self.bytes:
            return by_token
        return by_token | {"bpb": self.bits_per_byte, "loss_per_character": self.loss_per_character}


def token_lengths(tokenizer: Tokenizer) -> Int[Tensor, "vocab 2"]:
    """UTF-8 bytes and characters that each token adds to a text; 0 and 0 for control tokens, and
    for the pieces of a BERT, which guesses some tokens of a text and spells none.

    A character is counted where its first byte is, so the sums are exact even where tokens cut
    characters apart.
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
