"""Writing a checkpoint in the background, while training continues.

At the step, the tensors are copied to main memory, which is all that training waits for. A thread
writes and hashes the files in a temporary folder, the manifest last, and renames it. So a kill at
any moment leaves the earlier checkpoints as they are, and never half of a new one.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import nn

from seq2chat.config import SharedError
from seq2chat.device import free_memory
from seq2chat.models.folder import Model
from seq2chat.models.tensor_file import StoredTensor, stored, write_tensors
from seq2chat.text.named import hash_file
from seq2chat.text.shard_writer import NO_ROOM
from seq2chat.text.tokenizers import Tokenizer
from seq2chat.training.checkpoint import save_beside_weights
from seq2chat.training.parallel import reshard
from seq2chat.training.processes import agree, alive, any_process, is_main
from seq2chat.training.run_folder import RunFolder
from seq2chat.training.state import Progress, tensor_files

# Of the free memory, which training and validation also use while the copy exists.
COPY_SHARE = 0.5

Files = Mapping[str, list[StoredTensor]]
"""The tensors of each file, by its path in the checkpoint."""


class Saving:
    """A checkpoint that is being written by process 0. The other processes only gather tensors.

    An error, for example of a full disk, is kept in `error` until `wait` raises it.
    """

    def __init__(self, run: RunFolder, step: int, keep: int) -> None:
        self.run = run
        self.step = step
        self.keep = keep
        self.folder = run.checkpoints / f"step-{step:06d}"
        self.temporary = self.folder.with_name(f".{self.folder.name}.tmp")
        self.error: Exception | None = None
        self._began = time.perf_counter()
        self._ended = 0.0
        self._thread: threading.Thread | None = None

    @property
    def seconds(self) -> float:
        """The time that copying and writing take, until now if they have not ended."""
        return (self._ended or time.perf_counter()) - self._began

    def do(self, write: Callable[[], None]) -> None:
        """Call `write` on process 0, unless an earlier call failed."""
        if not is_main() or self.error is not None:
            return
        try:
            write()
        except Exception as error:
            self.error = error
            shutil.rmtree(self.temporary, ignore_errors=True)

    def write(self, files: Files) -> None:
        """Write the files on process 0, and put the complete folder in its place."""
        for name, tensors in files.items():
            if is_main() and self.error is None:
                self.do(partial(write_tensors, tensors, self.temporary / name))
            else:
                write_tensors(tensors, None)
        self.do(self._publish)
        self._ended = time.perf_counter()

    def write_in_background(self, files: Files) -> None:
        """Begin to `write` on process 0, and return at once. Nothing else changes `files`."""
        if not is_main():
            return
        # Not a daemon: a process that ends with an error of its own completes its checkpoint.
        self._thread = threading.Thread(target=self.write, args=(files,), name="checkpoint")
        self._thread.start()

    def join(self, seconds: float | None = None) -> None:
        """Wait until this process writes no more, or for some seconds."""
        if self._thread is not None:
            self._thread.join(seconds)

    def wait(self) -> None:
        """Wait until the checkpoint is complete. All processes have to call it.

        Raises UserError if the disk is full. The older checkpoints are untouched then.
        """
        # A large checkpoint may take longer than the launcher waits for a sign of life.
        while any_process(self._thread is not None and self._thread.is_alive()):
            self.join(1.0)
            alive()
        is_full = isinstance(self.error, OSError) and self.error.errno in NO_ROOM
        if self.error is not None and not is_full:
            raise self.error
        if agree(is_full):
            raise SharedError(
                f"The disk of {self.run.checkpoints} is full, so step {self.step} was not saved; "
                "the earlier checkpoints are complete. Free some space and continue with --resume."
            ) from self.error

    def _publish(self) -> None:
        """Write the manifest, rename the complete folder, and delete all but the newest."""
        files = sorted(file for file in self.temporary.rglob("*") if file.is_file())
        hashes = {str(file.relative_to(self.temporary)): hash_file(file) for file in files}
        manifest = json.dumps({"sha256": hashes}, indent=1) + "\n"
        (self.temporary / "manifest.json").write_text(manifest)
        # A rename is atomic, but it must not reach the disk before the contents.
        for file in [*self.temporary.rglob("*"), self.temporary]:
            _sync(file)
        # The same step, if it is written once more because the budget has been used up since.
        hidden = [_hide(self.folder)] if self.folder.exists() else []
        self.temporary.rename(self.folder)
        _sync(self.folder.parent)
        hidden += [_hide(old) for old in self.run.list_checkpoints()[: -self.keep]]
        for old in hidden:
            shutil.rmtree(old)


def begin_checkpoint(
    run: RunFolder,
    model: Model,
    tokenizer: Tokenizer,
    optimizers: list[torch.optim.Optimizer],
    progress: Progress,
    # Passed by name.
    keep: int,
    modules: Mapping[str, nn.Module] = {},
) -> Saving:
    """Copy the state of a run, and begin to write it as a checkpoint such as
    `checkpoints/step-000500`. All but the `keep` newest are deleted after that.

    `modules` are all trained or remembered modules by name, if these are not just `model`. All
    processes call it, and wait for an earlier one before. If the copy would take more than half of
    the free memory, the checkpoint is written before this returns.
    """
    saving = Saving(run, progress.step, keep)
    progress_json = json.dumps(asdict(progress), indent=1) + "\n"
    # The weights of a step are written once, unless the budget has been used up since.
    if agree(_is_saved(saving.folder, progress_json)):
        return saving
    for module in (model, *modules.values()):
        reshard(module)

    def begin() -> None:
        shutil.rmtree(saving.temporary, ignore_errors=True)
        (saving.temporary / "trainer").mkdir(parents=True)
        save_beside_weights(model, tokenizer, saving.temporary)
        (saving.temporary / "trainer" / "progress.json").write_text(progress_json)

    saving.do(begin)
    files = tensor_files(model, optimizers, modules)
    if agree(_fits_twice(files)):
        saving.write_in_background(_copies(files))
    else:
        saving.write(files)
    return saving


def _copies(files: Files) -> Files:
    """Return copies in main memory on process 0. The others only take part in gathering them."""
    copies: dict[str, list[StoredTensor]] = {name: [] for name in files}
    for name, tensors in files.items():
        for tensor in tensors:
            values = tensor.read()
            if is_main():
                copy = torch.empty(list(tensor.shape), dtype=tensor.dtype).copy_(values)
                copies[name].append(stored(tensor.name, copy))
    return copies


def _fits_twice(files: Files) -> bool:
    free = free_memory()
    size = sum(tensor.nbytes for tensors in files.values() for tensor in tensors)
    return free is None or size <= COPY_SHARE * free


def _is_saved(folder: Path, progress_json: str) -> bool:
    file = folder / "trainer" / "progress.json"
    return (folder / "manifest.json").exists() and file.read_text() == progress_json


def _hide(checkpoint: Path) -> Path:
    """Rename a checkpoint to a name that is never read, and return that.

    A kill while it is deleted then leaves no partial checkpoint.
    """
    return checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.old"))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
