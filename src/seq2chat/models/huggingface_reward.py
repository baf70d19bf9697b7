"""Reward models as Hugging Face folders, for example of GPT2ForSequenceClassification.

Hugging Face's score has no bias. This package's bias is stored in config.json, so scores computed
by `transformers` differ by that number.
"""

from typing import Any

from seq2chat.config import RewardConfig, check
from seq2chat.models import huggingface
from seq2chat.models.layout import Layout
from seq2chat.models.reward import RewardModel

ARCHITECTURES = {
    "gpt2": "GPT2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
}


def _to_hf(config: RewardConfig) -> dict[str, Any]:
    fields = huggingface.LAYOUT.fields(config)
    check(
        fields["model_type"] in ARCHITECTURES,
        "With model.window, the layout gpt2 has no reward model in transformers; leave it out.",
    )
    extra = fields.get("seq2chat", {}) | {"score_bias": config.score_bias}
    labels = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    architectures = [ARCHITECTURES[fields["model_type"]]]
    return fields | labels | {"architectures": architectures, "seq2chat": extra}


def is_reward(fields: dict[str, Any]) -> bool:
    """Return True if the fields of a config.json belong to a reward model."""
    return (fields.get("architectures") or [""])[0] in ARCHITECTURES.values()


def from_hf(fields: dict[str, Any]) -> RewardConfig:
    """Return the RewardConfig of the fields. Raises UserError for more than one score."""
    check(
        len(fields.get("id2label", {"0": ""})) == 1,
        "The model returns several scores; a reward model has one label.",
    )
    shape = huggingface.READERS[fields["model_type"]](fields)
    return RewardConfig(
        **vars(shape) | {"score_bias": fields.get("seq2chat", {}).get("score_bias", 0.0)}
    )


def _tensor_names(model: RewardModel) -> dict[str, list[str]]:
    names = huggingface.LAYOUT.names(model.gpt)
    stored = {name: [f"gpt.{part}" for part in parts] for name, parts in names.items()}
    return stored | {"score.weight": ["score.weight"]}


def _canonical(config: RewardConfig, stored: str) -> str | None:
    return stored if stored == "score.weight" else huggingface.LAYOUT.canonical(config, stored)


LAYOUT = Layout(_to_hf, _tensor_names, _canonical, huggingface.LAYOUT.is_transposed)
