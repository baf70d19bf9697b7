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


@torch.no_grad()
def lens_logprobs(
    one: Trace, site: str, positions: Sequence[int]
) -> Float[Tensor, "position vocab"]:
    """Return the log probabilities of all tokens that the stream at `site` contains."""
    model = one.model
    for position in positions:
        check_index("The text", "position", position, len(one.tokens))
    x = one[site][list(positions)][None].to(model.device)
    match model:
        case GPT():
            x = model.norm(x)
        case Transformer():
            x = model.decoder_norm(x)
    logits = model_logits(model, x)[0].cpu()
    return torch.log_softmax(logits.to(wide_dtype(logits)), dim=-1)


def lens(
    one: Trace,
    positions: Sequence[int] = (-1,),
    top: int = 10,
    target: int | None = None,
    sites: Sequence[str] | None = None,
) -> Lens:
    """Return the `top` most likely tokens at `positions` after each part of the model.

    The tokens follow the positions, or stand at them for a BERT. `sites` are those of the stream by
    default. Raises UserError for an RNN and for a position that does not exist.
    """
    sites = stream_sites(one.model) if sites is None else list(sites)
    ids = []
    logprobs = []
    targets = []
    for site in sites:
        row = lens_logprobs(one, site, positions)
        best = row.topk(min(top, row.shape[1]), dim=-1)
        ids.append(best.indices)
        logprobs.append(best.values)
        if target is not None:
            targets.append(row[:, target])
    return Lens(
        sites=sites,
        positions=[position % len(one.tokens) for position in positions],
        ids=torch.stack(ids),
        logprobs=torch.stack(logprobs),
        target=torch.stack(targets) if targets else None,
    )
