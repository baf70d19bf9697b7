"""The negative log-likelihood of labels under the head of a language model: the plain formula, and
a version in chunks that uses less memory."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seq2chat.text.batch import IGNORED

Loss = tuple[Float[Tensor, ""], Int[Tensor, ""]]
"""A loss summed over its labels, in nats, and the number of labels."""

CHUNK_LOGITS = 2**20  # per chunk: 4 MB in float32, which fits a processor's cache
MIN_ROWS = 256  # with fewer, summing the head's gradient would cost more than the products


def nll_sum(
    hidden: Float[Tensor, "*shape d_model"],
    head_weight: Float[Tensor, "vocab d_model"],
    labels: Int[Tensor, "*shape"],
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Return the summed negative log-likelihood of `labels` in nats. The softmax is float32 for
    heads of lower precision.

    With `smoothing` ε, the label has weight 1 - ε, and the mean over the vocabulary has weight ε
    (Szegedy et al. 2015, section 7).
    """
    logits = wide(F.linear(hidden, head_weight.to(hidden.dtype)).flatten(0, -2))
    return F.cross_entropy(
        logits, labels.flatten(), ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing
    )


def chunked_nll_sum(
    hidden: Float[Tensor, "*shape d_model"],
    head_weight: Float[Tensor, "vocab d_model"],
    labels: Int[Tensor, "*shape"],
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Return `nll_sum`, computed for a few rows at a time, together with the gradients.

    The logits of a whole batch are by far the largest tensors of a small model. Their memory would
    be mapped and zeroed again in every step, which takes longer than the matrix products
    (docs/log.md).
    """
    hidden = hidden.flatten(0, -2)
    labels = labels.flatten()
    if torch.is_grad_enabled() and (hidden.requires_grad or head_weight.requires_grad):
        return _ChunkedNLL.apply(hidden, head_weight, labels, smoothing)
    weight = head_weight.to(hidden.dtype)
    loss = torch.zeros((), dtype=_wide_dtype(hidden.dtype), device=hidden.device)
    for rows in _chunks(len(hidden), len(weight)):
        loss += nll_sum(hidden[rows], weight, labels[rows], smoothing)
    return loss


class _ChunkedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head_weight: Tensor, labels: Tensor, smoothing: float
    ) -> Tensor:
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        weight = head_weight.to(hidden.dtype)
        wide_dtype = _wide_dtype(hidden.dtype)
        loss = torch.zeros((), dtype=wide_dtype, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=wide_dtype) if needs_weight else None
        for rows in _chunks(len(hidden), len(weight)):
            logits = F.linear(hidden[rows], weight)
            logits = logits.to(wide_dtype)
            chunk_loss, logits_grad = _loss_and_gradient(logits, labels[rows], smoothing)
            loss += chunk_loss
            logits_grad = logits_grad.to(hidden.dtype)
            if hidden_grad is not None:
                torch.mm(logits_grad, weight, out=hidden_grad[rows])
            if weight_grad is not None:
                weight_grad += logits_grad.T @ hidden[rows]
        if weight_grad is not None:
            weight_grad = weight_grad.to(head_weight.dtype)
        ctx.save_for_backward(hidden_grad, weight_grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]  # the decorator hides its names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_grad, weight_grad = (
            None if grad is None else grad * grad_outputs[0].to(grad.dtype)
            for grad in ctx.saved_tensors
        )
        return hidden_grad, weight_grad, None, None


def _loss_and_gradient(
    logits: Float[Tensor, "rows vocab"], labels: Int[Tensor, " rows"], smoothing: float
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows vocab"]]:
    """Return the summed loss and its gradient softmax(logits) - target, which overwrites the
    logits."""
    vocab = logits.shape[1]
    is_label = labels != IGNORED
    index = labels.where(is_label, 0)[:, None]
    normalizer = logits.logsumexp(1)
    loss = normalizer - (1 - smoothing) * logits.gather(1, index)[:, 0]
    if smoothing:
        loss -= smoothing * logits.mean(1)
    gradient = logits.sub_(normalizer[:, None]).exp_()
    if smoothing:
        gradient -= smoothing / vocab
    gradient.scatter_add_(1, index, gradient.new_full(index.shape, smoothing - 1))
    return loss.where(is_label, 0).sum(), gradient.mul_(is_label[:, None])


def _chunks(n_rows: int, vocab: int) -> list[slice]:
    rows = max(MIN_ROWS, CHUNK_LOGITS // vocab)
    return [slice(start, start + rows) for start in range(0, n_rows, rows)]


def wide(logits: Float[Tensor, "*shape classes"]) -> Float[Tensor, "*shape classes"]:
    """Return the logits in float32, or in float64 if they already are."""
    return logits.to(_wide_dtype(logits.dtype))


def _wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
