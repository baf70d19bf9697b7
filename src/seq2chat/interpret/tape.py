"""Recording what a model computes, from outside: `with record(model) as tape:` and run it as ever.

The models know nothing of it. Hooks read what passes between modules and change nothing, so that
logits are equal to the last bit with and without a recording. Attention weights, which the fused
kernel never forms, are computed again from the queries and keys that went into it. When nothing is
recorded there are no hooks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import wraps
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
Read = Callable[[nn.Module, tuple[Any, ...], Any], Tensor]


@dataclass(frozen=True)
class AttentionMap:
    """Who attended to whom at one site: each query's weights over the keys, which sum to 1, or to 0
    where a query may attend nowhere. An RNN's additive attention is one head."""

    path: str
    kind: Kind
    weights: Float[Tensor, "batch head query key"]


@dataclass
class Trail:
    """The parts recorded at each site, call by call, of one forward pass or one decoding."""

    parts: dict[str, list[Tensor]] = field(default_factory=dict)

    def copy(self) -> "Trail":
        return Trail({site: list(parts) for site, parts in self.parts.items()})

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        self.parts = {
            site: [part[rows.to(part.device)] for part in parts]
            for site, parts in self.parts.items()
        }


class Tape:
    """What a model computed in the newest pass: a forward pass, or a decoding from `start` to its
    newest `step`.

    A decoding's steps are joined into one sequence, and its rows follow `state.reorder`, so that
    row i of every tensor is what led to row i of the state.
    """

    def __init__(self, kinds: dict[str, Kind]) -> None:
        self._kinds = kinds
        self._newest = Trail()
        # Of the decoding states that are alive, by id: states need not be hashable.
        self._trails: dict[int, Trail] = {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What passed each site that is no attention map, by its name: (batch, seq, d)."""
        return {
            s: torch.cat(parts, dim=1)
            for s, parts in self._newest.parts.items()
            if s not in self._kinds
        }

    @property
    def attention(self) -> list[AttentionMap]:
        """The attention maps, in the order in which they were computed.

        Where keys are added step by step, the earlier queries' weights of the later keys are zero.
        """
        sites = [(site, parts) for site, parts in self._newest.parts.items() if site in self._kinds]
        return [AttentionMap(site, self._kinds[site], _join(parts)) for site, parts in sites]

    def _follow(self, state: Any, trail: Trail) -> None:
        """Let `trail` be reordered with `state`."""
        known = id(state) in self._trails
        self._trails[id(state)] = trail
        if known:
            return
        finalize(state, self._trails.pop, id(state), None)
        key = id(state)
        inner = state.reorder.__func__

        def reorder(state: Any, rows: Tensor) -> None:
            inner(state, rows)
            if key in self._trails:
                self._trails[key].reorder(rows)

        # Bound to a proxy: a state that held itself would be freed late, and with it all it knows
        # of the source.
        state.reorder = MethodType(reorder, proxy(state))


@contextmanager
def record(
    model: Model, names: Sequence[str] = ("*",), device: torch.device | str | None = None
) -> Iterator[Tape]:
    """Record what `model` computes inside the `with`; return the tape, which stays readable after
    it.

    `names` are shell patterns of the sites to record, which `sites` lists; what is recorded is
    detached, and moved to `device` at once if one is given. Recordings may be nested; each ends
    with its `with`, also after an exception. Raises UserError for a pattern that no site of this
    model matches.
    """
    known = _sites(model)
    for pattern in names:
        check(
            any(fnmatchcase(site, pattern) for site in known),
            f"The model has no site {pattern}; its sites are: {', '.join(known)}.",
        )
    tape = Tape({site: kind for site, (_, _, kind) in known.items() if kind is not None})
    with ExitStack() as stack:
        for site, (module, read, _) in known.items():
            if any(fnmatchcase(site, pattern) for pattern in names):
                handle = module.register_forward_hook(_hook(tape, site, read, device))
                stack.callback(handle.remove)
        for name, method in _methods(tape, model).items():
            stack.callback(_replace(model, name, method))
        # A state that outlives the recording is no longer followed.
        stack.callback(tape._trails.clear)
        yield tape


def sites(model: Model) -> list[str]:
    """Return the names of what can be recorded, as keys of `Tape.tensors` or paths in
    `Tape.attention`.

    | site | tensor |
    |---|---|
    | `layers.input`, `encoder.input`, `decoder.input` | the embeddings, before block 0 |
    | `layers.N`, `encoder.N`, `decoder.N` | the residual stream after block N |
    | `….self_attn`, `….cross_attn`, `….mlp` | what that branch of the block computes |
    | `norm`, `encoder_norm`, `decoder_norm` | the stream after the last norm |
    | `….self_attn.heads`, `….cross_attn.heads` | attention map: self or cross |
    | `encoder` of an RNN | the annotations h_j, in the order in which they were read |
    | `decoder.cells.N` | the state s_i of recurrent layer N |
    | `decoder` of an RNN | the readout t_i |
    | `decoder.attention.query`, `decoder.attention.context` | s_{i-1} of the top layer, and c_i |
    | `decoder.attention` | attention map: additive |
    """
    return list(_sites(model))


def _sites(model: Model) -> dict[str, tuple[nn.Module, Read, Kind | None]]:
    found: dict[str, tuple[nn.Module, Read, Kind | None]] = {}
    for path, module in model.named_modules():
        parent, _, name = path.rpartition(".")
        match module:
            case DotProductHeads():
                found[path] = (
                    module,
                    _dot_product_weights,
                    "cross" if parent.endswith("cross_attn") else "self",
                )
            case AdditiveAttention():
                found[path] = module, _additive_weights, "additive"
        if isinstance(module, AdditiveAttention | FixedContext):
            found[f"{path}.query"] = module, _query, None
            found[f"{path}.context"] = module, _of_one_step, None
        elif isinstance(module, nn.ModuleList) and path in ("layers", "encoder", "decoder"):
            found[f"{path}.input"] = module[0], _first_argument, None
            found |= {f"{path}.{i}": (block, _output, None) for i, block in enumerate(module)}
        elif isinstance(module, nn.ModuleList) and path == "decoder.cells":
            found |= {f"{path}.{i}": (cell, _of_one_step, None) for i, cell in enumerate(module)}
        elif name in ("self_attn", "cross_attn", "mlp") or path in (
            "norm",
            "encoder_norm",
            "decoder_norm",
        ):
            found[path] = module, _output, None
        elif isinstance(module, Encoder | Decoder):
            found[path] = module, _first_output, None
    return found


def _dot_product_weights(
    heads: nn.Module, arguments: tuple[Any, ...], _: Any
) -> Float[Tensor, "batch head query key"]:
    assert isinstance(heads, DotProductHeads)
    q, k, v, mask = arguments
    # The kernel's softmax is not rounded to these either.
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
    tape: Tape, site: str, read: Read, device: torch.device | str | None
) -> Callable[..., None]:
    @torch.no_grad()
    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        part = read(module, arguments, output).detach()
        tape._newest.parts.setdefault(site, []).append(part if device is None else part.to(device))

    return hook


def _methods(tape: Tape, model: Model) -> dict[str, Callable[..., Any]]:
    """Return the methods that tell the tape where a pass begins and to which decoding state a step
    belongs."""

    def hidden(*arguments: Any, **named: Any) -> Tensor:
        tape._newest = Trail()
        return inner["hidden"](*arguments, **named)

    def start(*arguments: Any, **named: Any) -> Any:
        trail = tape._newest = Trail()
        state = inner["start"](*arguments, **named)
        tape._follow(state, trail)
        return state

    def step(tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        # A copy, because a state may be stepped from twice. One from before the recording has no
        # trail yet.
        trail = tape._newest = tape._trails.get(id(state), Trail()).copy()
        logits, after = inner["step"](tokens, state)
        tape._follow(after, trail)
        return logits, after

    methods = {"hidden": hidden, "start": start, "step": step}
    inner = {name: getattr(model, name) for name in methods if hasattr(model, name)}
    # With the signature of the model's own, by which callers tell a translation model from a
    # language model.
    return {name: wraps(own)(methods[name]) for name, own in inner.items()}


def _replace(model: nn.Module, name: str, method: Callable[..., Any]) -> Callable[[], None]:
    """Put `method` in front of the model's own, and return what undoes it."""
    before = vars(model).get(name)
    setattr(model, name, method)
    return lambda: delattr(model, name) if before is None else setattr(model, name, before)


def _join(parts: list[Tensor]) -> Float[Tensor, "batch head query key"]:
    """Return the queries of all parts in sequence, their keys padded with weights of zero to the
    most keys."""
    n_key = max(part.shape[-1] for part in parts)
    return torch.cat([F.pad(part, (0, n_key - part.shape[-1])) for part in parts], dim=2)
