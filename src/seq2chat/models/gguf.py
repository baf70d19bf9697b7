"""GPTs in llama.cpp's file format, in both directions, with their tokenizer.

layout gpt2 ⇄ gpt2 · modern ⇄ qwen3 · llama and mistral ⇄ llama · qwen2 ⇄ qwen2
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from seq2chat.config import GPTConfig, UserError, check
from seq2chat.config.shapes import LayoutName
from seq2chat.log import print_once
from seq2chat.models.folder import check_memory, n_parameters, save_model
from seq2chat.models.gguf_file import GGUFFile, import_gguf
from seq2chat.models.gpt import GPT, frequencies_of
from seq2chat.nn.position import Frequencies
from seq2chat.text.gguf_tokens import metadata_of, tokenizer_from
from seq2chat.text.named import cached_folder, converted_model
from seq2chat.text.text_tokenizer import TextTokenizer

GGUFType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]

_ARCHITECTURES: dict[LayoutName, str] = {
    "gpt2": "gpt2",
    "modern": "qwen3",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
}
# A Mistral without a window is a Llama.
_LAYOUTS = {name: layout for layout, name in _ARCHITECTURES.items() if layout != "mistral"}
_OUTER = {
    "embed_tokens": "token_embd",
    "embed_positions": "position_embd",
    "norm": "output_norm",
    "lm_head": "output",
}
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROPE_FREQS = "rope_freqs.weight"
LLAMA3_CONTEXT = 8192  # before it was stretched, in all models of Llama 3.1 to 3.3


def gguf_folder(file: Path) -> Path:
    """Return a model folder with the contents of a GGUF file, which is made once and kept in the
    cache.

    Raises UserError for a damaged file, and for a model that this package does not have.
    """
    stat = file.stat()
    identity = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    folder = converted_model(file.stem, identity)
    if not folder.exists():
        print_once(f"converting {file.name}, once ...")
        model, tokenizer = read_gguf(file)
        start = tokenizer.start_ids[0] if tokenizer.start_ids else None
        end = tokenizer.end_ids[0] if tokenizer.end_ids else None
        with cached_folder(folder) as temporary:
            save_model(model, temporary, bos_token_id=start, eos_token_id=end)
            tokenizer.save(temporary, model_max_length=model.context)
    return folder


def read_gguf(file: Path) -> tuple[GPT, TextTokenizer]:
    """Return the model in a GGUF file, with dequantized weights in float32, and its tokenizer.

    Raises UserError as `gguf_folder` does.
    """
    stored = GGUFFile(file)
    try:
        try:
            config = _config(stored)
            tokenizer = tokenizer_from(stored.metadata, str(file))
        except KeyError as error:
            raise UserError(f"{file} is damaged: it lacks {error}.") from None
        except UserError:
            raise
        except Exception as error:  # of values of the wrong type, and of the tokenizers library
            raise UserError(f"{file} is damaged: {error}.") from None
        check(
            tokenizer.vocab_size <= config.vocab_size,
            f"The tokenizer in {file} has {tokenizer.vocab_size:,} tokens, and its model has "
            f"{config.vocab_size:,}: they don't belong together.",
        )
        check_memory(file, 4 * n_parameters(config))
        with torch.device("meta"):
            model = GPT(config)
        model.load_state_dict(_weights(stored, model), assign=True)
    finally:
        stored.close()
    return model.eval(), tokenizer


def write_gguf(
    model: GPT, tokenizer: TextTokenizer, file: Path, kind: GGUFType = "f16", name: str = "model"
) -> None:
    """Write a model and its tokenizer as one GGUF file, with matrices of the type `kind`.

    Norms, biases and learned positions keep float32, as in llama.cpp. A matrix whose rows the
    blocks of a quantized type do not divide is stored as float16. Raises UserError for a model or a
    tokenizer that llama.cpp lacks.
    """
    gguf = import_gguf()
    config = model.config
    check(
        config.window == 0 or (config.layout == "mistral" and config.window >= config.context),
        f"llama.cpp has no local layers for the layout {config.layout}; only models without "
        "model.window can be exported.",
    )
    tokens = metadata_of(tokenizer, config.vocab_size)
    architecture = _ARCHITECTURES[config.layout]
    temporary = file.with_name(f".{file.name}.tmp")
    writer = gguf.GGUFWriter(temporary, architecture)
    writer.add_name(name)
    for key, value in (_metadata(config, architecture) | tokens).items():
        _add(writer, key, value)
    for stored_name, tensor in _stored(model).items():
        data = tensor.float().numpy()
        target = _type(gguf, kind, stored_name, data)
        writer.add_tensor(stored_name, gguf.quants.quantize(data, target), raw_dtype=target)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{file} can't be written: {error}.") from error
    finally:
        writer.close()
    temporary.replace(file)


def _config(stored: GGUFFile) -> GPTConfig:
    data = stored.metadata
    architecture = str(data.get("general.architecture"))
    check(
        architecture in _LAYOUTS,
        f"{stored.path} has the architecture {architecture!r}, which is not supported; "
        f"{', '.join(_LAYOUTS)} are.",
    )

    def number(key: str, default: Any = None) -> Any:
        value = data.get(f"{architecture}.{key}", default)
        if value is None:
            raise KeyError(f"{architecture}.{key}")
        return value

    check(not number("expert_count", 0), f"{stored.path} has experts, which are not supported.")
    layout = _LAYOUTS[architecture]
    d_model = number("embedding_length")
    n_head = number("attention.head_count")
    options: dict[str, Any] = {}
    if layout != "gpt2":
        is_llama = layout == "llama"
        options = {
            "n_kv_head": number("attention.head_count_kv", n_head),
            "d_head": number("attention.key_length", d_model // n_head),
            "tie_embeddings": "output.weight" not in stored.tensors,
            "rope_theta": float(number("rope.freq_base", 10000.0)),
            "attention_bias": is_llama and "blk.0.attn_output.bias" in stored.tensors,
            "mlp_bias": is_llama and "blk.0.ffn_down.bias" in stored.tensors,
            **_scaling(stored, number),
        }
    epsilon = "layer_norm_epsilon" if layout == "gpt2" else "layer_norm_rms_epsilon"
    config = GPTConfig(
        layout,
        vocab_size=stored.tensors["token_embd.weight"].shape[0],
        context=number("context_length"),
        n_layer=number("block_count"),
        n_head=n_head,
        d_model=d_model,
        d_ff=number("feed_forward_length"),
        # The file holds float32, and the epsilon of a config.json is a short decimal number.
        norm_eps=float(f"{number(f'attention.{epsilon}'):.6g}"),
        **options,
    )
    # Before a model of this size is built.
    shape = stored.tensors[
        "blk.0.attn_qkv.weight" if layout == "gpt2" else "blk.0.attn_q.weight"
    ].shape
    rows = config.n_head * config.d_head * (3 if layout == "gpt2" else 1)
    check(
        config.n_layer <= len(stored.tensors) and shape == (rows, config.d_model),
        f"{stored.path} is damaged: its metadata does not fit its tensors.",
    )
    if config.rope_scaling == "llama3":
        factors = stored.tensor(ROPE_FREQS)
        check(
            np.allclose(factors, _rope_factors(config).numpy(), rtol=1e-4),
            f"{stored.path} scales rotary positions in a way that is not Llama 3's.",
        )
    return config


def _scaling(stored: GGUFFile, number: Any) -> dict[str, Any]:
    """Return the options of scaled rotary positions."""
    if ROPE_FREQS in stored.tensors:
        factor = float(stored.tensor(ROPE_FREQS).max())
        if factor == 1:
            return {}
        return {
            "rope_scaling": "llama3",
            "rope_factor": factor,
            "rope_context": LLAMA3_CONTEXT,
        }
    kind = number("rope.scaling.type", "none")
    factor = float(number("rope.scaling.factor", number("rope.scale_linear", 1.0)))
    check(
        kind in ("none", "linear"),
        f"{stored.path} scales rotary positions by {kind!r}, which is not supported.",
    )
    return {"rope_scaling": "linear", "rope_factor": factor} if factor != 1 else {}


def _metadata(config: GPTConfig, architecture: str) -> dict[str, Any]:
    """Return the metadata of a model."""
    data: dict[str, Any] = {
        "context_length": config.context,
        "embedding_length": config.d_model,
        "block_count": config.n_layer,
        "feed_forward_length": config.d_ff,
        "attention.head_count": config.n_head,
        "vocab_size": config.vocab_size,
    }
    if config.layout == "gpt2":
        data["attention.layer_norm_epsilon"] = config.norm_eps
    else:
        data |= {
            "attention.head_count_kv": config.n_kv_head,
            "attention.key_length": config.d_head,
            "attention.value_length": config.d_head,
            "attention.layer_norm_rms_epsilon": config.norm_eps,
            "rope.dimension_count": config.d_head,
            "rope.freq_base": config.rope_theta,
        }
    if config.rope_scaling == "linear":
        data |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_factor}
    return {f"{architecture}.{key}": value for key, value in data.items()}


def _add(writer: Any, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def _names(model: GPT) -> dict[str, list[str]]:
    """Return the names in the file, each with the parameters that are stacked by rows in it."""
    names: dict[str, list[str]] = {}
    for parameter, _ in model.named_parameters():
        module, _, kind = parameter.rpartition(".")
        if module.startswith("layers."):
            _, index, inner = module.split(".", 2)
            short = _INNER[inner]
            if model.config.layout == "gpt2" and inner.endswith(("q_proj", "k_proj", "v_proj")):
                short = "attn_qkv"
            name = f"blk.{index}.{short}.{kind}"
        else:
            name = f"{_OUTER[module]}.{kind}"
        names.setdefault(name, []).append(parameter)
    return names


def _stored(model: GPT) -> dict[str, Tensor]:
    """Return the tensors of the file by name."""
    parameters = {name: p.detach().cpu() for name, p in model.named_parameters()}
    tensors = {}
    for name, parts in _names(model).items():
        ordered = [_permuted(model.config, part, parameters[part]) for part in parts]
        tensors[name] = torch.cat(ordered)
    if model.config.rope_scaling == "llama3":
        tensors[ROPE_FREQS] = _rope_factors(model.config)
    return tensors


def _weights(stored: GGUFFile, model: GPT) -> dict[str, Tensor]:
    """Return the parameters of `model` by name, in float32."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    names = _names(model)
    unknown = stored.tensors.keys() - names.keys() - {ROPE_FREQS, "output.weight"}
    missing = names.keys() - stored.tensors.keys()
    wrong = [f"{name} is missing" for name in missing] + [f"{name} is unknown" for name in unknown]
    check(
        not wrong,
        f"{stored.path} is not a complete {model.config.layout} model: {min(wrong, default='')}.",
    )
    weights: dict[str, Tensor] = {}
    for name, parts in names.items():
        tensor = torch.from_numpy(stored.tensor(name).astype(np.float32))
        rows = [shapes[part][0] for part in parts]
        expected = (sum(rows), *shapes[parts[0]][1:])
        check(
            tuple(tensor.shape) == expected,
            f"{stored.path}: tensor {name} has the shape {tuple(tensor.shape)} where its metadata "
            f"makes it {expected}.",
        )
        for part, values in zip(parts, tensor.split(rows), strict=True):
            weights[part] = _permuted(model.config, part, values, back=True).contiguous()
    return weights


