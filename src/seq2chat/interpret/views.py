"""The tensors of a trace by name: the recorded ones, and those that are computed from them.

| name | tensor |
|---|---|
| `logits` | (token): the logits at one position |
| `lens.tokens`, `lens.logprobs` | (position, rank): row `layer` of the logit lens |
| `positions` | (position, dim): the vector that marks each position, see `position_vectors` |
| `norms` | (row, position): the length of the residual stream after each part |
| `….heads.output` | (position, head, dim): the part of an attention's output that each head wrote |
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from seq2chat.config import UserError, check
from seq2chat.interpret.attribution import head_outputs
from seq2chat.interpret.lens import lens, stream_sites
from seq2chat.interpret.sites import STREAM, check_site
from seq2chat.interpret.trace import Group, Trace, check_index, select
from seq2chat.models.bert import BERT
from seq2chat.models.folder import Model
from seq2chat.models.gpt import GPT
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.nn.position import rotary, sinusoids

LENS = ("lens.tokens", "lens.logprobs")
OUTPUT = ".heads.output"


class View(NamedTuple):
    """A tensor with the names of its dimensions."""

    tensor: Tensor
    axes: tuple[str, ...]


def computed(one: Trace, top: int) -> list[Group]:
    """Return the names and shapes of the tensors that are computed from a trace."""
    n_token = len(one.tokens)
    vocab_size = one.model.config.vocab_size
    groups = [Group("logits", (n_token, vocab_size), ("position", "token"))]
    if isinstance(one.model, Seq2Seq):
        return groups
    n_dim = position_vectors(one.model, 1).shape[1]
    groups.append(Group("positions", (n_token, n_dim), STREAM))
    n_row = len(stream_sites(one.model))
    rows = ("row", "position")
    groups += [Group(name, (n_row, n_token, top), (*rows, "rank")) for name in LENS]
    groups.append(Group("norms", (n_row, n_token), rows))
    for name, shape, axes in one.groups:
        if name.endswith(".heads.context"):
            site = name.removesuffix(".heads.context") + OUTPUT
            groups.append(Group(site, (*shape[:-1], one.model.config.d_model), axes))
    return groups


def is_computed(site: str) -> bool:
    """Return True if the tensor is computed with the model's weights."""
    return site in ("logits", "positions", *LENS) or site.endswith(OUTPUT)


def view(
    one: Trace,
    site: str,
    layer: int | None = None,
    head: int | None = None,
    position: int | None = None,
    top: int = 10,
) -> View:
    """Return a recorded or computed tensor of a trace.

    `layer`, `head` and `position` are as in `Trace.stack`. For the lens, `layer` is the row. Raises
    UserError for a name, an axis or an index that does not exist, and if `logits` lack a position
    or another computed tensor its layer.
    """
    if site == "logits":
        if position is None:
            raise UserError("The logits are those of one position; give the position.")
        check(layer is head is None, "The logits have no layer and no head; leave them out.")
        return View(one.logits_at(position), ("token",))
    if site == "positions":
        check(layer is None, "positions are the same in all layers; leave out the layer.")
        vectors = position_vectors(one.model, len(one.tokens))
        return View(*select(site, vectors, STREAM, head, position))
    if site in LENS:
        row = _layer(site, layer)
        rows = stream_sites(one.model)
        check_index(site, "layer", row, len(rows))
        check(head is None, f"{site} has no head; leave it out.")
        positions = range(len(one.tokens)) if position is None else [position]
        predictions = lens(one, positions, top, sites=[rows[row]])
        tensor = (predictions.ids if site == "lens.tokens" else predictions.logprobs)[0]
        if position is not None:
            return View(tensor[0], ("rank",))
        return View(tensor, ("position", "rank"))
    if site == "norms":
        streams = [one[row].float() for row in stream_sites(one.model)]
        norms = torch.stack([x.square().sum(-1).sqrt() for x in streams])
        check(layer is None, "norms has all rows; leave out the layer.")
        return View(*select(site, norms, ("row", "position"), head, position))
    if site.endswith(OUTPUT):
        name = site.removesuffix(OUTPUT)
        check_site(f"{name}.heads.context", {*one.tensors, *(g.name for g in one.groups)})
        if "*" in name:
            n_layer = len(one.stack(f"{name}.heads.context")[0])
            check_index(site, "layer", _layer(site, layer), n_layer)
            name = name.replace("*", str(_layer(site, layer) % n_layer))
        outputs = head_outputs(one, name)
        return View(*select(site, outputs, ("position", "head", "dim"), head, position))
    known = [*(group.name for group in one.groups), *one.tensors]
    check_site(site, known, (group.name for group in computed(one, top)))
    return View(*one.stack(site, layer, head, position))


def position_vectors(model: Model, length: int) -> Float[Tensor, "position dim"]:
    """Return the vectors that mark the first positions: learned ones or sinusoids, which are added
    to the embeddings, or the cosines and sines by which rotary positions turn queries and keys.

    Raises UserError for an RNN, which has none.
    """
    index = torch.arange(length)
    match model:
        case GPT() if model.embed_positions is None:
            cos, sin = rotary(index[None], model.frequencies, torch.float32)
            return torch.cat([cos, sin], dim=-1)[0, 0]
        case GPT() | BERT() | Transformer() if model.embed_positions is not None:
            return model.embed_positions.weight[:length].detach().cpu()
        case Transformer():
            return sinusoids(index, model.config.d_model, torch.float32)
    raise UserError(f"A {model.config.family} has no positions: it reads one token after another.")


def pooled(site: str, whole: View, size: int) -> View:
    """Return an attention map of at most `size` queries and keys: the largest weight of each cell.

    Raises UserError for a tensor that is not a map.
    """
    check(
        whole.axes[-2:] == ("query", "key"),
        f"Only attention maps are pooled, and the axes of {site} are {', '.join(whole.axes)}.",
    )
    shape = whole.tensor.shape
    side = min(size, shape[-2]), min(size, shape[-1])
    flat = whole.tensor.float().reshape(-1, *shape[-2:])
    return View(F.adaptive_max_pool2d(flat, side).view(*shape[:-2], *side), whole.axes)


def part(
    site: str, whole: View, until: int | None = None, dims: Sequence[int] | None = None
) -> View:
    """Return the first `until` positions of a tensor, and the numbers `dims` of its vectors.

    Raises UserError for an axis or an index that does not exist.
    """
    tensor, axes = whole
    if until is not None:
        check("position" in axes, f"{site} has no position; its axes are {', '.join(axes)}.")
        axis = axes.index("position")
        tensor = tensor.narrow(axis, 0, min(until, tensor.shape[axis]))
    if dims is not None:
        for index in dims:
            check_index(site, axes[-1], index, tensor.shape[-1])
        tensor = tensor[..., list(dims)]
    return View(tensor, axes)


def _layer(site: str, layer: int | None) -> int:
    if layer is None:
        raise UserError(f"{site} is computed layer by layer; give the layer.")
    return layer
