"""`POST /v1/embeddings`: a text as the mean of its last hidden states."""

import asyncio
import base64
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.config import UserError, check
from seq2chat.generation.request import ContextExceeded
from seq2chat.models.bert import BERT
from seq2chat.models.gpt import GPT
from seq2chat.serving.answer import BadField
from seq2chat.serving.engine_thread import Worker
from seq2chat.serving.protocol import EmbeddingRequest, one_by_one
from seq2chat.serving.served_model import Served
from seq2chat.text.byte_bpe import ByteBPE


def inputs(asked: EmbeddingRequest, served: Served) -> list[list[int]]:
    """Return the tokens of each input. Raises UserError for one that is empty or longer than the
    context, and for a model of another family than GPT and BERT."""
    check(
        isinstance(served.model, GPT | BERT),
        f"{served.id} is a {served.family}; embeddings are made by a GPT or a BERT.",
    )
    size = served.model.config.d_model
    if asked.dimensions not in (None, size):
        raise BadField(
            "dimensions",
            f"dimensions is {asked.dimensions} and the vectors of {served.id} have {size}.",
        )
    tokenizer, made = served.tokenizer, []
    for number, one in enumerate(one_by_one(asked.input)):
        if isinstance(one, str):
            served.check_size(one)
            ids = tokenizer.encode(one)
            if not isinstance(tokenizer, ByteBPE):
                ids = [tokenizer.cls_id, *ids, tokenizer.sep_id]
        else:
            ids = one
        check(len(ids) > 0, f"Input {number} is empty; give at least one token.")
        if len(ids) > served.context:
            raise ContextExceeded(
                f"Input {number} has {len(ids)} tokens and the model's context is {served.context};"
                " shorten it."
            )
        last = served.model.config.vocab_size - 1
        check(
            max(ids) <= last,
            f"Input {number} has a token that is none of the model's, which go from 0 to {last}.",
        )
        made.append(ids)
    return made


@torch.inference_mode()
def embed(model: GPT | BERT, text: Sequence[int]) -> Float[Tensor, " d_model"]:
    """Return the mean of the last hidden states of a text, as a vector of length 1.

    Of a GPT each state knows only the text before it; of a BERT, all of it (Reimers and Gurevych
    2019, section 3).
    """
    mean = model.hidden(torch.tensor([text], device=model.device))[0].float().mean(0).cpu()
    return torch.nn.functional.normalize(mean, dim=0)


async def vectors(served: Served, texts: Sequence[Sequence[int]], worker: Worker) -> list[Tensor]:
    """Return the vector of each text."""
    model = served.model
    assert isinstance(model, GPT | BERT)
    # One by one, so that the engines step in between, and nobody is waited for who left.
    return [await asyncio.wrap_future(worker.call(partial(embed, model, text))) for text in texts]


def response(
    asked: EmbeddingRequest, texts: Sequence[Sequence[int]], vectors: Sequence[Tensor]
) -> dict[str, Any]:
    """Return the `list` object, vectors as numbers or as the base64 of float32, which SDKs ask
    for."""
    if not all(torch.isfinite(vector).all() for vector in vectors):
        raise UserError(
            "The model makes numbers that are not finite of this text; train it further."
        )
    written = [
        (
            base64.b64encode(v.numpy().astype("<f4").tobytes()).decode()
            if asked.encoding_format == "base64"
            else v.tolist()
        )
        for v in vectors
    ]
    n_tokens = sum(map(len, texts))
    return {
        "object": "list",
        "model": asked.model,
        "data": [
            {"object": "embedding", "index": i, "embedding": vector}
            for i, vector in enumerate(written)
        ],
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }
