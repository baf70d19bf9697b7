"""Model folders of every family: `config.json` and `model.safetensors`.

A GPT and a BERT are stored in their Hugging Face layouts. No such layout holds every RNN encoder–decoder or Transformer
of ours, so these keep the names of their own configuration and parameters.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from seq2chat.config import BERTConfig, GPTConfig, ModelConfig, Seq2SeqConfig, TransformerConfig, UserError, check
from seq2chat.models import huggingface, huggingface_bert
from seq2chat.models.bert import BERT
from seq2chat.models.gpt import GPT
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer

Model = GPT | BERT | Seq2Seq | Transformer

_OWN = {f"seq2chat-{config.family}": config for config in (Seq2SeqConfig, TransformerConfig)}
_COMMAND = {"gpt": "generate", "bert": "fill-mask", "seq2seq": "translate", "transformer": "translate"}


def make_model(config: ModelConfig) -> Model:
    """Return a model of that shape with fresh weights."""
    match config:
        case GPTConfig():
            return GPT(config)
        case BERTConfig():
            return BERT(config)
        case Seq2SeqConfig():
            return Seq2Seq(config)
        case TransformerConfig():
            return Transformer(config)


def n_parameters(config: ModelConfig) -> int:
    """Return the exact number of parameters, counted without allocating them; a tied matrix counts once."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make_model(config).parameters())


def require_family(model: Model, *families: str) -> None:
    """Raise UserError, naming the command for what `model` is, unless it is of one of the `families`."""
    family = model.config.family
    check(
        family in families,
        f"The model is a {family}, and this works with {' and '.join(families)}; a {family} is used with "
        f"`seq2chat {_COMMAND[family]} RUN`.",
    )


def save_model(model: Model, folder: str | Path, dtype: torch.dtype | None = None, **token_ids: int | None) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, the weights as `dtype` or as they are.

    `bos_token_id`, `eos_token_id` and `pad_token_id` are recorded for whoever reads the folder.
    """
    if isinstance(model, GPT):
        huggingface.save_model(model, folder, dtype, **token_ids)
        return
    if isinstance(model, BERT):
        huggingface_bert.save_bert(model, folder, dtype, **token_ids)
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # By parameters, of which a tied one is listed once.
    tensors = {name: p.detach().to("cpu", dtype or p.dtype).contiguous() for name, p in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fields = {"model_type": f"seq2chat-{model.config.family}"} | dataclasses.asdict(model.config) | token_ids
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def load_config(folder: str | Path) -> ModelConfig:
    """Return the configuration that `config.json` describes. Raises UserError for what we do not build."""
    path = Path(folder) / "config.json"
    check(path.is_file(), f"{path} does not exist; give a folder with config.json and model.safetensors.")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        kind = fields.get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}.") from error
    if kind == "bert":
        return huggingface_bert.bert_config(fields)
    if kind in _OWN:
        return _own_config(_OWN[kind], fields, path)
    return huggingface.load_config(folder)


def load_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """Return the model in `folder`, on the CPU, in evaluation mode, its weights as `dtype`.

    Raises UserError for a folder that is no model, a damaged file, or tensors that do not fit the configuration.
    """
    config = load_config(folder)
    if isinstance(config, GPTConfig):
        return huggingface.load_model(folder, dtype)
    if isinstance(config, BERTConfig):
        return huggingface_bert.load_bert(folder, dtype)
    model = make_model(config).to(dtype)
    state = {name: tensor.to(dtype) for _, name, tensor in huggingface.stored_tensors(Path(folder))}
    expected = {name: p.shape for name, p in model.named_parameters()}
    wrong = [n for n in expected | state if n not in expected or n not in state or expected[n] != state[n].shape]
    check(not wrong, f"{folder}: tensor {wrong[:1]} does not fit config.json; the files are of different models.")
    model.load_state_dict(state, strict=False)  # what is computed, such as a table of positions, is not stored
    return model.eval()


def _own_config(kind: type[Seq2SeqConfig] | type[TransformerConfig], fields: dict[str, Any], path: Path) -> ModelConfig:
    names = [f.name for f in dataclasses.fields(kind)]
    missing = [name for name in names if name not in fields]
    check(not missing, f"{path} is damaged: it has no {missing[:1]}.")
    return kind(**{name: fields[name] for name in names})
