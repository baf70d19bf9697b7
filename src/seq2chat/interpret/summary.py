"""A trace as one small JSON object: tokens, sites, prediction, lens and attribution.

The command line, the page and the server show the same object. Log probabilities are in nats, and
numbers have six significant digits.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from seq2chat.config import check
from seq2chat.interpret.attribution import Part, attribution
from seq2chat.interpret.effects import delta_logprobs
from seq2chat.interpret.lens import lens
from seq2chat.interpret.trace import Trace
from seq2chat.models.bert import BERT
from seq2chat.models.gpt import GPT
from seq2chat.models.transformer import Transformer
from seq2chat.text.tokenizers import Tokenizer


def token_json(tokenizer: Tokenizer, token_id: int) -> dict[str, Any]:
    """Return a token with its text, and with its bytes if they are only part of a character."""
    raw = tokenizer.token_bytes(token_id)
    token: dict[str, Any] = {"id": token_id, "text": raw.decode("utf-8", "replace")}
    if "\ufffd" in token["text"]:
        token["bytes"] = list(raw)
    return token


def summary(
    one: Trace,
    tokenizer: Tokenizer,
    position: int = -1,
    target: int | None = None,
    top: int = 10,
    lens_top: int = 5,
    n_parts: int = 20,
) -> dict[str, Any]:
    """Return the trace as JSON, with the prediction at `position`.

    `target` is the token to follow through the model, by default the most likely one. The lens has
    the `lens_top` most likely tokens of each row, and the attribution the `n_parts` largest parts.
    Both are None for an RNN. Raises UserError for a position or a token that does not exist.
    """
    model = one.model
    logprobs = one.logprobs(position)
    best = logprobs.topk(min(top, len(logprobs)))
    target = int(best.indices[0]) if target is None else target
    has_stream = isinstance(model, GPT | BERT | Transformer)
    parts = attribution(one, target, position) if has_stream else None
    rows = _lens_rows(one, position, target, lens_top) if has_stream else None
    ids = {token for row in rows or [] for token, _ in row["top"]}
    return {
        "object": "trace",
        "family": model.config.family,
        "predicts": "this token" if isinstance(model, BERT) else "next token",
        "tokens": [token_json(tokenizer, token) for token in one.tokens],
        "source": None
        if one.source is None
        else [token_json(tokenizer, token) for token in one.source],
        "position": position % len(one.tokens),
        "top": [
            token_json(tokenizer, token) | {"logprob": number(value)}
            for token, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ],
        "entropy": number(-(logprobs.exp() * logprobs.clamp(min=-1e4)).sum()),
        "target": token_json(tokenizer, target)
        | {"logprob": number(logprobs[target]), "logit": number(one.logits_at(position)[target])},
        "lens": rows,
        "texts": {str(token): token_json(tokenizer, token)["text"] for token in sorted(ids)},
        "attribution": None if parts is None else _largest(parts, n_parts),
        "sites": [group._asdict() for group in one.groups],
    }


def effect_json(
    before: Trace,
    after: Trace,
    tokenizer: Tokenizer,
    position: int = -1,
    ids: Sequence[int] = (),
    top: int = 5,
) -> dict[str, Any]:
    """Return the effect of interventions on `ids` and on the `top` tokens before and after them."""
    probabilities = before.logprobs(position), after.logprobs(position)
    best = [
        token for row in probabilities for token in row.topk(min(top, len(row))).indices.tolist()
    ]
    tokens = list(dict.fromkeys([*ids, *best]))
    deltas = delta_logprobs(before, after, tokens, position).tolist()
    return {
        "position": position % len(before.tokens),
        "tokens": [
            token_json(tokenizer, token)
            | {
                "before": number(probabilities[0][token]),
                "after": number(probabilities[1][token]),
                "delta": number(delta),
            }
            for token, delta in zip(tokens, deltas, strict=True)
        ],
    }


def number(value: float | Tensor) -> float:
    """Return a number with six significant digits. JSON has no infinity, so -9999 stands for -inf.

    Raises UserError for +inf and NaN.
    """
    value = float(value)
    check(
        value < math.inf,
        "The pass has numbers that are not finite; scale its tensors by smaller factors.",
    )
    return float(f"{max(value, -9999.0):.6g}")


def numbers(tensor: Tensor) -> list[Any]:
    """Return nested lists of numbers with six significant digits."""
    if tensor.ndim == 0:
        raise ValueError("A single number is no list.")
    if tensor.ndim == 1:
        return [number(value) for value in tensor.tolist()]
    return [numbers(row) for row in tensor.unbind()]


def _lens_rows(one: Trace, position: int, target: int, top: int) -> list[dict[str, Any]]:
    predictions = lens(one, [position], top, target)
    assert predictions.target is not None
    return [
        {
            "site": site,
            "top": [
                [token, number(value)]
                for token, value in zip(
                    predictions.ids[row, 0].tolist(),
                    predictions.logprobs[row, 0].tolist(),
                    strict=True,
                )
            ],
            "target": number(predictions.target[row, 0]),
            "norm": number(torch.linalg.vector_norm(one[site][position].double())),
        }
        for row, site in enumerate(predictions.sites)
    ]


def _largest(parts: Iterable[Part], n_parts: int) -> list[dict[str, Any]]:
    """Return the largest parts in the order of the model, and the sum of the others."""
    parts = list(parts)
    by_size = sorted(range(len(parts)), key=lambda i: -abs(parts[i].logit))
    kept = set(by_size[:n_parts])
    rows = [
        {"site": part.site, "head": part.head, "logit": number(part.logit)}
        for i, part in enumerate(parts)
        if i in kept
    ]
    if len(kept) < len(parts):
        others = sum(part.logit for i, part in enumerate(parts) if i not in kept)
        rows.append({"site": "others", "head": None, "logit": number(others)})
    return rows
