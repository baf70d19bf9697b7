"""Fill in the masked words of a text with a BERT."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from seq2chat.config import check
from seq2chat.models.bert import BERT
from seq2chat.text.masked import encode_masked, fill
from seq2chat.text.wordpiece import WordPiece


@dataclass(frozen=True)
class Candidate:
    """One token for a [MASK], its probability, and the text with the token in place."""

    token: str
    probability: float
    text: str


def fill_mask(
    model: BERT, tokenizer: WordPiece, text: str, top_k: int = 5
) -> list[list[Candidate]]:
    """Return the `top_k` most probable candidates for each [MASK] in `text`, best first.

    For example, "Paris is in [MASK]." has one list of candidates. All masks are predicted in one
    pass, so each prediction sees the other masks unfilled. Raises UserError for a text without
    [MASK] and for more tokens than the model's context.
    """
    ids = encode_masked(text, tokenizer)
    predictions = predict_masked(model, ids, tokenizer.mask_id, top_k)
    return [
        [
            Candidate(tokenizer.token(i), probability, fill(text, index, tokenizer.token(i)))
            for i, probability in prediction
        ]
        for index, prediction in enumerate(predictions)
    ]


@torch.inference_mode()
def predict_masked(
    model: BERT, ids: Sequence[int], mask_id: int, top_k: int
) -> list[list[tuple[int, float]]]:
    """Return the `top_k` most probable token ids and their probabilities for each `mask_id` in
    `ids`, best first.

    Raises UserError for more tokens than the model's context.
    """
    check(
        len(ids) <= model.context,
        f"The text has {len(ids)} tokens with [CLS] and [SEP], but the model's context is "
        f"{model.context}; shorten it.",
    )
    tokens = torch.tensor([ids], device=model.device)
    logits = model.logits(model.hidden(tokens)[tokens == mask_id])
    # Softmax in at least float32: in bfloat16 the probabilities would not sum to 1.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    best = torch.softmax(logits, dim=-1).topk(min(top_k, logits.shape[-1]))
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [list(zip(indices, values, strict=True)) for indices, values in rows]
