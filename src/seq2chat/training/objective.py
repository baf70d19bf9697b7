"""Objectives: what a model is trained to do, as `objective(model, batch) -> (loss_sum, n_tokens)`.

The loop divides the summed loss by the number of labels in the whole step, over accumulation and
ranks, so that how a step is cut into pieces never changes its loss.
"""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from seq2chat.models.bert import BERT
from seq2chat.models.gpt import GPT
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.batch import IGNORED, Batch
from seq2chat.training.nll import chunked_nll_sum, wide

Loss = tuple[Float[Tensor, ""], Int[Tensor, ""]]


Nll = Callable[[Tensor, Tensor, Tensor], Tensor]


def causal_lm(model: GPT, batch: Batch, nll: Nll = chunked_nll_sum) -> Loss:
    """Next-token cross-entropy in nats (Radford et al. 2018, equation 1), summed, and the number of
    labels.

    `nll` may be a compiled `nll_sum`: head and loss in one kernel.
    """
    hidden = model.hidden(batch.target, batch.segments)
    return nll(hidden, model.head_weight, batch.labels), (batch.labels != IGNORED).sum()


def translation(model: Seq2Seq | Transformer, batch: Batch, label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy in nats of each target token given the source and the target before it
    (Bahdanau et al. 2014, equation 2), summed, and the number of labels."""
    assert batch.source is not None
    hidden = model.hidden(batch.source, batch.target, batch.source_mask)
    asked = batch.labels != IGNORED
    return (
        chunked_nll_sum(hidden[asked], model.head_weight, batch.labels[asked], label_smoothing),
        asked.sum(),
    )


def masked_lm(model: BERT, batch: Batch) -> Loss:
    """Cross-entropy in nats of the tokens that were chosen (Devlin et al. 2018, section 3.1),
    summed, and their number.

    With `batch.is_next` the loss of next-sentence prediction is added. BERT adds the mean over the
    pairs to the mean over the tokens; here each pair weighs as many labels as its row has, so that
    the sum divided by the number of labels is BERT's, however the batch is cut into pieces.
    """
    hidden = model.hidden(batch.target, batch.target_mask, batch.segments)
    asked = batch.labels != IGNORED
    loss = _cross_entropy(model.logits(hidden[asked]), batch.labels[asked]).sum()
    if batch.is_next is not None:
        # Class 0 is "follows", as in the published weights.
        pairs = _cross_entropy(model.next_sentence_logits(hidden), (~batch.is_next).long())
        loss = loss + (asked.sum(1) * pairs).sum()
    return loss, asked.sum()


def _cross_entropy(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    return F.cross_entropy(wide(logits), labels, reduction="none")
