"""The effect of interventions: the change of the log probability of a token.

`effect_map` patches every head of every layer, or every position, one at a time (Meng et al. 2022,
causal tracing; Wang et al. 2022, section 3).
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.config import check
from seq2chat.interpret.patch import changed
from seq2chat.interpret.sites import check_site, find_sites
from seq2chat.interpret.trace import Trace, check_index, model_logits, wide_dtype
from seq2chat.models.folder import Model
from seq2chat.models.seq2seq import Seq2Seq
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
    by_name = find_sites(model)
    names = [name for name, one in by_name.items() if one.is_editable and not one.is_step]
    check_site(site, names)
    has_heads = "head" in by_name[site].axes
    other = None if source is None else source[site]
    check_index("The text", "position", position, len(tokens[-1]))
    n_cell = len(tokens[0] if site.startswith("encoder") else tokens[-1])
    if has_heads and not isinstance(model, Seq2Seq):
        n_cell = model.config.n_head
    effects = []
    for cells in torch.arange(n_cell).split(MAX_ROWS):
        # The first row stays as it is.
        texts = [
            torch.tensor([list(ids)] * (1 + len(cells)), device=model.device) for ids in tokens
        ]
        change = partial(_change_cells, site, cells.tolist(), has_heads, other)
        with changed(model, by_name[site], change):
            hidden = model.hidden(*texts)
        logits = model_logits(model, hidden[:, [position]])[:, 0]
        logprobs = torch.log_softmax(logits.to(wide_dtype(logits)), dim=-1)[:, target].cpu()
        effects.append(logprobs[1:] - logprobs[0])
    return torch.cat(effects)


def _change_cells(
    site: str, cells: Sequence[int], has_heads: bool, other: Tensor | None, tensor: Tensor
) -> Tensor:
    """Return the tensor at a site with another cell changed in each row after the first."""
    check(
        other is None or other.shape == tensor.shape[1:],
        f"The texts differ in their number of tokens: {tensor.shape[1]} and "
        f"{0 if other is None else len(other)}; write texts of equally many.",
    )
    new = tensor.clone()
    for row, cell in enumerate(cells, start=1):
        at = (slice(None), cell) if has_heads else cell
        new[row][at] = 0.0 if other is None else other[at].to(new)
    return new
