"""The effect of interventions: the change of the log probability of a token.

`effect_map` patches every head of every layer, or every position, one at a time (Meng et al. 2022,
causal tracing; Wang et al. 2022, section 3).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.config import check
from seq2chat.interpret.patch import changed
from seq2chat.interpret.sites import find_sites, no_site
from seq2chat.interpret.trace import Trace, check_index, model_logits, wide_dtype
from seq2chat.models.folder import Model
from seq2chat.models.transformer import Transformer

MAX_ROWS = 32  # passes that are computed as one batch


def delta_logprobs(
    before: Trace, after: Trace, ids: Sequence[int], position: int = -1
) -> Float[Tensor, " ids"]:
    """Return log p(id) after the change minus log p(id) before it, in nats, for each id."""
    index = list(ids)
    return after.logprobs(position)[index] - before.logprobs(position)[index]


def head_sites(model: Model) -> list[str]:
    """Return the sites of the heads of each layer: those of cross-attention if there are any."""
    branch = "cross_attn" if isinstance(model, Transformer) else "self_attn"
    return [name for name in find_sites(model) if name.endswith(f"{branch}.heads.context")]


def effect_map(
    model: Model,
    *tokens: Sequence[int],
    target: int,
    source: Trace | None = None,
    sites: Sequence[str] | None = None,
    position: int = -1,
) -> Float[Tensor, "site cell"]:
    """Return the change of log p(target) at `position`, in nats, for each change of one cell.

    A cell is a head of each of the `sites`, all heads of the model by default, or a position of a
    site without heads. It is replaced by that of `source`, a trace of equally many tokens, or by
    zeros. `tokens` are those of `trace`. Raises UserError for sites that can't be changed.
    """
    sites = head_sites(model) if sites is None else sites
    check(
        bool(sites), f"A {model.config.family} has no heads; give the sites, for example encoder."
    )
    rows = [
        site_effects(model, *tokens, target=target, source=source, site=site, position=position)
        for site in sites
    ]
    check(len({len(row) for row in rows}) == 1, "The sites differ in their number of heads.")
    return torch.stack(rows)


@torch.no_grad()
def site_effects(
    model: Model,
    *tokens: Sequence[int],
    target: int,
    source: Trace | None,
    site: str,
    position: int = -1,
) -> Float[Tensor, " cell"]:
    """Return one row of `effect_map`."""
    found = find_sites(model)
    names = [name for name, one in found.items() if one.is_editable and not one.is_step]
    check(site in names, no_site(site, names))
    has_heads = "head" in found[site].axes
    other = None if source is None else source[site]
    texts = [torch.tensor([ids], dtype=torch.int64, device=model.device) for ids in tokens]
    check_index("The text", "position", position, len(tokens[-1]))
    n_cell = 0
    cells = range(0)

    def count(tensor: Tensor) -> Tensor:
        nonlocal n_cell
        n_cell = tensor.shape[2 if has_heads else 1]
        check(
            other is None or other.shape == tensor.shape[1:],
            f"The texts differ in their number of tokens at {site}; write texts of equally many.",
        )
        return tensor

    def change(tensor: Tensor) -> Tensor:
        new = tensor.clone()
        for row, cell in enumerate(cells):
            at = (slice(None), cell) if has_heads else cell
            new[row][at] = 0.0 if other is None else other[at].to(new)
        return new

    def logprobs() -> Float[Tensor, " rows"]:
        hidden = model.hidden(*(text.expand(max(len(cells), 1), -1) for text in texts))
        logits = model_logits(model, hidden[:, [position]])[:, 0]
        return torch.log_softmax(logits.to(wide_dtype(logits)), dim=-1)[:, target].cpu()

    with changed(model, found[site], count):
        plain = logprobs()
    effects = []
    with changed(model, found[site], change):
        for first in range(0, n_cell, MAX_ROWS):
            cells = range(first, min(first + MAX_ROWS, n_cell))
            effects.append(logprobs() - plain)
    return torch.cat(effects)
