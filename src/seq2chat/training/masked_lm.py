"""Masked language modeling: a BERT predicts hidden tokens (Devlin et al. 2018)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from seq2chat.config import BERTConfig, Recipe, check
from seq2chat.generation.decode import evaluating
from seq2chat.models.bert import BERT
from seq2chat.text.batch import IGNORED, Batch
from seq2chat.text.masked import MaskedLoader, masked_evaluation_batches
from seq2chat.text.mixed import TrainingText, mixed
from seq2chat.text.shards import Shards
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.nll import Loss, wide
from seq2chat.training.types import Task


def masked_lm(model: BERT, batch: Batch) -> Loss:
    """Return the summed cross-entropy in nats of the selected tokens (Devlin et al. 2018, section
    3.1) and their number.

    With `batch.is_next`, the loss of next-sentence prediction is added. BERT adds the mean over the
    pairs to the mean over the tokens. Here each pair is weighted by the number of labels in its
    row, so that the sum divided by the number of labels equals BERT's loss for any split of the
    batch.
    """
    hidden = model.hidden(batch.target, batch.target_mask, batch.segments)
    is_label = batch.labels != IGNORED
    loss = _cross_entropy(model.logits(hidden[is_label]), batch.labels[is_label]).sum()
    if batch.is_next is not None:
        # Class 0 is "follows", as in the published weights.
        pairs = _cross_entropy(model.next_sentence_logits(hidden), (~batch.is_next).long())
        loss = loss + (is_label.sum(1) * pairs).sum()
    return loss, is_label.sum()


class MaskedLM(Task[BERT, WordPiece]):
    """Pretraining of a BERT on windows of text."""

    def __init__(
        self, recipe: Recipe, model: BERT, tokenizer: WordPiece, train: TrainingText, val: Shards
    ) -> None:
        config = recipe.model
        assert isinstance(config, BERTConfig)
        check(
            config.masked_lm,
            "model.masked_lm is false, but a BERT is trained through that head; leave it out.",
        )
        self.context = config.context
        loader = mixed(
            train,
            lambda shards: MaskedLoader(
                shards,
                config.context,
                recipe.train.seed,
                tokenizer,
                mask_share=recipe.data.mask_share,
                next_sentence=config.next_sentence,
            ),
        )
        super().__init__(recipe, model, tokenizer, loader, val.n_tokens)
        self.val = val

    def loss(self, model: BERT, batch: Batch) -> Loss:
        return masked_lm(model, batch)

    def validation_batches(self, limit: int) -> Iterator[Batch]:
        return self._batches(self.rows_per_pass, limit)

    def _batches(self, batch_size: int, limit: int = 0) -> Iterator[Batch]:
        return masked_evaluation_batches(self.val, self.context, batch_size, self.tokenizer, limit)

    @torch.inference_mode()
    def sample(self, model: Any) -> str:
        batch = next(self._batches(batch_size=1)).to(model.device)
        is_label = batch.labels[0] != IGNORED
        with evaluating(model):
            hidden = model.hidden(batch.target, batch.target_mask)
            predictions = model.logits(hidden[0][is_label]).argmax(-1)
        original = torch.where(is_label, batch.labels[0], batch.target[0])
        pairs = zip(batch.labels[0][is_label].tolist(), predictions.tolist(), strict=True)
        token = self.tokenizer.token
        changes = ", ".join(f"{token(label)} → {token(prediction)}" for label, prediction in pairs)
        return f"{self.tokenizer.decode(original.tolist())}\n{changes}"


def unknown_share(shards: Shards, tokenizer: WordPiece) -> float:
    """Return the share of [UNK] among the tokens, estimated from a thousand places of the text."""
    n_places = min(1000, shards.n_tokens)
    places = np.linspace(0, shards.n_tokens - 1, n_places).astype(int).tolist()
    parts = [shards.read(place, min(100, shards.n_tokens - place)) for place in places]
    return float(np.mean(np.concatenate(parts) == tokenizer.unk_id))


def _cross_entropy(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    return F.cross_entropy(wide(logits), labels, reduction="none")
