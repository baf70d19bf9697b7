"""BERT checkpoints as Hugging Face model folders, in both directions and without `transformers`.

with the masked-LM head ⇄ BertForMaskedLM · and next sentence ⇄ BertForPreTraining · without either ⇄ BertModel

Heads in a folder that its `architectures` does not name are not read: BERT's own folder carries next sentence beside
BertForMaskedLM, and a sentence encoder a pooler that it does not use. Dropout inside the attention weights is not ours.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from seq2chat.config import BERTConfig, UserError, check
from seq2chat.models.bert import BERT
from seq2chat.models.huggingface import refuse_unless, stored_tensors

# Our parameter names, layer index aside, and theirs.
_LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.o_proj": "attention.output.dense",
    "self_attn_norm": "attention.output.LayerNorm",
    "mlp.up_proj": "intermediate.dense",
    "mlp.down_proj": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_OUTER = {
    "embed_tokens": "bert.embeddings.word_embeddings",
    "embed_positions": "bert.embeddings.position_embeddings",
    "embed_segments": "bert.embeddings.token_type_embeddings",
    "embed_norm": "bert.embeddings.LayerNorm",
    "mlm_head": "cls.predictions",
    "mlm_head.dense": "cls.predictions.transform.dense",
    "mlm_head.norm": "cls.predictions.transform.LayerNorm",
    "pooler": "bert.pooler.dense",
    "next_sentence_head": "cls.seq_relationship",
}
_ARCHITECTURES = {  # (masked_lm, next_sentence)
    (True, False): "BertForMaskedLM",
    (True, True): "BertForPreTraining",
    (False, True): "BertForNextSentencePrediction",
    (False, False): "BertModel",
}
_TIED = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
_BUFFERS = ("bert.embeddings.position_ids",)
_HEADS = ("cls.", "bert.pooler.")


def save_bert(model: BERT, folder: str | Path, dtype: torch.dtype | None = None, **token_ids: int | None) -> None:
    """Write `config.json` and `model.safetensors`, which `transformers` opens, into `folder`.

    Weights are stored as `dtype`, or as they are; `token_ids`, such as `pad_token_id`, are recorded.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = dtype or model.embed_tokens.weight.dtype
    plain = not (model.config.masked_lm or model.config.next_sentence)
    tensors = {
        _their_name(name).removeprefix("bert." if plain else ""): tensor.to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    c = model.config
    fields = {
        "architectures": [_ARCHITECTURES[c.masked_lm, c.next_sentence]], "model_type": "bert",
        "vocab_size": c.vocab_size, "hidden_size": c.d_model, "intermediate_size": c.d_ff,
        "num_hidden_layers": c.n_layer, "num_attention_heads": c.n_head, "max_position_embeddings": c.context,
        "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": c.norm_eps, "tie_word_embeddings": True,
        "hidden_dropout_prob": c.dropout, "attention_probs_dropout_prob": 0.0,
        "dtype": str(dtype).removeprefix("torch."), **token_ids,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def load_bert(folder: str | Path, dtype: torch.dtype = torch.float32) -> BERT:
    """Return the BERT of a Hugging Face folder, on the CPU, in evaluation mode, its weights as `dtype`.

    Raises UserError for a folder that is no such model, a damaged file, an unsupported feature, or a tensor that is
    missing, unknown or of the wrong shape.
    """
    folder = Path(folder)
    config = load_bert_config(folder)
    with torch.device("meta"):
        model = BERT(config)
    names = {_their_name(name): name for name, _ in model.named_parameters()}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    state: dict[str, Tensor] = {}
    for file, stored, tensor in stored_tensors(folder):
        theirs = _canonical(stored)
        if theirs in _TIED or theirs in _BUFFERS or (theirs not in names and theirs.startswith(_HEADS)):
            continue
        check(theirs in names, f"{file}: tensor {stored} is not part of a BERT of this config.json.")
        ours = names[theirs]
        check(
            tensor.shape == shapes[ours],
            f"{file}: tensor {stored} has the wrong shape for config.json, which makes it {tuple(shapes[ours])} where "
            f"the file has {tuple(tensor.shape)}.",
        )
        state[ours] = tensor.to(dtype, copy=True).contiguous()
    missing = [theirs for theirs, ours in names.items() if ours not in state]
    check(not missing, f"{folder}: {len(missing)} tensors of the model are missing, the first is {missing[:1]}.")
    model.load_state_dict(state, assign=True)
    return model.eval()


def load_bert_config(folder: str | Path) -> BERTConfig:
    """Return the BERTConfig that a folder's `config.json` describes. Raises UserError for what we do not build."""
    path = Path(folder) / "config.json"
    check(path.is_file(), f"{path} does not exist; give a folder with config.json and model.safetensors.")
    try:
        return bert_config(json.loads(path.read_text(encoding="utf-8")))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except KeyError as error:
        raise UserError(f"{path} lacks the key {error}.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged or has a value of the wrong type: {error}.") from error


def bert_config(fields: dict[str, Any]) -> BERTConfig:
    """Return the BERTConfig that the fields of a `config.json` describe.

    Raises UserError for what we do not build, and KeyError for a field that is missing.
    """
    refuse_unless(
        fields, model_type="bert", hidden_act="gelu", position_embedding_type="absolute", type_vocab_size=2,
        is_decoder=False, add_cross_attention=False, tie_word_embeddings=True,
    )  # fmt: skip
    kinds = {name: heads for heads, name in _ARCHITECTURES.items()}
    [kind] = fields.get("architectures") or ["BertForMaskedLM"]
    check(kind in kinds, f"architectures {kind!r} is not supported; {', '.join(kinds)} are.")
    masked_lm, next_sentence = kinds[kind]
    return BERTConfig(
        vocab_size=fields["vocab_size"], context=fields["max_position_embeddings"], n_layer=fields["num_hidden_layers"],
        n_head=fields["num_attention_heads"], d_model=fields["hidden_size"], d_ff=fields["intermediate_size"],
        dropout=fields.get("hidden_dropout_prob", 0.1), norm_eps=fields.get("layer_norm_eps", 1e-12),
        masked_lm=masked_lm, next_sentence=next_sentence,
    )  # fmt: skip


def _their_name(ours: str) -> str:
    module, _, kind = ours.rpartition(".")
    if not module.startswith("layers."):
        return f"{_OUTER[module]}.{kind}"
    _, index, inner = module.split(".", 2)
    return f"bert.encoder.layer.{index}.{_LAYER[inner]}.{kind}"


def _canonical(stored: str) -> str:
    """Return the full name of a stored tensor: a BertModel has no prefix, and Google's norms have gamma and beta."""
    name = stored.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"
