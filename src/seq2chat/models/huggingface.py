"""GPT checkpoints as Hugging Face model folders, in both directions and without `transformers`.

layout gpt2 ⇄ GPT2LMHeadModel · gpt2 with a window ⇄ GPTNeoForCausalLM · modern ⇄ Qwen3ForCausalLM

A feature that this package cannot reproduce exactly (rotary scaling, sliding windows, other
activations) is refused with an error that names it. Dropout inside the attention weights does not
exist here and is ignored, as it only affects training.
"""

from typing import Any

from seq2chat.config import GPTConfig, check
from seq2chat.models.gpt import GPT, is_local
from seq2chat.models.layout import Layout, refuse_unless

# The parameter names of this package and of Hugging Face, without the layer index. The names of
# the modern layout are Qwen3's own and need no table.
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
    if c.layout == "modern":
        return shared | {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_act": "silu",
            "hidden_size": c.d_model,
            "intermediate_size": c.d_ff,
            "num_hidden_layers": c.n_layer,
            "num_attention_heads": c.n_head,
            "num_key_value_heads": c.n_kv_head,
            "head_dim": c.d_head,
            "max_position_embeddings": c.context,
            "rms_norm_eps": c.norm_eps,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "sliding_window": None,
            # transformers 5 reads the first, transformers 4 and llama.cpp read the second.
            "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
            "rope_theta": c.rope_theta,
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


def _from_qwen3(f: dict[str, Any]) -> GPTConfig:
    refuse_unless(f, hidden_act="silu", attention_bias=False, use_sliding_window=False)
    layer_types = set(f.get("layer_types") or ["full_attention"])
    check(
        layer_types == {"full_attention"}, "layer_types with sliding attention are not supported."
    )
    rope = f.get("rope_parameters") or f.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    check(
        kind == "default",
        f"rope scaling of type {kind!r} is not supported; only plain rotary positions are.",
    )
    return GPTConfig(
        "modern",
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
        rope_theta=float(rope.get("rope_theta") or f.get("rope_theta") or 10000.0),
    )


def _gelu_and_tied(f: dict[str, Any]) -> dict[str, bool]:
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
    if config.layout == "modern":
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
    if stored.endswith(
        (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
    ):
        return None
    prefix = "model." if config.layout == "modern" else "transformer."
    return stored if stored.startswith(prefix) else prefix + stored


LAYOUT = Layout(_to_hf, _tensor_names, _canonical, _is_conv1d)
READERS = {"gpt2": _from_gpt2, "gpt_neo": _from_gpt_neo, "qwen3": _from_qwen3}
"""By `model_type`, the function from config.json's fields to a GPTConfig.

It raises UserError for an unsupported feature.
"""
