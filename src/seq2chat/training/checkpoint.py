"""Checkpoints: a Hugging Face model folder plus `trainer/`, found, verified and loaded.

`saving` writes them. A folder without a valid manifest is never read.
"""

import json
from pathlib import Path

from seq2chat.config import UserError, check
from seq2chat.config.toml import did_you_mean
from seq2chat.log import print_once
from seq2chat.models import hub
from seq2chat.models.folder import CausalLM, Model, load_model, model_tensors, save_config
from seq2chat.models.gguf import gguf_folder
from seq2chat.models.gpt import GPT
from seq2chat.models.lora import ADAPTER_CONFIG, adapter_base, merge_adapter
from seq2chat.models.published import PUBLISHED, published_file
from seq2chat.models.tensor_file import write_tensors
from seq2chat.text.named import cached_folder, converted_model, hash_file
from seq2chat.text.tokenizers import Tokenizer, load_tokenizer
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.run_folder import RunFolder


def save_with_tokenizer(model: Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Write model and tokenizer into `folder`, with the settings that other programs need for
    generation."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(model_tensors(model), folder / "model.safetensors")
    save_beside_weights(model, tokenizer, folder)


def save_beside_weights(model: Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files of `save_with_tokenizer` except the weights.

    A chat model ends its answers at the end of a turn. Every text starts with the token that ends a
    text. Prompts of different lengths are padded on the left.
    """
    if isinstance(tokenizer, WordPiece) or not isinstance(model, CausalLM):
        save_config(model, folder, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id)
        tokenizer.save(folder, model_max_length=model.config.context)
        return
    ends: int | list[int] | None = (
        tokenizer.end_ids if len(tokenizer.end_ids) > 1 else tokenizer.eos_id
    )
    start = tokenizer.start_ids[0] if tokenizer.start_ids else None
    ids = {"bos_token_id": start, "eos_token_id": ends, "pad_token_id": tokenizer.pad_id}
    save_config(model, folder, **ids)
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
            hash_file(file) == expected,
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
