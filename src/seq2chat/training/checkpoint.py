"""Checkpoints: a Hugging Face model folder plus `trainer/`, whole or not there at all.

A checkpoint is written to a temporary folder, its manifest last, and renamed. What has no valid
manifest is never read.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from seq2chat.config import UserError, check
from seq2chat.models.folder import Model, load_model, save_model
from seq2chat.models.gpt import GPT
from seq2chat.text.shard_writer import NO_ROOM
from seq2chat.text.tokenizers import Tokenizer, load_tokenizer
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.run_folder import RunLog


@dataclass
class Progress:
    """Where a run stands: all there is to the state of the data loader, the schedule and the clock.

    `start` is the share of a timed budget that was used before the first step, and `data` the
    fingerprint of the text.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    start: float = 0.0
    data: str = ""


def save_checkpoint(
    log: RunLog,
    model: Model,
    tokenizer: Tokenizer,
    optimizers: list[torch.optim.Optimizer],
    progress: Progress,
    keep: int,
    modules: Mapping[str, nn.Module] = {},
) -> Path:
    """Write `checkpoints/step-000500` of the run `log` and delete all but the `keep` newest.
    Returns its path.

    `modules` are all that is trained or remembered, by name, where that is more or other than
    `model`. Raises `UserError` when the disk is full; the older checkpoints are then untouched.
    """
    folder = log.checkpoints
    final = folder / f"step-{progress.step:06d}"
    stood = json.dumps(asdict(progress), indent=1) + "\n"
    if (final / "manifest.json").exists() and (
        final / "trainer" / "progress.json"
    ).read_text() == stood:
        # The weights of a step are written once, but for a budget that has been used up since.
        return final
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        (temporary / "trainer").mkdir(parents=True)
        save_with_tokenizer(model, tokenizer, temporary)
        for name, module in modules.items():
            state = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
            save_file(state, temporary / "trainer" / f"{name}.safetensors")
        named = _optimizer_tensors(_names(model, modules), optimizers)
        save_file(named, temporary / "trainer" / "optimizer.safetensors")
        save_file(_rng_states(), temporary / "trainer" / "rng.safetensors")
        (temporary / "trainer" / "progress.json").write_text(stood)
        hashes = {
            str(f.relative_to(temporary)): _sha256(f)
            for f in sorted(temporary.rglob("*"))
            if f.is_file()
        }
        (temporary / "manifest.json").write_text(json.dumps({"sha256": hashes}, indent=1) + "\n")
        for file in [*temporary.rglob("*"), temporary]:
            _sync(file)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if _is_disk_full(error):
            raise UserError(
                f"The disk of {folder} is full, so step {progress.step} was not saved; the "
                "checkpoints before it are whole. Free some space and continue with --resume."
            ) from error
        raise
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _sync(folder)
    for old in log.list_checkpoints()[:-keep]:
        # Under a name that is never read, so that a kill in between leaves no half of a checkpoint.
        shutil.rmtree(old.rename(old.with_name(f".{old.name}.tmp")))
    return final


