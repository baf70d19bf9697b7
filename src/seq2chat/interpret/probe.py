"""Probes of a checkpoint: the loss of each token of a sentence, and heads that look back.

They are computed from saved weights, so training does not wait for them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.config import check
from seq2chat.generation.decode import evaluating
from seq2chat.interpret.reading import forced, input_ids
from seq2chat.interpret.sites import find_sites
from seq2chat.interpret.trace import model_logits, trace, wide_dtype
from seq2chat.models.bert import BERT
from seq2chat.models.folder import Model
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.tokenizers import Tokenizer
from seq2chat.text.wordpiece import WordPiece

MAX_TOKENS = 128  # of a sentence; a BERT reads it once per token
REPEATED = 24  # random tokens that are repeated, if they fit the context twice
SEED = 2463534242
HEADS = "layers.*.self_attn.heads"


class TokenLoss(NamedTuple):
    """A token and its loss in nats, or None for a token that no other one predicts."""

    token: int
    loss: float | None


@torch.inference_mode()
def token_losses(
    model: Model, tokenizer: Tokenizer, text: str, translation: str | None = None
) -> list[TokenLoss]:
    """Return the loss of each token of `text`, given the tokens before it.

    For an encoder–decoder it is that of each token of `translation` with the end token, given
    `text`. A BERT predicts each token from all others, with that token masked (Salazar et al. 2020,
    "pseudo-log-likelihood"). Raises UserError for a blank text, for one of more than MAX_TOKENS
    tokens or than the context, and for a reward model.
    """
    check(
        model.config.objective != "score",
        "A reward model predicts no tokens; look at the policy that it scores.",
    )
    is_translator = isinstance(model, Seq2Seq | Transformer)
    check(is_translator or translation is None, f"A {model.config.family} does not translate.")
    is_complete = not is_translator or (translation or "").strip() != ""
    check(is_complete, "Write a translation, too: its tokens have the losses.")
    ids = input_ids(model, tokenizer, text)
    limit = min(MAX_TOKENS, model.context)
    check(
        len(ids) <= limit,
        f"The text has {len(ids)} tokens, and {limit} are the most for a probe; write a shorter "
        "one.",
    )
    with evaluating(model):
        if isinstance(model, BERT):
            return _masked_losses(model, tokenizer, ids)
        if is_translator:
            read, labels = forced(tokenizer, tokenizer.encode(translation or ""))
            check(len(read) <= limit, f"The translation has more than {limit} tokens.")
            losses = _losses(_logits(model, ids, read), labels)
            return [TokenLoss(*pair) for pair in zip(labels, losses, strict=True)]
        losses = _losses(_logits(model, ids)[:-1], ids[1:])
    pairs = zip(ids[1:], losses, strict=True)
    return [TokenLoss(ids[0], None), *(TokenLoss(*pair) for pair in pairs)]


def _masked_losses(model: BERT, tokenizer: Tokenizer, ids: list[int]) -> list[TokenLoss]:
    assert isinstance(tokenizer, WordPiece)
    rows = torch.tensor([ids] * len(ids), device=model.device)
    rows.fill_diagonal_(tokenizer.mask_id)
    logits = model_logits(model, model.hidden(rows))
    places = torch.arange(len(ids), device=model.device)
    losses = _losses(logits[places, places], ids)
    inner = range(1, len(ids) - 1)  # without [CLS] and [SEP], which every text has
    return [TokenLoss(ids[i], losses[i] if i in inner else None) for i in range(len(ids))]


def _logits(model: Model, *texts: Sequence[int]) -> Float[Tensor, "seq vocab"]:
    rows = [torch.tensor([ids], device=model.device) for ids in texts]
    return model_logits(model, model.hidden(*rows))[0]


def _losses(logits: Float[Tensor, "seq vocab"], labels: Sequence[int]) -> list[float]:
    logprobs = logits.to(wide_dtype(logits)).log_softmax(-1)
    index = torch.tensor(labels, dtype=torch.int64, device=logits.device)
    return (-logprobs.gather(1, index[:, None])[:, 0]).tolist()


class HeadScores(NamedTuple):
    """Mean attention weights of each head, `(layer, head)`, on random tokens that are repeated
    once: on the token before, and on the token that followed the same token earlier (Olsson et al.
    2022)."""

    previous: Float[Tensor, "layer head"]
    induction: Float[Tensor, "layer head"]


def has_head_scores(model: Model) -> bool:
    """Return True for a GPT or a BERT, whose heads read one text."""
    return "layers.0.self_attn.heads" in find_sites(model)


def head_scores(model: Model, vocab_size: int) -> HeadScores:
    """Return the scores of all heads. Raises UserError for a model without self-attention over one
    text."""
    check(has_head_scores(model), f"A {model.config.family} has no heads over a single text.")
    period = min(REPEATED, model.context // 2)
    one = trace(model, repeated_tokens(vocab_size, period), names=[HEADS])
    weights, _ = one.stack(HEADS)
    # The key after the same token earlier stands `period - 1` places before the query.
    induction = weights.diagonal(1 - period, -2, -1)[..., 1:].mean(-1)
    return HeadScores(weights.diagonal(-1, -2, -1).mean(-1), induction)


def repeated_tokens(vocab_size: int, length: int) -> list[int]:
    """Return `length` random tokens, twice, the same for every checkpoint (Marsaglia 2003,
    xorshift). The page Inside uses the same ones."""
    x = SEED
    once = []
    for _ in range(length):
        x ^= x << 13 & 0xFFFFFFFF
        x ^= x >> 17
        x ^= x << 5 & 0xFFFFFFFF
        once.append(x % vocab_size)
    return once * 2
