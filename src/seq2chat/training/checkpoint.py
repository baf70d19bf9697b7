"""Checkpoints: a Hugging Face model folder plus `trainer/`, written atomically.

A checkpoint is written to a temporary folder, its manifest last, and then renamed. A folder without
a valid manifest is never read.
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
from seq2chat.config.toml import did_you_mean
from seq2chat.log import print_once
from seq2chat.models import hub
from seq2chat.models.folder import CausalLM, Model, load_model, save_model
from seq2chat.models.gguf import gguf_folder
from seq2chat.models.gpt import GPT
from seq2chat.models.lora import ADAPTER_CONFIG, adapter_base, merge_adapter
from seq2chat.models.published import PUBLISHED, published_file
from seq2chat.text.named import cached_folder, converted_model
from seq2chat.text.shard_writer import NO_ROOM
from seq2chat.text.tokenizers import Tokenizer, load_tokenizer
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.run_folder import RunFolder


@dataclass
class Progress:
    """The complete state of data loader, schedule and clock.

    `start` is the share of a timed budget that was used before the first step. `data` is the
    fingerprint of the text.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    start: float = 0.0
    data: str = ""


def save_checkpoint(
    run: RunFolder,
    model: Model,
    tokenizer: Tokenizer,
    optimizers: list[torch.optim.Optimizer],
    progress: Progress,
    # Passed by name.
    keep: int,
    modules: Mapping[str, nn.Module] = {},
) -> Path:
    """Write a checkpoint of `run` such as `checkpoints/step-000500`, delete all but the `keep`
    newest, and return its path.

    `modules` are all trained or remembered modules by name, if these are not just `model`. Raises
    UserError if the disk is full. Older checkpoints are untouched then.
    """
    folder = run.checkpoints
    final = folder / f"step-{progress.step:06d}"
    progress_json = json.dumps(asdict(progress), indent=1) + "\n"
    is_written = (final / "manifest.json").exists()
    # The weights of a step are written once, unless the budget has been used up since.
    if is_written and (final / "trainer" / "progress.json").read_text() == progress_json:
        return final
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        (temporary / "trainer").mkdir(parents=True)
        save_with_tokenizer(model, tokenizer, temporary)
        _save_trainer(temporary / "trainer", model, optimizers, modules)
        (temporary / "trainer" / "progress.json").write_text(progress_json)
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        hashes = {str(file.relative_to(temporary)): _sha256(file) for file in files}
        (temporary / "manifest.json").write_text(json.dumps({"sha256": hashes}, indent=1) + "\n")
        # A rename is atomic, but it must not reach the disk before the contents.
        for file in [*temporary.rglob("*"), temporary]:
            _sync(file)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if _is_disk_full(error):
            raise UserError(
                f"The disk of {folder} is full, so step {progress.step} was not saved; the earlier "
                "checkpoints are complete. Free some space and continue with --resume."
            ) from error
        raise
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _sync(folder)
    for old in run.list_checkpoints()[:-keep]:
        # Renamed first to a name that is never read, so that a kill leaves no partial checkpoint.
        shutil.rmtree(old.rename(old.with_name(f".{old.name}.tmp")))
    return final


def _save_trainer(
    folder: Path,
    model: Model,
    optimizers: list[torch.optim.Optimizer],
    modules: Mapping[str, nn.Module],
) -> None:
    frozen = _frozen(modules)
    for name, module in modules.items():
        state = module.state_dict()
        kept = {key: t.contiguous() for key, t in state.items() if key not in frozen[name]}
        save_file(kept, folder / f"{name}.safetensors")
    tensors = _optimizer_tensors(_names(model, modules), optimizers)
    save_file(tensors, folder / "optimizer.safetensors")
    save_file(_rng_states(), folder / "rng.safetensors")