def save_with_tokenizer(model: Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Write model and tokenizer into `folder`, with what others need to know to generate as we do.

    A chat model ends its answers at the end of a turn. Every text begins with the token that ends
    one. Prompts of different lengths are padded on the left.
    """
    if isinstance(tokenizer, WordPiece) or not isinstance(model, GPT):
        save_model(model, folder, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id)
        tokenizer.save(folder, model_max_length=model.config.context)
        return
    ends: int | list[int] | None = (
        tokenizer.end_ids if len(tokenizer.end_ids) > 1 else tokenizer.eos_id
    )
    ids = {"bos_token_id": tokenizer.eos_id, "eos_token_id": ends, "pad_token_id": tokenizer.pad_id}
    save_model(model, folder, **ids)
    tokenizer.save(folder, model_max_length=model.config.context, padding_side="left")
    (folder / "generation_config.json").write_text(
        json.dumps(ids, indent=2) + "\n", encoding="utf-8"
    )


def find_checkpoint(path: Path) -> Path:
    """Model folder meant by `path`: itself if it holds a model, else the newest checkpoint of the
    run at `path`.

    Raises `UserError` when there is neither.
    """
    if (path / "config.json").exists():
        return path
    check(
        path.exists(),
        f"There is no run or model folder {path}; `seq2chat runs list` shows the runs there are.",
    )
    checkpoints = RunLog(path).list_checkpoints()
    check(
        bool(checkpoints),
        f"{path} holds no checkpoint yet, nor a model (config.json); train it first.",
    )
    return checkpoints[-1]


def verify_checkpoint(folder: Path, resumes: bool = True) -> None:
    """Raises `UserError` naming the first file in `folder` that is missing or differs from the
    manifest's hash.

    What only a run that `resumes` reads, such as the optimizer's state, is not checked for others.
    """
    try:
        hashes = json.loads((folder / "manifest.json").read_text())["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}/manifest.json is missing or damaged; delete that folder to use the one "
            "before."
        ) from error
    for name, expected in hashes.items():
        if name.startswith("trainer") and not resumes:
            continue
        file = folder / name
        check(
            file.exists(), f"{file} is missing; delete that folder to use the checkpoint before it."
        )
        check(
            _sha256(file) == expected,
            f"{file} is damaged: its sha256 is not the {expected[:12]}… of manifest.json; delete "
            "that folder to use the checkpoint before it.",
        )


def load_checkpoint(path: Path) -> tuple[Model, Tokenizer]:
    """Model in evaluation mode and tokenizer of a run, a checkpoint, or any model folder of a known
    layout.

    Raises `UserError` when the folder is damaged or its tokenizer is of another model.
    """
    folder = find_checkpoint(path)
    if (folder / "manifest.json").exists():
        verify_checkpoint(folder, resumes=False)
    model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    check(
        tokenizer.vocab_size <= model.config.vocab_size,
        f"The tokenizer in {folder} has {tokenizer.vocab_size} tokens but its model only "
        f"{model.config.vocab_size}: it belongs to another checkpoint. Put back the tokenizer.json"
        " the model was trained with.",
    )
    return model, tokenizer


def resume_checkpoint(
    folder: Path,
    model: Model,
    optimizers: list[torch.optim.Optimizer],
    modules: Mapping[str, nn.Module] = {},
) -> Progress:
    """Put weights, optimizer state and random state of the checkpoint `folder` into what is given;
    where it stood."""
    for name, module in modules.items():
        module.load_state_dict(load_file(folder / "trainer" / f"{name}.safetensors"))
    if not modules:
        model.load_state_dict(load_model(folder).state_dict())
    saved = load_file(folder / "trainer" / "optimizer.safetensors")
    names = _names(model, modules)
    for optimizer, parameter in _parameters(optimizers):
        prefix = f"{names[parameter]}:"
        state = {
            key.removeprefix(prefix): value
            for key, value in saved.items()
            if key.startswith(prefix)
        }
        optimizer.state[parameter] = {
            key: value.to(parameter.device) for key, value in state.items()
        }
    with safe_open(folder / "trainer" / "rng.safetensors", "pt") as file:
        torch.set_rng_state(file.get_tensor("cpu"))
        if "cuda" in list(file.keys()) and torch.cuda.is_available():
            torch.cuda.set_rng_state(file.get_tensor("cuda"))
    return Progress(**json.loads((folder / "trainer" / "progress.json").read_text()))


def _parameters(
    optimizers: list[torch.optim.Optimizer],
) -> Iterable[tuple[torch.optim.Optimizer, nn.Parameter]]:
    return ((o, p) for o in optimizers for group in o.param_groups for p in group["params"])


def _names(model: Model, modules: Mapping[str, nn.Module]) -> dict[nn.Parameter, str]:
    """The name of each parameter, told apart by its module where there are several."""
    named = [(f"{module}.", m) for module, m in modules.items()] or [("", model)]
    return {
        parameter: f"{prefix}{name}"
        for prefix, m in named
        for name, parameter in m.named_parameters()
    }


def _optimizer_tensors(
    names: dict[nn.Parameter, str], optimizers: list[torch.optim.Optimizer]
) -> dict[str, torch.Tensor]:
    return {
        f"{names[p]}:{key}": value.contiguous()
        for o, p in _parameters(optimizers)
        for key, value in o.state[p].items()
    }


def _rng_states() -> dict[str, Any]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _is_disk_full(error: Exception) -> bool:
    # safetensors writes in Rust and tells the number of the error only in its text.
    return getattr(error, "errno", None) in NO_ROOM or any(
        f"os error {number})" in str(error) for number in NO_ROOM
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
