"""The named sites of every family: where a model's tensors can be read, and some of them replaced.

The models have no code for it. A site is a module with a function that reads a tensor from its
arguments and its output.

| site | tensor |
|---|---|
| `layers.input`, `encoder.input`, `decoder.input` | the embeddings, before block 0 |
| `layers.N`, `encoder.N`, `decoder.N` | the residual stream after block N |
| `….self_attn_residual`, `….cross_attn_residual` | the stream after that branch was added |
| `….self_attn`, `….cross_attn`, `….mlp` | the output of that branch of the block |
| `….mlp.activation` | the neurons: the input of the branch's last matrix |
| `….write` | the stream after the block minus the stream before it |
| `….skip` | the stream that passes by a pre-norm block, which is the stream before it |
| `norm`, `encoder_norm`, `decoder_norm` | the stream after the last norm |
| `….heads` | attention map: self or cross |
| `….heads.query`, `….key`, `….value` | of each head, as the products read them |
| `….heads.context` | of each head: its weights times the values, before the output matrix |
| `encoder` of an RNN | the annotations h_j, in reading order |
| `encoder.forward.N`, `encoder.backward.N` | the states of its recurrent layer N |
| `encoder.forward.N.gates`, ... | its gates, as those of the decoder's cells |
| `decoder.cells.N` | the state s_i of recurrent layer N |
| `decoder.cells.N.gates` | r, z and n of a GRU, and i, f, g and o of an LSTM |
| `decoder.cells.N.cell` | the cell c_i of an LSTM |
| `decoder` of an RNN | the readout t_i |
| `decoder.attention.query`, `decoder.attention.context` | s_{i-1} of the top layer, and c_i |
| `decoder.attention` | attention map: additive |
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seq2chat.config import UserError
from seq2chat.config.toml import did_you_mean
from seq2chat.interpret.recurrence import EncoderLayers, gates
from seq2chat.models import gpt
from seq2chat.models.folder import Model
from seq2chat.models.transformer import Residual
from seq2chat.nn.attention import (
    AdditiveAttention,
    DotProductHeads,
    FixedContext,
    MultiHeadAttention,
    scaled_dot_product_plain,
)
from seq2chat.nn.rnn import Decoder, Encoder, GRUCell, LSTMCell

Kind = Literal["self", "cross", "additive"]
Arguments = tuple[Any, ...]
# Returns the tensor of a site from a module, its arguments and its output.
Read = Callable[[nn.Module, Arguments, Any], Tensor]
# Returns the module's output with another tensor at the site, from its arguments, its output and
# that tensor.
Replace = Callable[[Arguments, Any, Tensor], Any]

NUMBER = re.compile(r"\d+")  # of the layer, in the name of a site

STREAM = ("position", "dim")
PER_HEAD = ("position", "head", "dim")
BRANCHES = ("self_attn", "cross_attn", "mlp")


@dataclass(frozen=True)
class Site:
    """A place in a model with a tensor of shape (batch, *axes).

    `kind` is that of an attention map, or None for another tensor. `replace` is None if the tensor
    can only be read. If `is_input`, it is the module's first argument, which can be replaced before
    the module runs. If `is_step`, the module is called once per position.
    """

    module: nn.Module
    read: Read
    axes: tuple[str, ...]
    replace: Replace | None = None
    kind: Kind | None = None
    is_input: bool = False
    is_step: bool = False

    @property
    def is_editable(self) -> bool:
        return self.replace is not None or self.is_input


def sites(model: Model) -> list[str]:
    """Return the names of all sites, as in the table of this module."""
    return list(find_sites(model))


def check_site(name: str, known: Collection[str], others: Iterable[str] = ()) -> None:
    """Raise UserError unless `name` is one of the `known` sites. The message names similar ones,
    also of the `others`."""
    if name in known:
        return
    names = list(dict.fromkeys([*known, *others]))
    layers = dict.fromkeys(NUMBER.sub("N", one, count=1) for one in names)
    hint = did_you_mean(name, names) or f" The sites are: {', '.join(layers)}."
    raise UserError(f"There is no site {name}.{hint}")


def find_sites(model: Model) -> dict[str, Site]:
    """Return all sites of `model` by name."""
    by_name: dict[str, Site] = {}
    for path, module in model.named_modules():
        match module:
            case DotProductHeads():
                by_name |= _heads(path, module, model)
            case AdditiveAttention() | FixedContext():
                by_name |= _recurrent_attention(path, module)
            case Encoder():
                by_name[path] = Site(module, _first_output, STREAM, _replace_first)
                by_name |= _encoder_layers(path, module)
            case Decoder():
                by_name[path] = Site(module, _first_output, STREAM, _replace_first)
            case GRUCell() | LSTMCell():
                by_name |= _cell(path, module)
            case nn.ModuleList() if path in ("layers", "encoder", "decoder"):
                by_name[f"{path}.input"] = Site(module[0], _first_argument, STREAM, is_input=True)
                for i, block in enumerate(module):
                    by_name |= _block(f"{path}.{i}", block)
            case _:
                by_name |= _part_of_block(path, module)
    return by_name


def _block(path: str, block: nn.Module) -> dict[str, Site]:
    by_name = {
        path: Site(block, _output, STREAM, lambda _, __, new: new),
        f"{path}.write": Site(block, _write, STREAM, lambda inputs, _, new: inputs[0] + new),
    }
    residual = getattr(block, "mlp_residual", None)
    if isinstance(block, gpt.Block) or (isinstance(residual, Residual) and residual.pre):
        by_name[f"{path}.skip"] = Site(
            block,
            _first_argument,
            STREAM,
            lambda inputs, output, new: output - inputs[0] + new,
        )
    return by_name


def _part_of_block(path: str, module: nn.Module) -> dict[str, Site]:
    parent, _, name = path.rpartition(".")
    if name in BRANCHES or path in ("norm", "encoder_norm", "decoder_norm"):
        return {path: Site(module, _output, STREAM, lambda _, __, new: new)}
    if name in ("self_attn_residual", "cross_attn_residual"):
        return {path: Site(module, _output, STREAM)}
    if name == "self_attn_norm":  # BERT's, which comes after the addition
        return {f"{parent}.self_attn_residual": Site(module, _output, STREAM)}
    if name == "post_attention_layernorm":  # GPT's, which reads the sum
        return {f"{parent}.self_attn_residual": Site(module, _first_argument, STREAM)}
    if path.endswith("mlp.down_proj"):
        site = Site(module, _first_argument, ("position", "neuron"), is_input=True)
        return {f"{parent}.activation": site}
    return {}


def _heads(path: str, module: DotProductHeads, model: Model) -> dict[str, Site]:
    parent = path.removesuffix(".heads")
    attention = model.get_submodule(parent)
    kind: Kind = "cross" if parent.endswith("cross_attn") else "self"
    by_name = {
        path: Site(module, _dot_product_weights, ("head", "query", "key"), kind=kind),
        f"{path}.query": Site(module, _query_of_heads, PER_HEAD),
        f"{path}.context": Site(
            module,
            lambda _, __, output: output.transpose(1, 2),
            PER_HEAD,
            lambda _, __, new: new.transpose(1, 2),
        ),
    }
    for index, name in ((1, "key"), (2, "value")):
        if kind == "self":
            by_name[f"{path}.{name}"] = Site(module, partial(_newest, index=index), PER_HEAD)
        else:
            # Cross-attention reads the same memory at each step of a decoding. Its matrices run
            # once.
            assert isinstance(attention, MultiHeadAttention)
            n_head = attention.n_head
            project = attention.k_proj if name == "key" else attention.v_proj
            by_name[f"{path}.{name}"] = Site(
                project, lambda _, __, y, n=n_head: y.unflatten(-1, (n, -1)), PER_HEAD
            )
    return by_name


def _recurrent_attention(path: str, module: nn.Module) -> dict[str, Site]:
    by_name = {
        f"{path}.query": Site(module, _query, STREAM, is_step=True),
        f"{path}.context": Site(module, _of_one_step, STREAM, _replace_step, is_step=True),
    }
    if isinstance(module, AdditiveAttention):
        by_name[path] = Site(
            module, _additive_weights, ("head", "query", "key"), kind="additive", is_step=True
        )
    return by_name


def _cell(path: str, cell: GRUCell | LSTMCell) -> dict[str, Site]:
    by_name = {
        path: Site(cell, _of_one_step, STREAM, _replace_step, is_step=True),
        f"{path}.gates": Site(cell, _gates, ("position", "gate", "dim"), is_step=True),
    }
    if isinstance(cell, LSTMCell):
        by_name[f"{path}.cell"] = Site(
            cell, lambda _, __, output: output[1][:, None], STREAM, is_step=True
        )
    return by_name


def _encoder_layers(path: str, encoder: Encoder) -> dict[str, Site]:
    layers = EncoderLayers(encoder)
    return {
        f"{path}.{name}": Site(
            encoder,
            lambda _, inputs, output, name=name: layers.read(name, inputs[0], inputs[1], output),
            ("position", "gate", "dim") if name.endswith(".gates") else STREAM,
        )
        for name in layers.names
    }


def _dot_product_weights(
    heads: nn.Module, arguments: Arguments, _: Any
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


def _query_of_heads(
    _: nn.Module, arguments: Arguments, __: Any
) -> Float[Tensor, "batch seq head d_head"]:
    return arguments[0].transpose(1, 2)


def _newest(
    _: nn.Module, arguments: Arguments, __: Any, index: int
) -> Float[Tensor, "batch seq kv_head d_head"]:
    """Return the keys or values of the new positions. With a cache, earlier ones come first."""
    n_new = arguments[0].shape[2]
    return arguments[index][:, :, -n_new:].transpose(1, 2)


def _gates(cell: nn.Module, arguments: Arguments, _: Any) -> Float[Tensor, "batch 1 gate d_model"]:
    assert isinstance(cell, GRUCell | LSTMCell)
    inputs, carry = arguments
    return gates(inputs, cell.recurrent(carry[0]), isinstance(cell, LSTMCell))[:, None]


def _additive_weights(
    _: nn.Module, __: Arguments, output: Any
) -> Float[Tensor, "batch 1 1 source_seq"]:
    return output[1][:, None, None]


def _query(_: nn.Module, arguments: Arguments, __: Any) -> Float[Tensor, "batch 1 d_model"]:
    return arguments[0][:, None]


def _of_one_step(_: nn.Module, __: Arguments, output: Any) -> Float[Tensor, "batch 1 d"]:
    return output[0][:, None]


def _first_argument(_: nn.Module, arguments: Arguments, __: Any) -> Float[Tensor, "batch seq d"]:
    return arguments[0]


def _output(_: nn.Module, __: Arguments, output: Any) -> Float[Tensor, "batch seq d"]:
    return output


def _write(_: nn.Module, arguments: Arguments, output: Any) -> Float[Tensor, "batch seq d"]:
    return output - arguments[0]


def _first_output(_: nn.Module, __: Arguments, output: Any) -> Float[Tensor, "batch seq d"]:
    return output[0]


def _replace_first(_: Arguments, output: Any, new: Tensor) -> Any:
    return new, *output[1:]


def _replace_step(_: Arguments, output: Any, new: Tensor) -> Any:
    return new[:, 0], *output[1:]
