"""Examine one text: its trace, the effect of interventions written by a user, and a summary."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seq2chat.config import check
from seq2chat.interpret.effects import effect_map, head_sites
from seq2chat.interpret.patch import Intervention, ablate, patch
from seq2chat.interpret.reading import input_ids, window, window_message, with_target
from seq2chat.interpret.summary import effect_json, numbers, summary
from seq2chat.interpret.trace import Trace, trace
from seq2chat.models.folder import Model
from seq2chat.models.transformer import Transformer
from seq2chat.text.tokenizers import Tokenizer, check_ids
from seq2chat.text.wordpiece import WordPiece

PATCHED = "Each head is taken from the other text, one at a time."
ABLATED = "Each head is switched off, one at a time."


@dataclass(frozen=True)
class Examined:
    """A trace, with the interventions if there are any, and the JSON object that describes it."""

    trace: Trace
    summary: dict[str, Any]


def examine(
    model: Model,
    tokenizer: Tokenizer,
    text: str,
    translation: str | None = None,
    position: int = -1,
    target: str | None = None,
    ablated: Sequence[str] = (),
    patched: Sequence[str] = (),
    patch_from: str | None = None,
    max_tokens: int = 256,
) -> Examined:
    """Return the trace of a text and its summary.

    Places to switch off (`ablated`), or to take from the text `patch_from` (`patched`), are written
    as in `place`. Without `patched`, each head is taken from that text in turn. A longer text than
    `max_tokens` or the model's context is cut to its end, with a `message`. Raises UserError
    for anything that does not exist.
    """
    ids = input_ids(model, tokenizer, text)
    read, start = window(ids, min(max_tokens, model.context))
    texts = with_target(model, tokenizer, read, translation)
    interventions = [ablate(*place(model, one)) for one in ablated]
    source: Trace | None = None
    if patch_from is not None:
        source = trace(model, input_ids(model, tokenizer, patch_from), *texts[1:])
        interventions += patches(model, patched, source)
    plain = trace(model, *texts)
    one = trace(model, *texts, interventions=interventions) if interventions else plain
    token = None if target is None else token_id(tokenizer, target)
    result = summary(one, tokenizer, position, token)
    result["window"] = {"start": start, "total": len(ids)}
    result["message"] = window_message(len(read), start, len(ids))
    token = result["target"]["id"]
    if interventions:
        result["effect"] = effect_json(plain, one, tokenizer, position, [token])
    if source is not None and not patched:
        effects = effect_map(model, *texts, target=token, source=source, position=position)
        result["effects"] = {
            "question": PATCHED,
            "sites": head_sites(model),
            "values": numbers(effects),
        }
    return Examined(one, result)


def place(model: Model, text: str) -> tuple[str, int | None]:
    """Return the site and the head that a user means.

    `1.3` is head 3 of layer 1, `1.mlp` a branch of layer 1, `1.write` the block, and anything else
    the name of a site.
    """
    if match := re.fullmatch(r"(\d+)\.(\d+)", text):
        sites = head_sites(model)
        layer = int(match[1])
        check(bool(sites), f"A {model.config.family} has no heads, so there is no {text}.")
        check(
            layer < len(sites),
            f"There is no layer {layer}, as in {text}; the layers are 0 to {len(sites) - 1}.",
        )
        return sites[layer], int(match[2])
    stack = "decoder" if isinstance(model, Transformer) else "layers"
    return (f"{stack}.{text}" if re.match(r"\d+\.", text) else text), None


def patches(model: Model, places: Sequence[str], source: Trace) -> list[Intervention]:
    """Return the interventions that take `places` from another trace."""
    interventions = []
    for text in places:
        site, head = place(model, text)
        interventions.append(patch(site, source, head))
    return interventions


def token_id(tokenizer: Tokenizer, text: str) -> int:
    """Return the token that a user means: the text of one token, or its id.

    Raises UserError for a text of several tokens.
    """
    is_wordpiece = isinstance(tokenizer, WordPiece)
    ids = tokenizer.encode(text) if is_wordpiece else tokenizer.encode(text, after="text")
    if len(ids) == 1:
        return ids[0]
    if text.isascii() and text.isdigit():
        check_ids(tokenizer, [int(text)])
        return int(text)
    pieces = ", ".join(repr(tokenizer.decode([one])) for one in ids[:8])
    check(
        False,
        f"{text!r} is {len(ids)} tokens ({pieces}); write the text of one token, or its id.",
    )
    raise AssertionError
