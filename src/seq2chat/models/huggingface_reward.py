"""Reward models as the Hugging Face folders of GPT2ForSequenceClassification and
Qwen3ForSequenceClassification.

Their score has no bias; ours stands in config.json, so that theirs differ from ours by that number.
"""

from typing import Any

from seq2chat.config import RewardConfig, check
from seq2chat.models import huggingface
from seq2chat.models.layout import Layout
from seq2chat.models.reward import RewardModel

ARCHITECTURES = {"gpt2": "GPT2ForSequenceClassification", "qwen3": "Qwen3ForSequenceClassification"}


def _to_hf(config: RewardConfig) -> dict[str, Any]:
    fields = huggingface.LAYOUT.fields(config)
    check(
        fields["model_type"] in ARCHITECTURES,
        "model.window has no layout of a reward model; leave it out.",
    )
    ours = fields.get("seq2chat", {}) | {"score_bias": config.score_bias}
    labels = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    return (
        fields | labels | {"architectures": [ARCHITECTURES[fields["model_type"]]], "seq2chat": ours}
    )


def is_reward(fields: dict[str, Any]) -> bool:
    """Whether the fields of a config.json are those of a reward model."""
    return (fields.get("architectures") or [""])[0] in ARCHITECTURES.values()


def from_hf(fields: dict[str, Any]) -> RewardConfig:
    """Return the RewardConfig of the fields. Raises UserError for more scores than one."""
    check(
        len(fields.get("id2label", {"0": ""})) == 1,
        "It gives several scores; a reward model has one label.",
    )
    shape = huggingface.READERS[fields["model_type"]](fields)
    return RewardConfig(
        **vars(shape) | {"score_bias": fields.get("seq2chat", {}).get("score_bias", 0.0)}
    )


def _tensor_names(model: RewardModel) -> dict[str, list[str]]:
    names = huggingface.LAYOUT.names(model.gpt)
    return {name: [f"gpt.{ours}" for ours in parts] for name, parts in names.items()} | {
        "score.weight": ["score.weight"]
    }


def _canonical(config: RewardConfig, stored: str) -> str | None:
    return stored if stored == "score.weight" else huggingface.LAYOUT.canonical(config, stored)


LAYOUT = Layout(_to_hf, _tensor_names, _canonical, huggingface.LAYOUT.is_transposed)
