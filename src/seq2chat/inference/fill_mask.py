"""What a BERT puts in the place of masked tokens."""

import torch

from seq2chat.config import check
from seq2chat.models.bert import BERT


@torch.inference_mode()
def guess(
    model: BERT, tokens: list[int], mask_id: int, top_k: int
) -> list[list[tuple[int, float]]]:
    """Return for each `mask_id` in `tokens` its `top_k` likeliest tokens, likeliest first, with
    their probabilities.

    All are guessed in one pass, so each sees the others masked. Raises UserError for more tokens
    than the model reads.
    """
    check(
        len(tokens) <= model.context,
        f"The text has {len(tokens)} tokens with [CLS] and [SEP], but the model reads "
        f"{model.context}; shorten it.",
    )
    rows = torch.tensor([tokens], device=model.device)
    logits = model.logits(model.hidden(rows)[rows == mask_id])
    probabilities = torch.softmax(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1
    )
    best = probabilities.topk(min(top_k, logits.shape[-1]))
    return [
        list(zip(ids, values, strict=True))
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
