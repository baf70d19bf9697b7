"""Objectives: what a model is trained to do, as `objective(model, batch) -> (loss_sum, n_tokens)`.

The loop divides the summed loss by the number of labels in the whole step, over accumulation and ranks, so that how a
step is cut into pieces never changes its loss.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from seq2chat.text.batch import IGNORED, Batch

Loss = tuple[Float[Tensor, ""], Int[Tensor, ""]]


def causal_lm(model: nn.Module, batch: Batch) -> Loss:
    """Next-token cross-entropy in nats (Radford et al. 2018, equation 1), summed, and the number of labels."""
    logits = model(batch.target, batch.segments)
    loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return loss, (batch.labels != IGNORED).sum()
