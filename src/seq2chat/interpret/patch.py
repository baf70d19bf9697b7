"""Surgery: run a model with some of its tensors switched off, scaled, or taken from another text.

    with intervene(model, ablate("layers.1.self_attn.heads.context", head=3)):
        logits = model(tokens)

Switching off a part shows how much it matters, and patching it from the trace of another text shows
what it carries (activation patching: Vig et al. 2020; Meng et al. 2022; Wang et al. 2022).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from seq2chat.config import UserError, check
from seq2chat.interpret.sites import Site, check_site, find_sites
from seq2chat.models.folder import Model
from seq2chat.models.gpt import GPT
from seq2chat.models.transformer import Transformer
from seq2chat.nn.position import Frequencies, sinusoids

POSITIONS = "positions"
Change = Callable[[Tensor], Tensor]


@runtime_checkable
class HasTensors(Protocol):
    """A trace, which `trace.py` defines with the help of this module."""

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True, eq=False)
class Intervention:
    """One change of the tensor at a site: `scale` it by `factor`, or replace it by its `mean` over
    positions, or by `source`, the tensor (position, ...) of another pass.

    `head` limits the change to one head, and `at` to some positions, counted from the end if
    negative. The site "positions" is the encoding of positions of any kind, which can be scaled.
    """

    site: str
    op: Literal["scale", "mean", "patch"]
    factor: float = 0.0
    source: Tensor | None = None
    head: int | None = None
    at: tuple[int, ...] | None = None


def ablate(site: str, head: int | None = None, at: Sequence[int] | None = None) -> Intervention:
    """Set the tensor at `site` to zero."""
    return scale(site, 0.0, head, at)


def scale(
    site: str, factor: float, head: int | None = None, at: Sequence[int] | None = None
) -> Intervention:
    """Multiply the tensor at `site` by `factor`."""
    return Intervention(site, "scale", factor, None, head, None if at is None else tuple(at))


def mean_ablate(
    site: str, head: int | None = None, at: Sequence[int] | None = None
) -> Intervention:
    """Replace the tensor at `site` by its mean over the positions of the text."""
    return Intervention(site, "mean", 0.0, None, head, None if at is None else tuple(at))


def patch(
    site: str, source: HasTensors, head: int | None = None, at: Sequence[int] | None = None
) -> Intervention:
    """Replace the tensor at `site` by that of another trace, which has equally many tokens unless
    the positions `at` are given. Raises UserError if the trace lacks the site."""
    check_site(site, source.tensors)
    positions = None if at is None else tuple(at)
    return Intervention(site, "patch", 0.0, source.tensors[site], head, positions)


@contextmanager
def intervene(model: Model, *interventions: Intervention) -> Iterator[None]:
    """Apply the interventions to every forward pass of `model` inside the `with` block.

    They act in the given order. Positions are those of one pass of the whole text, not of a step
    of a decoding. Raises UserError for a site that does not exist or can't be changed, here, and
    for a head or a position that does not exist, in the pass.
    """
    by_name = find_sites(model) if interventions else {}
    with ExitStack() as stack:
        for one in interventions:
            if one.site == POSITIONS:
                stack.enter_context(_scaled_positions(model, one))
                continue
            check_site(one.site, by_name, [POSITIONS])
            site = by_name[one.site]
            check(
                site.is_editable,
                f"{one.site} can only be read; change {_nearest(one.site, by_name)} instead.",
            )
            check(
                one.head is None or "head" in site.axes,
                f"{one.site} has no heads; leave out the head, or write "
                f"{_nearest(f'{one.site}.heads.context', by_name)}.",
            )
            stack.enter_context(changed(model, site, _change(one, site)))
        yield


@contextmanager
def changed(model: Model, site: Site, change: Change) -> Iterator[None]:
    """Replace the tensor at `site` by `change` of it inside the `with` block."""
    handles = [_hook(site, change)]
    if site.is_step and isinstance(change, _StepChange):
        # The decoder calls the site's module once per position.
        decoder = model.get_submodule("decoder")
        handles.append(decoder.register_forward_pre_hook(lambda *_: change.begin()))
        handles.append(decoder.register_forward_hook(lambda *_: change.end()))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def editable(by_name: Mapping[str, Site]) -> list[str]:
    """Return the names of the sites that can be changed."""
    return [name for name, site in by_name.items() if site.is_editable]


def check_positions(site: str, at: Sequence[int] | None, size: int) -> None:
    """Raise UserError for a position that the text does not have."""
    for position in at or ():
        check(
            -size <= position < size,
            f"The text has no position {position} at {site}; they are 0 to {size - 1}.",
        )


def _hook(site: Site, change: Change) -> torch.utils.hooks.RemovableHandle:
    if site.is_input:
        return site.module.register_forward_pre_hook(partial(_before, site, change))
    return site.module.register_forward_hook(partial(_after, site, change))


def _before(
    site: Site, change: Change, module: nn.Module, arguments: tuple[Any, ...]
) -> tuple[Any, ...]:
    return change(site.read(module, arguments, None)), *arguments[1:]


def _after(
    site: Site, change: Change, module: nn.Module, arguments: tuple[Any, ...], output: Any
) -> Any:
    assert site.replace is not None
    return site.replace(arguments, output, change(site.read(module, arguments, output)))


class _StepChange:
    """A change of a site that is called once per position."""

    def __init__(self, one: Intervention) -> None:
        self._one = one
        self._position = 0

    def begin(self) -> None:
        self._position = 0

    def end(self) -> None:
        """Raise UserError if the pass was too short for the change."""
        one = self._one
        check_positions(one.site, one.at, self._position)
        check(
            one.source is None or one.at is not None or len(one.source) == self._position,
            f"The texts differ in their number of tokens at {one.site}; write texts of equally many"
            " tokens, or patch single positions.",
        )

    def __call__(self, tensor: Tensor) -> Tensor:
        position = self._position
        self._position += 1
        one = self._one
        check(one.op != "mean", f"{one.site} is computed step by step and has no mean; ablate it.")
        if one.at is not None and position not in one.at:
            return tensor
        if one.op == "scale":
            return tensor * one.factor
        assert one.source is not None
        check_positions("the other text", [position], len(one.source))
        return one.source[position].to(tensor).expand_as(tensor)


def _change(one: Intervention, site: Site) -> Change:
    """Return the function of the tensor (batch, *axes) at the site."""
    if site.is_step:
        check(
            one.at is None or min(one.at, default=0) >= 0,
            f"{one.site} is computed step by step; count its positions from 0.",
        )
        return _StepChange(one)
    return partial(_changed_tensor, one)


def _changed_tensor(one: Intervention, tensor: Tensor) -> Tensor:
    n_position = tensor.shape[1]
    check_positions(one.site, one.at, n_position)
    if one.op == "scale":
        new = tensor * one.factor
    elif one.op == "mean":
        new = tensor.mean(1, keepdim=True).expand_as(tensor)
    else:
        new = _aligned(one, tensor)
    selected = torch.ones(tensor.shape[1:3], dtype=torch.bool, device=tensor.device)
    if one.at is not None:
        selected &= _only(n_position, one.at, tensor.device)[:, None]
    if one.head is not None:
        n_head = tensor.shape[2]
        check(
            0 <= one.head < n_head,
            f"{one.site} has no head {one.head}; they are 0 to {n_head - 1}.",
        )
        selected &= _only(n_head, [one.head], tensor.device)
    selected = selected.view(1, *selected.shape, *[1] * (tensor.ndim - 3))
    return torch.where(selected, new, tensor)


def _aligned(one: Intervention, tensor: Tensor) -> Tensor:
    """Return the other pass's tensor in the shape of `tensor`. Only positions `at` matter if the
    texts have different lengths."""
    assert one.source is not None
    source = one.source.to(tensor)
    if source.shape == tensor.shape[1:]:
        return source[None]
    check(
        source.shape[1:] == tensor.shape[2:],
        f"The other trace is of a model of another size: {one.site} is {tuple(source.shape[1:])}"
        f" there and {tuple(tensor.shape[2:])} here.",
    )
    if one.at is None:
        raise UserError(
            f"The texts have {tensor.shape[1]} and {len(source)} tokens; write texts of equally "
            "many tokens, or patch single positions."
        )
    check_positions("the other text", one.at, len(source))
    new = tensor.clone()
    for position in one.at:
        new[:, position] = source[position]
    return new


def _positions(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device)


def _only(size: int, indices: Sequence[int], device: torch.device) -> Tensor:
    """Return a mask (size,) that is True at the indices."""
    mask = torch.zeros(size, dtype=torch.bool, device=device)
    mask[list(indices)] = True
    return mask


def _nearest(name: str, by_name: Mapping[str, Site]) -> str:
    """Return the first editable site of the same layer, preferably below the name."""
    names = editable(by_name)
    below = [other for other in names if other.startswith(f"{name}.")]
    beside = [other for other in names if name.startswith(f"{other}.")]
    exact = [name] if name in names else []
    return (exact or below or beside[::-1] or names)[0]


@dataclass(frozen=True)
class _ScaledFrequencies(Frequencies):
    """Rotary frequencies times a factor; 0 turns all positions off."""

    times: float = 1.0

    def on(self, device: torch.device) -> Tensor:
        return super().on(device) * self.times


@contextmanager
def _scaled_positions(model: Model, one: Intervention) -> Iterator[None]:
    """Scale learned positions or sinusoids, or the angles of rotary positions."""
    check(one.op == "scale", "Positions can be switched off or scaled, but not patched.")
    check(
        one.head is None and one.at is None,
        "Positions are changed for all tokens and heads; leave out the head and the positions.",
    )
    names = ("embed_positions", "embed_source_positions")
    learned = [m for m in (getattr(model, name, None) for name in names) if m is not None]
    with ExitStack() as stack:
        if learned:
            for module in learned:
                handle = module.register_forward_hook(lambda _, __, out: out * one.factor)
                stack.callback(handle.remove)
        elif isinstance(model, GPT):
            plain = model.frequencies
            fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
            times = one.factor * fields.pop("times", 1.0)
            model.frequencies = _ScaledFrequencies(**fields, times=times)
            stack.callback(setattr, model, "frequencies", plain)
        elif isinstance(model, Transformer):
            stack.enter_context(_scaled_sinusoids(model, one.factor))
        else:
            raise UserError(
                f"A {model.config.family} has no encoding of positions: its recurrence reads them "
                "in order."
            )
        yield


@contextmanager
def _scaled_sinusoids(model: Transformer, factor: float) -> Iterator[None]:
    # Every stack's input passes this module, with the positions in it.
    handle = model.dropout.register_forward_hook(
        lambda _, __, x: x + (factor - 1) * sinusoids(_positions(x), x.shape[-1], x.dtype)
    )
    try:
        yield
    finally:
        handle.remove()
