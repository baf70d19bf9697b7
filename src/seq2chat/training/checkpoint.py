"""Checkpoints: a Hugging Face model folder plus `trainer/`, written atomically.

A checkpoint is written to a temporary folder, its manifest last, and then renamed. A folder without
a valid manifest is never read.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from seq2chat.config import SharedError, UserError, check
from seq2chat.config.toml import did_you_mean
from seq2chat.log import print_once
from seq2chat.models import hub
from seq2chat.models.folder import CausalLM, Model, load_model, model_tensors, save_config
from seq2chat.models.gguf import gguf_folder
from seq2chat.models.gpt import GPT
from seq2chat.models.lora import ADAPTER_CONFIG, adapter_base, merge_adapter
from seq2chat.models.published import PUBLISHED, published_file
from seq2chat.models.tensor_file import StoredTensor, write_tensors
from seq2chat.text.named import cached_folder, converted_model
from seq2chat.text.shard_writer import NO_ROOM
from seq2chat.text.tokenizers import Tokenizer, load_tokenizer
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.parallel import reshard
from seq2chat.training.processes import agree, is_main
from seq2chat.training.run_folder import RunFolder
from seq2chat.training.state import Progress, tensor_files


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

    `modules` are all trained or remembered modules by name, if these are not just `model`. All
    processes call it, and process 0 writes. Raises UserError if the disk is full. Older checkpoints
    are untouched then.
    """
    final = run.checkpoints / f"step-{progress.step:06d}"
    progress_json = json.dumps(asdict(progress), indent=1) + "\n"
    # The weights of a step are written once, unless the budget has been used up since.
    if agree(_is_saved(final, progress_json)):
        return final
    for module in (model, *modules.values()):
        reshard(module)
    temporary = final.with_name(f".{final.name}.tmp")

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "trainer").mkdir(parents=True)
        _save_beside_weights(model, tokenizer, temporary)
        (temporary / "trainer" / "progress.json").write_text(progress_json)

    def finish() -> None:
        _seal(temporary, final)
        for old in run.list_checkpoints()[:-keep]:
            # Renamed first to a name that is never read, so that a kill leaves no partial
            # checkpoint.
            shutil.rmtree(old.rename(old.with_name(f".{old.name}.tmp")))

    writer = _Writer()
    writer.do(begin)
    for name, tensors in tensor_files(model, optimizers, modules).items():
        writer.write(tensors, temporary / name)
    writer.do(finish)
    if writer.failed():
        shutil.rmtree(temporary, ignore_errors=True)
        raise SharedError(
            f"The disk of {run.checkpoints} is full, so step {progress.step} was not saved; the "
            "earlier checkpoints are complete. Free some space and continue with --resume."
        ) from writer.error
    return final


class _Writer:
    """Writes files on process 0, and remembers that the disk is full.

    The other processes gather tensors with it, so it takes part in that until the end.
    """

    def __init__(self) -> None:
        self.writes = is_main()
        self.error: OSError | None = None

    def do(self, write: Callable[[], None]) -> None:
        """Call `write` on process 0, unless the disk is full."""
        if not self.writes:
            return
        try:
            write()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self.writes = False
            self.error = error

    def write(self, tensors: list[StoredTensor], file: Path) -> None:
        """Gather the tensors, and write them on process 0."""
        if self.writes:
            self.do(lambda: write_tensors(tensors, file))
        else:
            write_tensors(tensors, None)

    def failed(self) -> bool:
        """Return whether the disk of process 0 is full."""
        return agree(self.error is not None)


def _is_saved(folder: Path, progress_json: str) -> bool:
    file = folder / "trainer" / "progress.json"
    return (folder / "manifest.json").exists() and file.read_text() == progress_json


def _seal(temporary: Path, final: Path) -> None:
    """Write the manifest, and rename the complete folder."""
    files = sorted(file for file in temporary.rglob("*") if file.is_file())
    hashes = {str(file.relative_to(temporary)): _sha256(file) for file in files}
    (temporary / "manifest.json").write_text(json.dumps({"sha256": hashes}, indent=1) + "\n")
    # A rename is atomic, but it must not reach the disk before the contents.
    for file in [*temporary.rglob("*"), temporary]:
        _sync(file)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _sync(final.parent)


def save_with_tokenizer(model: Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Write model and tokenizer into `folder`, with the settings that other programs need for
    generation."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(model_tensors(model), folder / "model.safetensors")
    _save_beside_weights(model, tokenizer, folder)


def _save_beside_weights(model: Model, tokenizer: Tokenizer, folder: Path) -> None:
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


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
