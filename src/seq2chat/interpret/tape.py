"""Record the activations of a model: run it inside `with record(model) as tape:`.

The models have no code for it. Hooks read the tensors between modules and change nothing, so that
logits with and without a recording are equal to the last bit. Attention weights, which the fused
kernel never stores, are recomputed from its queries and keys. Without a recording there are no
hooks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from types import MethodType
from typing import Any
from weakref import finalize, proxy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from seq2chat.interpret.sites import Kind, Site, check_site, find_sites
from seq2chat.models.folder import Model


@dataclass(frozen=True)
class AttentionMap:
    """The attention weights at one site.

    The weights of each query sum to 1, or to 0 if everything is masked. An RNN's additive attention
    has one head.
    """

    path: str
    kind: Kind
    weights: Float[Tensor, "batch head query key"]


@dataclass
class Trail:
    """The tensors recorded at each site during one forward pass or one decoding, one per call."""

    parts: dict[str, list[Tensor]] = field(default_factory=dict)

    def copy(self) -> "Trail":
        return Trail({site: list(parts) for site, parts in self.parts.items()})

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        self.parts = {
            site: [part[rows.to(part.device)] for part in parts]
            for site, parts in self.parts.items()
        }


class Tape:
    """The recording of the newest pass: a forward pass, or a decoding from `start` to its newest
    `step`.

    The steps of a decoding are joined into one sequence. Its rows follow `state.reorder`, so that
    row i of every tensor belongs to row i of the state.
    """

    def __init__(self, kinds: dict[str, Kind]) -> None:
        self._kinds = kinds
        self._newest = Trail()
        # By the ids of the living decoding states, as states need not be hashable.
        self._trails: dict[int, Trail] = {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors `(batch, seq, ...)` of all sites except attention maps, by site."""
        return {
            s: torch.cat(parts, dim=1)
            for s, parts in self._newest.parts.items()
            if s not in self._kinds
        }

    @property
    def attention(self) -> list[AttentionMap]:
        """The attention maps, in the order of their computation.

        In a decoding, the weights of earlier queries on later keys are zero.
        """
        sites = [(site, parts) for site, parts in self._newest.parts.items() if site in self._kinds]
        return [AttentionMap(site, self._kinds[site], _join(parts)) for site, parts in sites]

    def _follow(self, state: Any, trail: Trail) -> None:
        """Reorder `trail` whenever `state` is reordered."""
        is_followed = id(state) in self._trails
        self._trails[id(state)] = trail
        if is_followed:
            return
        finalize(state, self._trails.pop, id(state), None)
        key = id(state)
        inner = state.reorder.__func__

        def reorder(state: Any, rows: Tensor) -> None:
            inner(state, rows)
            if key in self._trails:
                self._trails[key].reorder(rows)

        # Bound to a proxy, as a state with a reference to itself would be freed late, together with
        # the tensors of the source.
        state.reorder = MethodType(reorder, proxy(state))


@contextmanager
def record(
    model: Model, names: Sequence[str] = ("*",), device: torch.device | str | None = None
) -> Iterator[Tape]:
    """Record the activations of `model` inside the `with` block. The tape stays readable after it.

    `names` are shell patterns of the sites to record, for example "layers.*" (see
    `interpret/sites.py`).
    Recorded tensors are detached, and moved to `device` if one is given. Recordings may be nested.
    Raises UserError for a pattern that matches no site of the model.
    """
    all_sites = find_sites(model)
    for pattern in names:
        if not any(fnmatchcase(name, pattern) for name in all_sites):
            check_site(pattern, all_sites)
    kinds = {name: site.kind for name, site in all_sites.items() if site.kind is not None}
    tape = Tape(kinds)
    with ExitStack() as stack:
        for name, site in all_sites.items():
            if any(fnmatchcase(name, pattern) for pattern in names):
                handle = site.module.register_forward_hook(partial(_keep, tape, name, site, device))
                stack.callback(handle.remove)
        for name, method in _methods(tape, model).items():
            stack.callback(_replace(model, name, method))
        # A state that outlives the recording is no longer followed.
        stack.callback(tape._trails.clear)
        yield tape


@torch.no_grad()
def _keep(
    tape: Tape,
    name: str,
    site: Site,
    device: torch.device | str | None,
    module: nn.Module,
    arguments: tuple[Any, ...],
    output: Any,
) -> None:
    """Put the tensor of a site on the tape: a forward hook, once the first four are bound."""
    part = site.read(module, arguments, output).detach()
    tape._newest.parts.setdefault(name, []).append(part if device is None else part.to(device))


def _methods(tape: Tape, model: Model) -> dict[str, Callable[..., Any]]:
    """Return replacements for methods of the model, which start a new trail with each pass and
    assign steps to decoding states."""

    def hidden(*arguments: Any, **named: Any) -> Tensor:
        tape._newest = Trail()
        return inner["hidden"](*arguments, **named)

    def start(*arguments: Any, **named: Any) -> Any:
        trail = tape._newest = Trail()
        state = inner["start"](*arguments, **named)
        tape._follow(state, trail)
        return state

    def step(tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        # A copy, because two steps may start from the same state. A state from before the recording
        # has no trail yet.
        trail = tape._newest = tape._trails.get(id(state), Trail()).copy()
        logits, after = inner["step"](tokens, state)
        tape._follow(after, trail)
        return logits, after

    methods = {"hidden": hidden, "start": start, "step": step}
    # BERT has no `step`.
    inner = {name: getattr(model, name) for name in methods if hasattr(model, name)}
    return {name: methods[name] for name in inner}


def _replace(model: nn.Module, name: str, method: Callable[..., Any]) -> Callable[[], None]:
    """Replace a method of the model, and return a function that restores it."""
    before = vars(model).get(name)
    setattr(model, name, method)
    return lambda: delattr(model, name) if before is None else setattr(model, name, before)


def _join(parts: list[Tensor]) -> Float[Tensor, "batch head query key"]:
    """Return the queries of all parts in one sequence, with the keys padded by weights of zero."""
    n_key = max(part.shape[-1] for part in parts)
    return torch.cat([F.pad(part, (0, n_key - part.shape[-1])) for part in parts], dim=2)