def save_with_tokenizer(model: Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Write model and tokenizer into `folder`, with the settings that other programs need for
    generation.

    A chat model ends its answers at the end of a turn. Every text starts with the token that ends a
    text. Prompts of different lengths are padded on the left.
    """
    if isinstance(tokenizer, WordPiece) or not isinstance(model, CausalLM):
        save_model(model, folder, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id)
        tokenizer.save(folder, model_max_length=model.config.context)
        return
    ends: int | list[int] | None = (
        tokenizer.end_ids if len(tokenizer.end_ids) > 1 else tokenizer.eos_id
    )
    start = tokenizer.start_ids[0] if tokenizer.start_ids else None
    ids = {"bos_token_id": start, "eos_token_id": ends, "pad_token_id": tokenizer.pad_id}
    save_model(model, folder, **ids)
    tokenizer.save(folder, model_max_length=model.config.context, padding_side="left")
    (folder / "generation_config.json").write_text(
        json.dumps(ids, indent=2) + "\n", encoding="utf-8"
    )


def find_checkpoint(path: Path) -> Path:
    """Return `path` if it is a model folder, or else the newest checkpoint of the run at `path`.

    For a GGUF file, the name of a published model, `hf:owner/name`, and adapters of LoRA, it is a
    folder in a cache. Raises UserError if there is neither.
    """
    if (path / "config.json").exists():
        return path
    if str(path).startswith(hub.PREFIX):
        return find_checkpoint(hub.hub_folder(str(path).removeprefix(hub.PREFIX)))
    if not path.exists() and str(path) in PUBLISHED:
        return gguf_folder(published_file(str(path)))
    if (path / ADAPTER_CONFIG).is_file():
        return _merged_folder(path)
    if path.is_file():
        check(
            path.suffix == ".gguf", f"{path} is a file; give a run, a model folder or a .gguf file."
        )
        return gguf_folder(path)
    check(path.suffix != ".gguf", f"There is no file {path}.")
    check(
        path.exists(),
        f"There is no run or model folder {path}, and no published model of this name (`seq2chat "
        "models` lists them); "
        + (
            f"did you mean {Path('runs') / path}?"
            if RunFolder(Path("runs") / path).list_checkpoints()
            else did_you_mean(str(path), list(PUBLISHED)).strip().lower()
            or "`seq2chat runs list` lists the runs in runs/."
        ),
    )
    checkpoints = RunFolder(path).list_checkpoints()
    check(
        bool(checkpoints),
        f"{path} contains neither a checkpoint nor a model (config.json); train it first.",
    )
    return checkpoints[-1]


def _merged_folder(adapters: Path) -> Path:
    """Return a model folder with adapters merged into their base, which is made once and kept in
    the cache."""
    name = adapter_base(adapters)
    by_hub_name = {model.hub_name: model.name for model in PUBLISHED.values()}
    name = by_hub_name.get(name, name)
    base = adapters / name if (adapters / name).exists() else Path(name)
    if not base.exists() and name.count("/") == 1:
        try:
            base = hub.hub_folder(name)
        except UserError as error:
            raise UserError(f"The base of the adapters in {adapters}: {error}") from None
    check(
        base.exists() or name in PUBLISHED,
        f"The adapters in {adapters} belong to {name}, which is not here; write the path of that "
        f"model folder as base_model_name_or_path in {adapters / ADAPTER_CONFIG}.",
    )
    check(
        base.resolve() != adapters.resolve() and not (base / ADAPTER_CONFIG).exists(),
        f"{adapters / ADAPTER_CONFIG} names {name!r} as the base, which is no whole model; write "
        "the path of one.",
    )
    base = find_checkpoint(base)
    files = [*adapters.glob("adapter_*"), *adapters.glob("tokenizer*"), base / "config.json"]
    identity = ":".join(f"{file.resolve()}:{file.stat().st_mtime_ns}" for file in sorted(files))
    folder = converted_model(adapters.name, identity)
    if not folder.exists():
        print_once(f"merging {adapters} into its base, once ...")
        model, tokenizer = load_checkpoint(base)
        if (adapters / "tokenizer.json").is_file():
            tokenizer = load_tokenizer(adapters)  # with the template of the finetuning
        check(isinstance(model, GPT), f"{base} is a {model.config.family}; adapters need a GPT.")
        assert isinstance(model, GPT)
        merge_adapter(model, adapters)
        with cached_folder(folder) as temporary:
            save_with_tokenizer(model, tokenizer, temporary)
    return folder


def verify_checkpoint(folder: Path, resumes: bool = True) -> None:
    """Raise UserError for the first file in `folder` that is missing or differs from the hash in
    the manifest.

    Files that only a resumed run reads, such as the optimizer state, are checked if `resumes` is
    set.
    """
    try:
        hashes = json.loads((folder / "manifest.json").read_text())["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}/manifest.json is missing or damaged; delete that folder to use the previous "
            "checkpoint."
        ) from error
    for name, expected in hashes.items():
        if name.startswith("trainer") and not resumes:
            continue
        file = folder / name
        check(
            file.exists(),
            f"{file} is missing; delete that folder to use the previous checkpoint.",
        )
        check(
            _sha256(file) == expected,
            f"{file} is damaged: its sha256 is not the {expected[:12]}… of manifest.json; delete "
            "that folder to use the previous checkpoint.",
        )


def load_checkpoint(path: Path) -> tuple[Model, Tokenizer]:
    """Return the model in evaluation mode and the tokenizer of a run, a checkpoint, or any model
    folder of a known layout.

    Raises UserError if the folder is damaged, or if its tokenizer belongs to another model.
    """
    folder = find_checkpoint(path)
    if (folder / "manifest.json").exists():
        verify_checkpoint(folder, resumes=False)
    model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    check(
        tokenizer.vocab_size <= model.config.vocab_size,
        f"The tokenizer in {folder} has {tokenizer.vocab_size} tokens but its model only "
        f"{model.config.vocab_size}: it belongs to another checkpoint. Restore the tokenizer.json "
        "that the model was trained with.",
    )
    return model, tokenizer


def resume_checkpoint(
    folder: Path,
    model: Model,
    optimizers: list[torch.optim.Optimizer],
    modules: Mapping[str, nn.Module] = {},
) -> Progress:
    """Load weights, optimizer state and random state of the checkpoint `folder`, and return its
    progress."""
    frozen = _frozen(modules)
    for name, module in modules.items():
        stored = load_file(folder / "trainer" / f"{name}.safetensors")
        module.load_state_dict(frozen[name] | stored)
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


def _frozen(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, torch.Tensor]]:
    """Return the frozen parameters of each module by name, as those below adapters, and where
    another module shares them.

    They are those of the starting model, whose fingerprint is checked when a run is resumed.
    """
    trained = [m for m in modules.values() if any(p.requires_grad for p in m.parameters())]
    frozen = {id(p) for m in trained for p in m.parameters() if not p.requires_grad}
    return {
        name: {key: p for key, p in module.named_parameters() if id(p) in frozen}
        for name, module in modules.items()
    }


def _names(model: Model, modules: Mapping[str, nn.Module]) -> dict[nn.Parameter, str]:
    """Return the name of each parameter, prefixed by its module if there are several."""
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
    # safetensors is written in Rust, and its errors contain the number only as text.
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
