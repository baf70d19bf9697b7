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
from types import MethodType
from typing import Any, Literal
from weakref import finalize, proxy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from seq2chat.config import check
from seq2chat.models.folder import Model
from seq2chat.nn.attention import (
    AdditiveAttention,
    DotProductHeads,
    FixedContext,
    scaled_dot_product_plain,
)
from seq2chat.nn.rnn import Decoder, Encoder

Kind = Literal["self", "cross", "additive"]
# Returns the recorded tensor from a module, its arguments and its output.
Extract = Callable[[nn.Module, tuple[Any, ...], Any], Tensor]


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
        """The tensors `(batch, seq, d)` of all sites except attention maps, by site."""
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

    `names` are shell patterns of the sites to record, for example "layers.*" (see `sites`).
    Recorded tensors are detached, and moved to `device` if one is given. Recordings may be nested.
    Raises UserError for a pattern that matches no site of the model.
    """
    all_sites = _sites(model)
    for pattern in names:
        check(
            any(fnmatchcase(site, pattern) for site in all_sites),
            f"The model has no site {pattern}; its sites are: {', '.join(all_sites)}.",
        )
    tape = Tape({site: kind for site, (_, _, kind) in all_sites.items() if kind is not None})
    with ExitStack() as stack:
        for site, (module, extract, _) in all_sites.items():
            if any(fnmatchcase(site, pattern) for pattern in names):
                handle = module.register_forward_hook(_hook(tape, site, extract, device))
                stack.callback(handle.remove)
        for name, method in _methods(tape, model).items():
            stack.callback(_replace(model, name, method))
        # A state that outlives the recording is no longer followed.
        stack.callback(tape._trails.clear)
        yield tape


def sites(model: Model) -> list[str]:
    """Return the names of all sites, which are the keys of `Tape.tensors` and the paths in
    `Tape.attention`.

    | site | tensor |
    |---|---|
    | `layers.input`, `encoder.input`, `decoder.input` | the embeddings, before block 0 |
    | `layers.N`, `encoder.N`, `decoder.N` | the residual stream after block N |
    | `….self_attn`, `….cross_attn`, `….mlp` | the output of that branch of the block |
    | `norm`, `encoder_norm`, `decoder_norm` | the stream after the last norm |
    | `….self_attn.heads`, `….cross_attn.heads` | attention map: self or cross |
    | `encoder` of an RNN | the annotations h_j, in reading order |
    | `decoder.cells.N` | the state s_i of recurrent layer N |
    | `decoder` of an RNN | the readout t_i |
    | `decoder.attention.query`, `decoder.attention.context` | s_{i-1} of the top layer, and c_i |
    | `decoder.attention` | attention map: additive |
    """
    return list(_sites(model))


def _sites(model: Model) -> dict[str, tuple[nn.Module, Extract, Kind | None]]:
    """Return the module of each site, the function that extracts its tensor, and its kind if it is
    an attention map."""
    all_sites: dict[str, tuple[nn.Module, Extract, Kind | None]] = {}
    for path, module in model.named_modules():
        parent, _, name = path.rpartition(".")
        match module:
            case DotProductHeads():
                kind: Kind = "cross" if parent.endswith("cross_attn") else "self"
                all_sites[path] = (module, _dot_product_weights, kind)
            case AdditiveAttention():
                all_sites[path] = module, _additive_weights, "additive"
        if isinstance(module, AdditiveAttention | FixedContext):
            all_sites[f"{path}.query"] = module, _query, None
            all_sites[f"{path}.context"] = module, _of_one_step, None
        elif isinstance(module, nn.ModuleList) and path in ("layers", "encoder", "decoder"):
            all_sites[f"{path}.input"] = module[0], _first_argument, None
            for i, block in enumerate(module):
                all_sites[f"{path}.{i}"] = (block, _output, None)
        elif isinstance(module, nn.ModuleList) and path == "decoder.cells":
            all_sites |= {
                f"{path}.{i}": (cell, _of_one_step, None) for i, cell in enumerate(module)
            }
        elif name in ("self_attn", "cross_attn", "mlp") or path in (
            "norm",
            "encoder_norm",
            "decoder_norm",
        ):
            all_sites[path] = module, _output, None
        elif isinstance(module, Encoder | Decoder):
            all_sites[path] = module, _first_output, None
    return all_sites


def _dot_product_weights(
    heads: nn.Module, arguments: tuple[Any, ...], _: Any
) -> Float[Tensor, "batch head query key"]:
    assert isinstance(heads, DotProductHeads)
    q, k, v, mask = arguments
    # The kernel computes its softmax in float32, too.
    if q.dtype in (torch.bfloat16, torch.float16):
        q = q.float()
        k = k.float()
        v = v.float()
    is_causal = heads.causal and mask is None and q.shape[-2] > 1
    return scaled_dot_product_plain(q, k, v, mask, is_causal, heads.scale)[1]


def _additive_weights(
    _: nn.Module, __: tuple[Any, ...], output: Any
) -> Float[Tensor, "batch 1 1 source_seq"]:
    return output[1][:, None, None]


def _query(_: nn.Module, arguments: tuple[Any, ...], __: Any) -> Float[Tensor, "batch 1 d_model"]:
    return arguments[0][:, None]


def _of_one_step(_: nn.Module, __: tuple[Any, ...], output: Any) -> Float[Tensor, "batch 1 d"]:
    return output[0][:, None]


def _first_argument(
    _: nn.Module, arguments: tuple[Any, ...], __: Any
) -> Float[Tensor, "batch seq d"]:
    return arguments[0]


def _output(_: nn.Module, __: tuple[Any, ...], output: Any) -> Float[Tensor, "batch seq d"]:
    return output


def _first_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> Float[Tensor, "batch seq d"]:
    return output[0]


def _hook(
    tape: Tape, site: str, extract: Extract, device: torch.device | str | None
) -> Callable[..., None]:
    @torch.no_grad()
    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        part = extract(module, arguments, output).detach()
        tape._newest.parts.setdefault(site, []).append(part if device is None else part.to(device))

    return hook


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
