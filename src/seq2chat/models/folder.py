"""Model folders of all families: `config.json` and `model.safetensors`.

A GPT and a BERT are stored in their Hugging Face layouts. No such layout fits every RNN
encoder-decoder or Transformer of this package, so these keep the names of their own configuration
and parameters.
"""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from seq2chat.config import (
    BERTConfig,
    GPTConfig,
    ModelConfig,
    RewardConfig,
    Seq2SeqConfig,
    TransformerConfig,
    UserError,
    build,
    check,
)
from seq2chat.config.shapes import Objective
from seq2chat.device import free_memory
from seq2chat.models import huggingface, huggingface_bert, huggingface_reward
from seq2chat.models.bert import BERT
from seq2chat.models.gpt import GPT
from seq2chat.models.layout import Layout, read_weights, stored_tensors
from seq2chat.models.reward import RewardModel
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.tensor_file import StoredTensor, write_tensors
from seq2chat.models.transformer import Transformer

CausalLM = GPT
"""The models that predict the next token. A new one joins with `|`."""

Model = CausalLM | BERT | Seq2Seq | Transformer | RewardModel

COMMAND: dict[Objective, str] = {
    "next token": "generate",
    "masked tokens": "fill-mask",
    "translation": "translate",
    "score": "ppo --reward",
}
"""The command that uses a model, by its objective."""


def make_model(config: ModelConfig) -> Model:
    """Return a model with fresh weights."""
    match config:
        case RewardConfig():
            return RewardModel(config)
        case GPTConfig():
            return GPT(config)
        case BERTConfig():
            return BERT(config)
        case Seq2SeqConfig():
            return Seq2Seq(config)
        case TransformerConfig():
            return Transformer(config)


def n_parameters(config: ModelConfig) -> int:
    """Return the exact number of parameters, without allocating them. Tied matrices count once."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make_model(config).parameters())


def require_family(model: Model, *families: str) -> None:
    """Raise UserError unless `model` is of one of the `families`. It names the right command."""
    family = model.config.family
    check(
        family in families,
        f"The model is a {family}, and this works with {' and '.join(families)}; a {family} is used"
        f" with `seq2chat {COMMAND[model.config.objective]} RUN`.",
    )


def save_model(
    model: Model, folder: str | Path, dtype: torch.dtype | None = None, **token_ids: Any
) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, optionally converted to `dtype`.

    `transformers` opens the folder of a GPT or a BERT. `token_ids` may be `bos_token_id`,
    `eos_token_id` and `pad_token_id`, which other programs read from `config.json`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(model_tensors(model, dtype), folder / "model.safetensors")
    save_config(model, folder, dtype, **token_ids)


def model_tensors(model: Model, dtype: torch.dtype | None = None) -> list[StoredTensor]:
    """Return the content of `model.safetensors`, optionally converted to `dtype`."""
    dtype = dtype or _dtype(model)
    return stored_tensors(model, _layout(model.config), dtype)


def save_config(
    model: Model, folder: Path, dtype: torch.dtype | None = None, **token_ids: Any
) -> None:
    """Write `config.json` into `folder`; arguments as in `save_model`."""
    layout = _layout(model.config)
    dtype = dtype or _dtype(model)
    fields = layout.fields(model.config) | {"dtype": str(dtype).removeprefix("torch.")} | token_ids
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _dtype(model: Model) -> torch.dtype:
    """Return the number format of the embedding, or of what a stage of a pipeline has instead."""
    weight = getattr(model.embed_tokens, "weight", None)
    return (next(model.parameters()) if weight is None else weight).dtype


def load_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """Return the model in `folder`, on the CPU, in evaluation mode, converted to `dtype`.

    Reads one `model.safetensors` or the shards of `model.safetensors.index.json`. Raises UserError
    for a folder that contains no model, a damaged file, an unsupported feature, or a tensor that is
    missing, unknown or of the wrong shape.
    """
    config = load_config(folder)
    check_memory(folder, n_parameters(config) * dtype.itemsize)
    with torch.device("meta"):
        model = make_model(config)
    read_weights(model, _layout(config), Path(folder), dtype)
    return model.eval()


def check_memory(path: str | Path, need: int) -> None:
    """Raise UserError if the weights of `path` don't fit the memory, before any is used."""
    free = free_memory()
    check(
        free is None or need <= free,
        f"The weights of {path} need {need / 1e9:.1f} GB, and {(free or 0) / 1e9:.1f} GB of memory "
        "are free; close other programs, or choose a smaller model.",
    )


def load_config(folder: str | Path) -> ModelConfig:
    """Return the configuration in `config.json`. Raises UserError for unsupported features."""
    path = Path(folder) / "config.json"
    check(
        path.is_file(),
        f"{path} does not exist; give a folder with config.json and model.safetensors.",
    )
    readers = huggingface.READERS | huggingface_bert.READERS | _OWN_READERS
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        kind = fields.get("model_type")
        lacks = f" ({huggingface.MISSING[kind]})" if kind in huggingface.MISSING else ""
        check(
            kind in readers,
            f"model_type {kind!r}{lacks} is not supported; {', '.join(readers)} are.",
        )
        config = (
            huggingface_reward.from_hf(fields)
            if huggingface_reward.is_reward(fields)
            else readers[kind](fields)
        )
        # `build` checks the types of all values.
        return build(type(config), "model", vars(config), "config.json")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(f"{path} is not a JSON object: {error}.") from error
    except KeyError as error:
        raise UserError(f"{path} lacks the key {error}.") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} has a value of the wrong type: {error}.") from error


def _layout(config: ModelConfig) -> Layout:
    match config:
        case RewardConfig():
            return huggingface_reward.LAYOUT
        case GPTConfig():
            return huggingface.LAYOUT
        case BERTConfig():
            return huggingface_bert.LAYOUT
    return _OWN_LAYOUT


def _own_fields(config: ModelConfig) -> dict[str, Any]:
    return {"model_type": f"seq2chat-{config.family}"} | dataclasses.asdict(config)


def _own_config(kind: type[ModelConfig], fields: dict[str, Any]) -> ModelConfig:
    # Folders of older versions lack the context of an RNN.
    names = [f.name for f in dataclasses.fields(kind) if f.name != "context" or "context" in fields]
    return kind(**{name: fields[name] for name in names})


_OWN_LAYOUT = Layout(
    _own_fields,
    lambda model: {name: [name] for name, _ in model.named_parameters()},
    lambda config, stored: stored,
)
_OWN_READERS = {
    f"seq2chat-{kind.family}": partial(_own_config, kind)
    for kind in get_args(ModelConfig)
    if not issubclass(kind, GPTConfig | BERTConfig)  # these have Hugging Face layouts
}