def _permuted(config: GPTConfig, name: str, tensor: Tensor, back: bool = False) -> Tensor:
    """Return the rows of q and k of Llama in llama.cpp's order, or from that order `back` in ours.

    It rotates neighboring pairs of a head's numbers, where this package and `transformers` rotate
    the first half with the second.
    """
    is_rotated = ".q_proj." in name or ".k_proj." in name
    if config.layout not in ("llama", "mistral") or not is_rotated:
        return tensor
    pairs = (-1, 2) if back else (2, -1)
    heads = tensor.unflatten(0, (-1, config.d_head)).unflatten(1, pairs)
    return heads.transpose(1, 2).flatten(0, 2)


def _rope_factors(config: GPTConfig) -> Tensor:
    """Return the numbers by which the frequencies of rotary positions are divided."""
    device = torch.device("cpu")
    plain = Frequencies(config.d_head, config.rope_theta)
    return plain.on(device) / frequencies_of(config).on(device)


def _type(gguf: Any, kind: GGUFType, name: str, data: np.ndarray) -> Any:
    """Return the type in which a tensor is stored."""
    types = gguf.GGMLQuantizationType
    if data.ndim < 2 or name.startswith("position_embd"):
        return types.F32
    chosen = types[kind.upper()]
    if kind == "q4_0" and name.startswith(("token_embd", "output")):
        chosen = types.Q8_0  # as llama.cpp keeps the first and last matrix more precise
    n_per_block, _ = gguf.GGML_QUANT_SIZES[chosen]
    return types.F16 if data.shape[1] % n_per_block else chosen
