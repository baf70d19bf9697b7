"""GPT checkpoints as Hugging Face model folders, in both directions and without `transformers`.

layout gpt2 ⇄ GPT2LMHeadModel · gpt2 with a window ⇄ GPTNeoForCausalLM · modern ⇄ Qwen3ForCausalLM ·
llama ⇄ LlamaForCausalLM · qwen2 ⇄ Qwen2ForCausalLM · mistral ⇄ MistralForCausalLM

A feature that this package cannot reproduce exactly (other rotary scalings, windows in some layers,
other activations) is refused with an error that names it. Dropout inside the attention weights does
not exist here and is ignored, as it only affects training.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from seq2chat.config import GPTConfig, check
from seq2chat.config.shapes import LayoutName
from seq2chat.models.gpt import GPT, LAYOUTS, is_local
from seq2chat.models.layout import Layout, refuse_unless
from seq2chat.nn.position import FAST_WAVES, SLOW_WAVES

# The parameter names of this package and of Hugging Face, without the layer index. The names of
# rotary models are the same in both and need no table.
_GPT_NEO = {
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.q_proj": "attn.attention.q_proj",
    "self_attn.k_proj": "attn.attention.k_proj",
    "self_attn.v_proj": "attn.attention.v_proj",
    "self_attn.o_proj": "attn.attention.out_proj",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}
_GPT2 = (
    _GPT_NEO
    | {f"self_attn.{x}_proj": "attn.c_attn" for x in "qkv"}
    | {"self_attn.o_proj": "attn.c_proj"}
)
_OUTER = {"embed_tokens": "wte", "embed_positions": "wpe", "norm": "ln_f"}


def _to_hf(c: GPTConfig) -> dict[str, Any]:
    """Return the config.json of a GPTConfig, except dtype and token ids."""
    shared = {
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tie_embeddings,
        "use_cache": True,
    }
    if LAYOUTS[c.layout].rotary:
        kind = _ROTARY[c.layout]
        rope = _rope_fields(c)
        return shared | {
            "architectures": [f"{kind.capitalize()}ForCausalLM"],
            "model_type": kind,
            "hidden_act": "silu",
            "hidden_size": c.d_model,
            "intermediate_size": c.d_ff,
            "num_hidden_layers": c.n_layer,
            "num_attention_heads": c.n_head,
            "num_key_value_heads": c.n_kv_head,
            "head_dim": c.d_head,
            "max_position_embeddings": c.context,
            "rms_norm_eps": c.norm_eps,
            "attention_bias": c.attention_bias,
            "mlp_bias": c.mlp_bias,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "sliding_window": c.window or None,
            # transformers 5 reads the first, transformers 4 and llama.cpp read the others.
            "rope_parameters": {**rope, "rope_theta": c.rope_theta},
            "rope_theta": c.rope_theta,
            "rope_scaling": None if c.rope_scaling == "none" else rope,
            "seq2chat": {"dropout": c.dropout},
        }
    shared |= {"activation_function": "gelu_new", "layer_norm_epsilon": c.norm_eps}
    if c.window == 0:
        return shared | {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_embd": c.d_model,
            "n_layer": c.n_layer,
            "n_head": c.n_head,
            "n_inner": c.d_ff,
            "n_positions": c.context,
            "embd_pdrop": c.dropout,
            "resid_pdrop": c.dropout,
            "attn_pdrop": 0.0,
        }
    types = [[["global", "local"], c.n_layer // 2]] + [[["global"], 1]] * (c.n_layer % 2)
    return shared | {
        "architectures": ["GPTNeoForCausalLM"],
        "model_type": "gpt_neo",
        "hidden_size": c.d_model,
        "num_layers": c.n_layer,
        "num_heads": c.n_head,
        "intermediate_size": c.d_ff,
        "max_position_embeddings": c.context,
        "window_size": c.window,
        "attention_types": types,
        "attention_layers": [
            "local" if is_local(c, index) else "global" for index in range(c.n_layer)
        ],
        "embed_dropout": c.dropout,
        "resid_dropout": c.dropout,
        "attention_dropout": 0.0,
    }


def _rope_fields(c: GPTConfig) -> dict[str, Any]:
    match c.rope_scaling:
        case "linear":
            return {"rope_type": "linear", "factor": c.rope_factor}
        case "llama3":
            return {
                "rope_type": "llama3",
                "factor": c.rope_factor,
                "low_freq_factor": SLOW_WAVES,
                "high_freq_factor": FAST_WAVES,
                "original_max_position_embeddings": c.rope_context,
            }
    return {"rope_type": "default"}


def _from_gpt2(f: dict[str, Any]) -> GPTConfig:
    refuse_unless(
        f, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False
    )
    return GPTConfig(
        "gpt2",
        vocab_size=f["vocab_size"],
        context=f["n_positions"],
        n_layer=f["n_layer"],
        n_head=f["n_head"],
        d_model=f["n_embd"],
        d_ff=f.get("n_inner") or 0,
        dropout=f.get("resid_pdrop", 0.1),
        norm_eps=f.get("layer_norm_epsilon", 1e-5),
        **_gelu_and_tied(f),
    )


def _from_gpt_neo(f: dict[str, Any]) -> GPTConfig:
    kinds = [
        kind
        for pattern, repeats in f["attention_types"]
        for _ in range(repeats)
        for kind in pattern
    ]
    alternating = ["local" if index % 2 else "global" for index in range(f["num_layers"])]
    check(
        kinds == alternating,
        "attention_types must alternate global and local, as in every GPT-Neo.",
    )
    return GPTConfig(
        "gpt2",
        vocab_size=f["vocab_size"],
        context=f["max_position_embeddings"],
        n_layer=f["num_layers"],
        n_head=f["num_heads"],
        d_model=f["hidden_size"],
        d_ff=f.get("intermediate_size") or 0,
        dropout=f.get("resid_dropout", 0.0),
        window=f.get("window_size", 256),
        norm_eps=f.get("layer_norm_epsilon", 1e-5),
        **_gelu_and_tied(f),
    )


def _from_rotary(layout: LayoutName, f: dict[str, Any]) -> GPTConfig:
    """Return the config of a model with rotary positions, RMSNorm and SwiGLU."""
    refuse_unless(f, hidden_act="silu", use_sliding_window=False, partial_rotary_factor=1.0)
    if layout == "modern":
        refuse_unless(f, attention_bias=False)
    window = (f.get("sliding_window") or 0) if layout == "mistral" else 0
    types = set(f.get("layer_types") or []) - {"full_attention"}
    check(
        not types or (window > 0 and "full_attention" not in f["layer_types"]),
        "layer_types with sliding attention in some layers are not supported.",
    )
    return GPTConfig(
        layout,
        vocab_size=f["vocab_size"],
        context=f["max_position_embeddings"],
        n_layer=f["num_hidden_layers"],
        n_head=f["num_attention_heads"],
        n_kv_head=f.get("num_key_value_heads") or 0,
        d_model=f["hidden_size"],
        d_head=f.get("head_dim") or 0,
        d_ff=f["intermediate_size"],
        norm_eps=f.get("rms_norm_eps", 1e-6),
        tie_embeddings=f.get("tie_word_embeddings", False),
        dropout=f.get("seq2chat", {}).get("dropout", 0.0),
        window=window,
        attention_bias=layout == "llama" and bool(f.get("attention_bias")),
        mlp_bias=layout == "llama" and bool(f.get("mlp_bias")),
        **_rope(f),
    )


def _rope(f: dict[str, Any]) -> dict[str, Any]:
    """Return the options of rotary positions, from the fields of `transformers` 4 or 5."""
    rope = f.get("rope_parameters") or f.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    options: dict[str, Any] = {
        "rope_theta": float(rope.get("rope_theta") or f.get("rope_theta") or 10000.0)
    }
    refuse_unless(rope, partial_rotary_factor=1.0)
    if kind == "default":
        return options
    check(
        kind in ("linear", "llama3"),
        f"rope scaling of type {kind!r} is not supported; default, linear and llama3 are.",
    )
    options |= {"rope_scaling": kind, "rope_factor": float(rope["factor"])}
    if kind == "llama3":
        refuse_unless(rope, low_freq_factor=SLOW_WAVES, high_freq_factor=FAST_WAVES)
        options["rope_context"] = rope["original_max_position_embeddings"]
    return options


def _gelu_and_tied(f: dict[str, Any]) -> dict[str, Any]:
    activation = f.get("activation_function", "gelu_new")
    tanh = ("gelu_new", "gelu_pytorch_tanh")
    check(
        activation in tanh,
        f"activation_function {activation!r} is not supported; {' and '.join(tanh)} are.",
    )
    refuse_unless(f, tie_word_embeddings=True)
    return {"tie_embeddings": True}


def _tensor_names(model: GPT) -> dict[str, list[str]]:
    """Return the stored tensor names, each with the parameters that it contains, see `Layout`."""
    names: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        names.setdefault(_hf_name(model.config, name), []).append(name)
    return names


def _hf_name(config: GPTConfig, name: str) -> str:
    if LAYOUTS[config.layout].rotary:
        return name if name.startswith("lm_head") else f"model.{name}"
    module, _, kind = name.rpartition(".")
    if not module.startswith("layers."):
        return f"transformer.{_OUTER[module]}.{kind}"
    _, index, inner = module.split(".", 2)
    return f"transformer.h.{index}.{(_GPT_NEO if config.window else _GPT2)[inner]}.{kind}"


def _is_conv1d(config: GPTConfig, hf_name: str) -> bool:
    return (
        config.layout == "gpt2"
        and config.window == 0
        and ".c_" in hf_name
        and hf_name.endswith(".weight")
    )


def _canonical(config: GPTConfig, stored: str) -> str | None:
    """Return the full name of a stored tensor, or None for buffers and copies of tied ones."""
    if stored == "lm_head.weight":
        return None if config.tie_embeddings else stored
    if stored.endswith(_BUFFERS):
        return None
    prefix = "model." if LAYOUTS[config.layout].rotary else "transformer."
    return stored if stored.startswith(prefix) else prefix + stored


_ROTARY: dict[LayoutName, str] = {
    "modern": "qwen3",
    "llama": "llama",
    "qwen2": "qwen2",
    "mistral": "mistral",
}
_BUFFERS = (
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",  # in files of older versions of `transformers`
)

LAYOUT = Layout(_to_hf, _tensor_names, _canonical, _is_conv1d)
READERS: dict[str, Callable[[dict[str, Any]], GPTConfig]] = {
    "gpt2": _from_gpt2,
    "gpt_neo": _from_gpt_neo,
} | {kind: partial(_from_rotary, layout) for layout, kind in _ROTARY.items()}
"""By `model_type`, the function from config.json's fields to a GPTConfig.

It raises UserError for an unsupported feature.
"""

MISSING = {
    "smollm3": "layers without rotary positions",
    "mixtral": "experts",
    "qwen3_moe": "experts",
    "phi3": "fused projections",
    "gemma": "its norms and its scaled embedding",
    "gemma2": "its norms, soft caps and alternating windows",
    "gemma3_text": "its norms and alternating windows",
    "gpt_neox": "parallel branches",
    "opt": "its positions and ReLU",
}
"""What this package lacks for other families that people have."""
