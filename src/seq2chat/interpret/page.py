"""A trace as one HTML file that loads nothing, for notebooks and for browsers without a network."""

import base64
import html
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seq2chat.interpret.lens import lens, stream_sites
from seq2chat.interpret.summary import number, summary, token_json
from seq2chat.interpret.trace import Trace
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.text.tokenizers import Tokenizer

MAX_LENS_POSITIONS = 64  # of the lens, the last ones: each costs a product with the vocabulary
NAMES = {"encoder": "encoder, self", "decoder": "decoder, self", "layers": "self"}


@dataclass(frozen=True)
class TracePage:
    """A page. In a notebook it shows itself."""

    html: str

    def save(self, file: Path) -> None:
        """Write the page, and create missing folders."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.html, encoding="utf-8")

    def _repr_html_(self) -> str:
        source = html.escape(self.html, quote=True)
        style = "width:100%;height:48rem;border:0;border-radius:0.6rem"
        return f'<iframe srcdoc="{source}" style="{style}" title="A look inside"></iframe>'


def trace_page(one: Trace, tokenizer: Tokenizer, record: dict[str, Any] | None = None) -> TracePage:
    """Return the page of a trace and of `record`, its summary, which may have an `effect`."""
    data = (record or summary(one, tokenizer)) | {
        "maps": _maps(one, tokenizer),
        "grid": _grid(one, tokenizer),
    }
    folder = resources.files("seq2chat.interpret").joinpath("web")
    parts = {
        f"/* trace.{ending} */": folder.joinpath(f"trace.{ending}").read_text(encoding="utf-8")
        for ending in ("css", "js")
    }
    # No text of a token can end the script.
    parts["/* data */"] = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    page = folder.joinpath("trace.html").read_text(encoding="utf-8")
    for mark, part in parts.items():
        before, after = page.split(mark, maxsplit=1)
        page = before + part + after
    return TracePage(page)


def _maps(one: Trace, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return the attention maps of each kind, with weights as 16-bit integers in zlib's format."""
    read = _texts(tokenizer, one.tokens)
    # Attention to the source is drawn for the token that is predicted with its help.
    written = [*read[1:], "…"]
    source = _texts(tokenizer, one.source or [])
    groups = []
    for group in one.groups:
        if "query" not in group.axes:
            continue
        weights = one.stack(group.name)[0]
        weights = weights if "*" in group.name else weights[None]
        integers = np.rint(65535 * weights.double().numpy()).clip(0, 65535).astype("<u2")
        is_cross = "cross" in group.name or isinstance(one.model, Seq2Seq)
        in_encoder = group.name.startswith("encoder")
        stack = group.name.partition(".")[0]
        groups.append(
            {
                "site": group.name,
                "name": "attention to the source" if is_cross else NAMES[stack],
                "shape": list(weights.shape),
                "queries": source if in_encoder else written if is_cross else read,
                "keys": source if is_cross or in_encoder else read,
                "data": base64.b64encode(zlib.compress(integers.tobytes(), 9)).decode(),
            }
        )
    return groups


def _grid(one: Trace, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Return the most likely token of the lens at every row and position."""
    if isinstance(one.model, Seq2Seq):
        return None
    first = max(0, len(one.tokens) - MAX_LENS_POSITIONS)
    predictions = lens(one, range(first, len(one.tokens)), top=1)
    ids = predictions.ids[..., 0]
    return {
        "sites": stream_sites(one.model),
        "positions": predictions.positions,
        "ids": ids.tolist(),
        "logprobs": [
            [number(value) for value in row] for row in predictions.logprobs[..., 0].tolist()
        ],
        "texts": {
            str(token): token_json(tokenizer, token)["text"] for token in torch.unique(ids).tolist()
        },
    }


def _texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    return [token_json(tokenizer, token)["text"] for token in ids]
