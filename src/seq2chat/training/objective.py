"""Objectives: what a model is trained to do, as `objective(model, batch) -> (loss_sum, n_tokens)`.

The loop divides the summed loss by the number of labels in the whole step, over accumulation and ranks, so that how a
step is cut into pieces never changes its loss.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from seq2chat.models.bert import BERT
from seq2chat.models.gpt import GPT
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.batch import IGNORED, Batch

Loss = tuple[Float[Tensor, ""], Int[Tensor, ""]]


Nll = Callable[[Tensor, Tensor, Tensor], Tensor]


def nll_sum(
    hidden: Float[Tensor, "*shape d_model"],
    head_weight: Float[Tensor, "vocab d_model"],
    labels: Int[Tensor, "*shape"],
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Summed negative log-likelihood of `labels` in nats; the softmax is float32 whatever the head's format.

    With `smoothing` ε, that of the label weighs 1 - ε and the mean over the vocabulary ε (Szegedy et al. 2015,
    section 7).
    """
    logits = _wide(F.linear(hidden, head_weight.to(hidden.dtype)).flatten(0, -2))
    return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)


def causal_lm(model: GPT, batch: Batch, nll: Nll = nll_sum) -> Loss:
    """Next-token cross-entropy in nats (Radford et al. 2018, equation 1), summed, and the number of labels.

    `nll` may be a compiled `nll_sum`: head and loss in one kernel, without the logits in between.
    """
    hidden = model.hidden(batch.target, batch.segments)
    return nll(hidden, model.head_weight, batch.labels), (batch.labels != IGNORED).sum()


def translation(model: Seq2Seq | Transformer, batch: Batch, label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy in nats of each target token given the source and the target before it (Bahdanau et al. 2014,
    equation 2), summed, and the number of labels."""
    assert batch.source is not None
    hidden = model.hidden(batch.source, batch.target, batch.source_mask)
    asked = batch.labels != IGNORED
    return nll_sum(hidden[asked], model.head_weight, batch.labels[asked], label_smoothing), asked.sum()


def masked_lm(model: BERT, batch: Batch) -> Loss:
    """Cross-entropy in nats of the tokens that were chosen (Devlin et al. 2018, section 3.1), summed, and their number.

    With `batch.is_next` the loss of next-sentence prediction is added. BERT adds the mean over the pairs to the mean
    over the tokens; here each pair weighs as many labels as its row has, so that the sum divided by the number of
    labels is BERT's, however the batch is cut into pieces.
    """
    hidden = model.hidden(batch.target, batch.target_mask, batch.segments)
    asked = batch.labels != IGNORED
    loss = _cross_entropy(model.logits(hidden[asked]), batch.labels[asked]).sum()
    if batch.is_next is not None:
        # Class 0 is "follows", as in the published weights.
        pairs = _cross_entropy(model.next_sentence_logits(hidden), (~batch.is_next).long())
        loss = loss + (asked.sum(1) * pairs).sum()
    return loss, asked.sum()


def _cross_entropy(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return F.cross_entropy(_wide(logits), labels, reduction="none")


def _wide(logits: Float[Tensor, "*shape classes"]) -> Float[Tensor, "*shape classes"]:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
