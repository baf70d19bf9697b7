"""The logit lens: the prediction that the residual stream contains after each part of a model.

The stream after each branch passes the last norm and the output head, as if the model ended there
(nostalgebraist 2020). The last row is the model's own prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seq2chat.config import check
from seq2chat.interpret.trace import Trace, check_index, model_logits, wide_dtype
from seq2chat.models.bert import BERT
from seq2chat.models.folder import Model
from seq2chat.models.gpt import GPT
from seq2chat.models.transformer import Transformer

MAX_ROWS = 128


@dataclass(frozen=True)
class Lens:
    """The most likely tokens after each part, best first, and the log probabilities of the tokens
    and of `target`, if there is one.
    """

    sites: list[str]
    positions: list[int]
    ids: Int[Tensor, "site position top"]
    logprobs: Float[Tensor, "site position top"]
    target: Float[Tensor, "site position"] | None


def stream_sites(model: Model) -> list[str]:
    """Return the sites of the residual stream, from the embeddings to the last block.

    Raises UserError for an RNN, which has none.
    """
    check(
        isinstance(model, GPT | BERT | Transformer),
        f"A {model.config.family} has no residual stream to look into.",
    )
    stack = "decoder" if isinstance(model, Transformer) else "layers"
    branches = ("self_attn", "cross_attn") if stack == "decoder" else ("self_attn",)
    sites = [f"{stack}.input"]
    for i in range(model.config.n_layer):
        sites += [f"{stack}.{i}.{branch}_residual" for branch in branches]
        sites.append(f"{stack}.{i}")
    return sites


def lens(
    one: Trace,
    positions: Sequence[int] = (-1,),
    top: int = 10,
    target: int | None = None,
    sites: Sequence[str] | None = None,
) -> Lens:
    """Return the `top` most likely tokens at `positions` after each part of the model.

    The tokens follow the positions, or are those at the positions of a BERT. `sites` are those of
    the stream by default. Raises UserError for an RNN and for a position that does not exist.
    """
    sites = stream_sites(one.model) if sites is None else list(sites)
    for position in positions:
        check_index("The text", "position", position, len(one.tokens))
    shape = len(sites), len(positions)
    streams = torch.cat([one[site][list(positions)] for site in sites])
    ids = []
    logprobs = []
    targets = []
    # Few products with the large output matrix, but never all logits at once.
    for rows in streams.split(MAX_ROWS):
        row = lens_logprobs(one.model, rows)
        best = row.topk(min(top, row.shape[1]), dim=-1)
        ids.append(best.indices)
        logprobs.append(best.values)
        if target is not None:
            targets.append(row[:, target])
    return Lens(
        sites=sites,
        positions=[position % len(one.tokens) for position in positions],
        ids=torch.cat(ids).unflatten(0, shape),
        logprobs=torch.cat(logprobs).unflatten(0, shape),
        target=torch.cat(targets).unflatten(0, shape) if targets else None,
    )


@torch.no_grad()
def lens_logprobs(
    model: Model, streams: Float[Tensor, "rows d_model"]
) -> Float[Tensor, "rows vocab"]:
    """Return the log probabilities of all tokens that vectors of the residual stream contain."""
    x = streams[None].to(model.device)
    match model:
        case GPT():
            x = model.norm(x)
        case Transformer():
            x = model.decoder_norm(x)
    logits = model_logits(model, x)[0].cpu()
    return torch.log_softmax(logits.to(wide_dtype(logits)), dim=-1)
