"""Objectives: what a model is trained to do, as `objective(model, batch) -> (loss_sum, n_tokens)`.

The loop divides the summed loss by the number of labels in the whole step, over accumulation and ranks, so that how a
step is cut into pieces never changes its loss.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from seq2chat.models.gpt import GPT
from seq2chat.text.batch import IGNORED, Batch

Loss = tuple[Float[Tensor, ""], Int[Tensor, ""]]


Nll = Callable[[Tensor, Tensor, Tensor], Tensor]


def nll_sum(
    hidden: Float[Tensor, "batch seq d_model"],
    head_weight: Float[Tensor, "vocab d_model"],
    labels: Int[Tensor, "batch seq"],
) -> Float[Tensor, ""]:
    """Summed negative log-likelihood of `labels` in nats; the softmax is float32 whatever the head's format."""
    logits = F.linear(hidden, head_weight.to(hidden.dtype)).flatten(0, 1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum")


def causal_lm(model: GPT, batch: Batch, nll: Nll = nll_sum) -> Loss:
    """Next-token cross-entropy in nats (Radford et al. 2018, equation 1), summed, and the number of labels.

    `nll` may be a compiled `nll_sum`: head and loss in one kernel, without the logits in between.
    """
    hidden = model.hidden(batch.target, batch.segments)
    return nll(hidden, model.head_weight, batch.labels), (batch.labels != IGNORED).sum()
