"""BERT checkpoints as Hugging Face model folders, in both directions and without `transformers`.

with the masked-LM head ⇄ BertForMaskedLM · and next sentence ⇄ BertForPreTraining · without either
⇄ BertModel

Heads in a folder that its `architectures` does not name are not read: BERT's own folder carries
next sentence beside BertForMaskedLM, and a sentence encoder a pooler that it does not use. Dropout
inside the attention weights is not ours.
"""

from typing import Any

from seq2chat.config import BERTConfig, check
from seq2chat.models.bert import BERT
from seq2chat.models.layout import Layout, refuse_unless

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
# A tied copy, and a buffer.
_NOT_READ = ("cls.predictions.decoder.", "bert.embeddings.position_ids")


def _to_hf(c: BERTConfig) -> dict[str, Any]:
    """Return the config.json of a BERTConfig, apart from dtype and token ids."""
    return {
        "architectures": [_ARCHITECTURES[c.masked_lm, c.next_sentence]],
        "model_type": "bert",
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "max_position_embeddings": c.context,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": c.norm_eps,
        "tie_word_embeddings": True,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": 0.0,
    }


def _from_hf(fields: dict[str, Any]) -> BERTConfig:
    """Return the BERTConfig that the fields of a `config.json` describe.

    Raises UserError for what we do not build, and KeyError for a field that is missing.
    """
    refuse_unless(
        fields,
        model_type="bert",
        hidden_act="gelu",
        position_embedding_type="absolute",
        type_vocab_size=2,
        is_decoder=False,
        add_cross_attention=False,
        tie_word_embeddings=True,
    )
    kinds = {name: heads for heads, name in _ARCHITECTURES.items()}
    named = fields.get("architectures") or ["BertForMaskedLM"]
    check(
        len(named) == 1 and named[0] in kinds,
        f"architectures {named} is not supported; one of {', '.join(kinds)} is.",
    )
    masked_lm, next_sentence = kinds[named[0]]
    return BERTConfig(
        vocab_size=fields["vocab_size"],
        context=fields["max_position_embeddings"],
        n_layer=fields["num_hidden_layers"],
        n_head=fields["num_attention_heads"],
        d_model=fields["hidden_size"],
        d_ff=fields["intermediate_size"],
        dropout=fields.get("hidden_dropout_prob", 0.1),
        norm_eps=fields.get("layer_norm_eps", 1e-12),
        masked_lm=masked_lm,
        next_sentence=next_sentence,
    )


def _their_name(ours: str) -> str:
    module, _, kind = ours.rpartition(".")
    if not module.startswith("layers."):
        return f"{_OUTER[module]}.{kind}"
    _, index, inner = module.split(".", 2)
    return f"bert.encoder.layer.{index}.{_LAYER[inner]}.{kind}"


def _tensor_names(model: BERT) -> dict[str, list[str]]:
    return {
        _prefixed(model.config, _their_name(ours)): [ours] for ours, _ in model.named_parameters()
    }


def _prefixed(config: BERTConfig, name: str) -> str:
    """Return the name in its folder: a BertModel stores its tensors without a prefix."""
    return name.removeprefix("" if config.masked_lm or config.next_sentence else "bert.")


def _canonical(config: BERTConfig, stored: str) -> str | None:
    """Return the full name of a stored tensor, or None for what the model has no use for.

    A BertModel has no prefix, and Google's norms have gamma and beta.
    """
    name = stored.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )
    name = name if name.startswith(("bert.", "cls.")) else f"bert.{name}"
    heads = () if config.masked_lm else ("cls.predictions.",)
    heads += () if config.next_sentence else ("cls.seq_relationship.", "bert.pooler.")
    return None if name.startswith(_NOT_READ + heads) else _prefixed(config, name)


LAYOUT = Layout(_to_hf, _tensor_names, _canonical)
READERS = {"bert": _from_hf}
"""For each `model_type`, what makes a BERTConfig of the fields; UserError for what we do not
build."""
