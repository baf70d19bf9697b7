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
from seq2chat.serving.engine_thread import EngineThread
from seq2chat.serving.protocol import EmbeddingRequest, as_list
from seq2chat.serving.served_model import ServedModel
from seq2chat.text.text_tokenizer import TextTokenizer


def inputs(body: EmbeddingRequest, model: ServedModel) -> list[list[int]]:
    """Return the tokens of each input.

    Raises UserError for an input that is empty or longer than the context, and for a model that is
    neither a GPT nor a BERT.
    """
    check(
        isinstance(model.module, GPT | BERT),
        f"{model.id} is a {model.family}; embeddings are made by a GPT or a BERT.",
    )
    d_model = model.module.config.d_model
    if body.dimensions not in (None, d_model):
        raise BadField(
            "dimensions",
            f"dimensions is {body.dimensions} and the vectors of {model.id} have {d_model}.",
        )
    tokenizer = model.tokenizer
    last = model.module.config.vocab_size - 1
    texts = []
    for number, text in enumerate(as_list(body.input)):
        if isinstance(text, str):
            model.check_size(text)
            ids = tokenizer.encode(text)
            if not isinstance(tokenizer, TextTokenizer):
                ids = [tokenizer.cls_id, *ids, tokenizer.sep_id]
        else:
            ids = text
        check(len(ids) > 0, f"Input {number} is empty; give at least one token.")
        if len(ids) > model.context:
            raise ContextExceeded(
                f"Input {number} has {len(ids)} tokens and the model's context is {model.context};"
                " shorten it."
            )
        check(
            max(ids) <= last,
            f"Input {number} has a token that is not in the vocabulary; write ids from 0 to "
            f"{last}.",
        )
        texts.append(ids)
    return texts


@torch.inference_mode()
def embed(module: GPT | BERT, text: Sequence[int]) -> Float[Tensor, " d_model"]:
    """Return the mean of the last hidden states of a text, as a vector of length 1.

    A GPT's hidden states depend on the text before them, a BERT's on the whole text (Reimers and
    Gurevych 2019, section 3).
    """
    mean = module.hidden(torch.tensor([text], device=module.device))[0].float().mean(0).cpu()
    return torch.nn.functional.normalize(mean, dim=0)


async def vectors(
    model: ServedModel, texts: Sequence[Sequence[int]], engine_thread: EngineThread
) -> list[Tensor]:
    """Return the vector of each text."""
    assert isinstance(model.module, GPT | BERT)
    # One by one, so that the engines step in between. A request whose client has gone ends after
    # the current text.
    return [
        await asyncio.wrap_future(engine_thread.call(partial(embed, model.module, text)))
        for text in texts
    ]


def response(
    body: EmbeddingRequest, texts: Sequence[Sequence[int]], vectors: Sequence[Tensor]
) -> dict[str, Any]:
    """Return the `list` object. Vectors are numbers, or float32 in base64 as SDKs request them."""
    if not all(torch.isfinite(vector).all() for vector in vectors):
        raise UserError(
            "The model computes numbers that are not finite for this text; train it further."
        )
    data = []
    for index, vector in enumerate(vectors):
        embedding: str | list[float] = vector.tolist()
        if body.encoding_format == "base64":
            embedding = base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    n_tokens = sum(map(len, texts))
    return {
        "object": "list",
        "model": body.model,
        "data": data,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }
