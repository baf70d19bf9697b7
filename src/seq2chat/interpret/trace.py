"""One recorded forward pass: every site of `interpret/sites.py` with its tensor and its axes.

For example, of a GPT:

    one = trace(model, ids)
    one["layers.1.self_attn.heads"]  # (head, query, key): the attention weights of layer 1
    one.stack("layers.*.mlp", layer=1)  # the same tensor as one["layers.1.mlp"]
    one.logprobs(-1)  # the distribution of the token after the last one
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.config import check
from seq2chat.interpret.patch import Intervention, intervene
from seq2chat.interpret.sites import NUMBER, check_site, find_sites
from seq2chat.interpret.tape import AttentionMap, record
from seq2chat.models.folder import Model
from seq2chat.models.reward import RewardModel
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer


class Group(NamedTuple):
    """The sites of all layers under one name, with `*` for the layer's number.

    `shape` and `axes` begin with the layer if the name has a `*`.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Trace:
    """The tensors of one forward pass, without the dimension of the batch, by site.

    `tokens` are the ids that the model read, those of the target for an encoder–decoder, whose
    source is `source`. `axes` names the dimensions of each tensor.
    """

    model: Model
    tokens: list[int]
    source: list[int] | None
    tensors: dict[str, Tensor]
    axes: dict[str, tuple[str, ...]]
    attention: list[AttentionMap]

    def __getitem__(self, site: str) -> Tensor:
        """Return the tensor at one site. Raises UserError if it does not exist."""
        check_site(site, self.tensors)
        return self.tensors[site]

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @cached_property
    def hidden(self) -> Float[Tensor, "seq d"]:
        """The hidden states that the output head reads."""
        return self[final_site(self.model)]

    @cached_property
    def logits(self) -> Float[Tensor, "seq vocab"]:
        """The logits at every position, equal to those of the model to the last bit."""
        return self._logits(self.hidden)

    def logprobs(self, position: int) -> Float[Tensor, " vocab"]:
        """Return the log probability of every token at one position, in at least float32.

        It is the token after the position, or at the position for a BERT.
        """
        logits = self.logits_at(position)
        return torch.log_softmax(logits.to(wide_dtype(logits)), dim=-1)

    def logits_at(self, position: int) -> Float[Tensor, " vocab"]:
        """Return the logits at one position, without those at the others."""
        check_index("The text", "position", position, len(self.tokens))
        return self._logits(self.hidden[position][None])[0]

    @torch.no_grad()
    def _logits(self, hidden: Float[Tensor, "seq d"]) -> Float[Tensor, "seq vocab"]:
        return model_logits(self.model, hidden[None].to(self.model.device))[0].to(hidden.device)

    @cached_property
    def groups(self) -> list[Group]:
        """The recorded sites, with those of all layers as one."""
        return [
            Group(
                name,
                (len(members), *self.tensors[members[0]].shape)
                if "*" in name
                else tuple(self.tensors[name].shape),
                ("layer", *self.axes[members[0]]) if "*" in name else self.axes[name],
            )
            for name, members in self._members.items()
        ]

    def stack(
        self,
        site: str,
        layer: int | None = None,
        head: int | None = None,
        position: int | None = None,
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Return the tensor of a site or group, and its axes.

        `layer`, `head` and `position` (also of a query) select one index of their axis, which is
        then gone. Raises UserError for a site, an axis or an index that does not exist.
        """
        members = self._members.get(site, [site])
        if site not in self._members:
            check_site(site, self.tensors, self._members)
        axes = self.axes[members[0]]
        if "*" in site:
            if layer is None:
                tensor = torch.stack([self.tensors[member] for member in members])
                axes = ("layer", *axes)
            else:
                check_index(site, "layer", layer, len(members))
                tensor = self.tensors[members[layer]]
        else:
            check(layer is None, f"{site} is one layer; leave out the layer.")
            tensor = self.tensors[site]
        return select(site, tensor, axes, head, position)

    @cached_property
    def _members(self) -> dict[str, list[str]]:
        """The sites of each group."""
        members: dict[str, list[str]] = {}
        for site in self.tensors:
            members.setdefault(NUMBER.sub("*", site, count=1), []).append(site)
        return members


def trace(
    model: Model,
    *tokens: Sequence[int],
    interventions: Sequence[Intervention] = (),
    names: Sequence[str] = ("*",),
) -> Trace:
    """Record one forward pass of `model`, with `interventions` if there are any.

    `tokens` are the arguments of `model.hidden`: the ids for a GPT or a BERT, and the ids of source
    and target, as in training, for an encoder–decoder. `names` are the patterns of `record`. The
    tensors are on the CPU. Raises UserError for no tokens, for more than the model's context, for a
    pattern that matches no site, for an intervention that is not possible, and for a reward model.
    """
    check(
        not isinstance(model, RewardModel),
        "A reward model predicts no tokens; trace the policy that it scores.",
    )
    is_translator = isinstance(model, Seq2Seq | Transformer)
    n_texts = "a source and a target" if is_translator else "one text"
    check(
        len(tokens) == 1 + is_translator and all(len(ids) > 0 for ids in tokens),
        f"A {model.config.family} reads {n_texts}, with at least one token each.",
    )
    rows = [torch.tensor([ids], dtype=torch.int64, device=model.device) for ids in tokens]
    with (
        torch.no_grad(),
        intervene(model, *interventions),
        record(model, names, device="cpu") as tape,
    ):
        model.hidden(*rows)
    attention = tape.attention
    recorded = tape.tensors | {m.path: m.weights for m in attention}
    by_name = find_sites(model)
    # In the order of the model's parts, which is also that of the layers.
    tensors = {site: recorded[site][0] for site in by_name if site in recorded}
    return Trace(
        model=model,
        tokens=list(tokens[-1]),
        source=list(tokens[0]) if is_translator else None,
        tensors=tensors,
        axes={site: by_name[site].axes for site in tensors},
        attention=attention,
    )


def model_logits(
    model: Model, hidden: Float[Tensor, "batch seq d"]
) -> Float[Tensor, "batch seq vocab"]:
    """Return the logits of `hidden`. Raises UserError for a model without a head over tokens."""
    assert not isinstance(model, RewardModel)
    return model.logits(hidden)


def final_site(model: Model) -> str:
    """Return the site of the hidden states that the output head reads."""
    match model:
        case Seq2Seq():
            return "decoder"
        case Transformer():
            return "decoder_norm"
    return f"layers.{model.config.n_layer - 1}" if model.config.family == "bert" else "norm"


def select(
    site: str,
    tensor: Tensor,
    axes: tuple[str, ...],
    head: int | None = None,
    position: int | None = None,
) -> tuple[Tensor, tuple[str, ...]]:
    """Return `tensor` at one head and one position, if given, and the axes that remain."""
    for name, index in (("head", head), ("position", position)):
        if index is None:
            continue
        axis = "query" if name == "position" and "query" in axes else name
        check(axis in axes, f"{site} has no {name}; its axes are {', '.join(axes)}.")
        dimension = axes.index(axis)
        check_index(site, name, index, tensor.shape[dimension])
        tensor = tensor.select(dimension, index)
        axes = (*axes[:dimension], *axes[dimension + 1 :])
    return tensor, axes


def check_index(what: str, axis: str, index: int, size: int) -> None:
    """Raise UserError unless `index` is from -size to size - 1."""
    check(
        -size <= index < size,
        f"{what} has no {axis} {index}; they are 0 to {size - 1}.",
    )


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """Return the number format of sums over `tensor`: float32, or float64 if it is."""
    return torch.promote_types(tensor.dtype, torch.float32)
