"""BERT checkpoints as Hugging Face model folders, in both directions and without `transformers`.

masked-LM head ⇄ BertForMaskedLM · with next sentence ⇄ BertForPreTraining · no head ⇄ BertModel

Heads that a folder's `architectures` does not name are skipped. For example, BERT's own folder of a
BertForMaskedLM also has the next-sentence head, and sentence encoders have an unused pooler.
Dropout inside the attention weights does not exist here and is ignored.
"""

from typing import Any

from seq2chat.config import BERTConfig, check
from seq2chat.models.bert import BERT
from seq2chat.models.layout import Layout, refuse_unless

# The parameter names of this package and of Hugging Face, without the layer index.
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
    """Return the config.json of a BERTConfig, except dtype and token ids."""
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
    """Return the BERTConfig of the fields of a `config.json`.

    Raises UserError for an unsupported feature, and KeyError for a missing field.
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
    architectures = fields.get("architectures") or ["BertForMaskedLM"]
    check(
        len(architectures) == 1 and architectures[0] in kinds,
        f"architectures {architectures} is not supported; one of {', '.join(kinds)} is.",
    )
    masked_lm, next_sentence = kinds[architectures[0]]
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


def _hf_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if not module.startswith("layers."):
        return f"{_OUTER[module]}.{kind}"
    _, index, inner = module.split(".", 2)
    return f"bert.encoder.layer.{index}.{_LAYER[inner]}.{kind}"


def _tensor_names(model: BERT) -> dict[str, list[str]]:
    return {_prefixed(model.config, _hf_name(name)): [name] for name, _ in model.named_parameters()}


def _prefixed(config: BERTConfig, name: str) -> str:
    """Return the stored name: a BertModel stores its tensors without a prefix."""
    return name.removeprefix("" if config.masked_lm or config.next_sentence else "bert.")


def _canonical(config: BERTConfig, stored: str) -> str | None:
    """Return the full name of a stored tensor, or None for a tensor that the model does not use.

    A BertModel has no prefix, and Google's norms have gamma and beta.
    """
    name = stored.replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    name = name if name.startswith(("bert.", "cls.")) else f"bert.{name}"
    heads = () if config.masked_lm else ("cls.predictions.",)
    heads += () if config.next_sentence else ("cls.seq_relationship.", "bert.pooler.")
    return None if name.startswith(_NOT_READ + heads) else _prefixed(config, name)


LAYOUT = Layout(_to_hf, _tensor_names, _canonical)
READERS = {"bert": _from_hf}
"""By `model_type`, the function from config.json's fields to a BERTConfig.

It raises UserError for an unsupported feature.
"""
