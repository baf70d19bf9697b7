"""The runs whose training the server shows, and what it has read and measured of them."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from seq2chat.config import Recipe, UserError, check
from seq2chat.inference.validation_bleu import validation_bleu
from seq2chat.interpret.probe import has_head_scores, head_scores, token_losses
from seq2chat.interpret.summary import number, numbers, token_json
from seq2chat.models.folder import Model
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.serving.errors import UnknownRun
from seq2chat.serving.served_model import names
from seq2chat.serving.sse import to_json
from seq2chat.serving.trace_store import ByteLRU
from seq2chat.text.named import hash_file
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.tokenizers import Tokenizer
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.curves import Curves
from seq2chat.training.gradients import layer_gradients
from seq2chat.training.run_folder import RunFolder, list_runs

Probe = Literal["tokens", "heads", "gradients", "bleu"]

MAX_PROBE_BYTES = 4_000_000  # of all measurements that are kept
MAX_SAMPLE_CHARACTERS = 20_000
MAX_LISTED = 1000  # checkpoints and samples of a run, the newest ones


class WatchedRun:
    """A run under its name. Its methods read files, so they belong in a thread of their own."""

    def __init__(self, name: str, run: RunFolder) -> None:
        self.name = name
        self.run = run
        self._curves = Curves(run)
        self._state: object = None
        self._reply = b""
        self._etag = ""

    def card(self) -> dict[str, Any]:
        """Return the entry of the run in `/api/runs`."""
        recipe = self._recipe
        return {
            "name": self.name,
            "family": None if recipe is None else recipe.model.family,
            "method": None if recipe is None else recipe.method or "pretraining",
            "budget": None if recipe is None else recipe.train.budget,
        }

    def reply(self) -> tuple[bytes, str]:
        """Return the curves, checkpoints and samples as JSON, and their ETag."""
        checkpoints = [_step(folder) for folder in self.run.list_checkpoints()][-MAX_LISTED:]
        samples = self._samples()[-MAX_LISTED:]
        modified = _modified(self.run.metrics_file)
        state = checkpoints, samples, modified
        if state != self._state:
            self._curves.update()
            content = self.card() | {
                "object": "run",
                "modified": modified[0] / 1e9,
                "last": self._curves.last,
                "train": self._curves.train.columns(),
                "validation": self._curves.validation.columns(),
                "checkpoints": checkpoints,
                "samples": samples,
                "n_unreadable": self._curves.n_unreadable,
                "win_rate": self._win_rates(),
            }
            self._reply = to_json(content)
            self._etag = f'"{hashlib.blake2b(self._reply, digest_size=12).hexdigest()}"'
            self._state = state
        return self._reply, self._etag

    def _win_rates(self) -> dict[str, dict[str, float]]:
        """Return the win rates of a demo's stage over the one before it, from its report."""
        try:
            text = (self.run.folder.parent / "report.json").read_text(encoding="utf-8")
            rates = json.loads(text)["win_rate"]
        except (OSError, ValueError, KeyError):
            return {}
        stage = f"{self.run.folder.name} over "
        return {pair: rate for pair, rate in rates.items() if pair.startswith(stage)}

    def sample(self, step: int) -> dict[str, Any]:
        """Return the sample that was written at a step."""
        file = self.run.folder / "samples" / f"step-{step:06d}.txt"
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            raise UnknownRun(f"{self.name} has no sample of step {step}.") from None
        return {"step": step, "text": text[:MAX_SAMPLE_CHARACTERS]}

    def measure(self, step: int, probe: Probe, text: str, translation: str | None) -> bytes:
        """Return a measurement of a checkpoint as JSON. Raises UnknownRun if it is gone."""
        folder = self.checkpoint(step)
        try:
            content = self._measured(folder, probe, text, translation)
        except Exception:
            if not (folder / "manifest.json").exists():  # deleted meanwhile
                raise self._gone(step) from None
            raise
        return to_json({"step": step} | content)

    def beginning(self) -> bytes:
        """Return the metrics of the first step, which a resumed run keeps: its times differ from
        those of any other run."""
        try:
            with self.run.metrics_file.open("rb") as stream:
                return stream.readline()
        except OSError:
            return b""

    def identity(self, step: int) -> str:
        """Return the hash of a checkpoint's manifest, or an empty string if it is gone."""
        try:
            return hash_file(self.checkpoint(step) / "manifest.json")
        except (UnknownRun, OSError):
            return ""

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint. Raises UnknownRun if there is none."""
        for folder in self.run.list_checkpoints():
            if _step(folder) == step:
                return folder
        raise self._gone(step)

    def _gone(self, step: int) -> UnknownRun:
        return UnknownRun(
            f"{self.name} has no checkpoint of step {step} any more; a run keeps its newest ones, "
            "and more with --train.keep."
        )

    def _measured(
        self, folder: Path, probe: Probe, text: str, translation: str | None
    ) -> dict[str, Any]:
        if probe == "gradients":
            return {"layers": {k: number(v) for k, v in layer_gradients(folder).items()}}
        model, tokenizer = load_checkpoint(folder)
        if probe == "bleu":
            return self._bleu(model, tokenizer)
        if probe == "heads":
            if not has_head_scores(model):
                return {"previous": None, "induction": None}
            scores = head_scores(model, tokenizer.vocab_size)
            return {
                "previous": numbers(scores.previous),
                "induction": numbers(scores.induction),
            }
        losses = token_losses(model, tokenizer, text, translation)
        return {
            "tokens": [
                token_json(tokenizer, token) | {"loss": None if loss is None else number(loss)}
                for token, loss in losses
            ]
        }

    def _bleu(self, model: Model, tokenizer: Tokenizer) -> dict[str, Any]:
        check(
            isinstance(model, Seq2Seq | Transformer) and self._recipe is not None,
            f"{self.name} does not translate, so it has no BLEU.",
        )
        assert isinstance(model, Seq2Seq | Transformer)
        assert isinstance(tokenizer, TextTokenizer)
        assert self._recipe is not None
        score, n_pairs = validation_bleu(model, tokenizer, self._recipe)
        return {"bleu": number(score), "pairs": n_pairs}

    @cached_property
    def _recipe(self) -> Recipe | None:
        try:
            return self.run.recipe()
        except (UserError, OSError):  # of another version; the curves need no configuration
            return None

    def _samples(self) -> list[int]:
        names = (file.name for file in (self.run.folder / "samples").glob("step-*.txt"))
        return sorted(int(m[1]) for m in (re.fullmatch(r"step-(\d+)\.txt", n) for n in names) if m)


class RunStore:
    """The runs by name, and the newest measurements of their checkpoints."""

    def __init__(self, runs: Iterable[RunFolder]) -> None:
        runs = list(runs)
        run_names = names([run.folder for run in runs])
        self.runs = {name: WatchedRun(name, run) for name, run in zip(run_names, runs, strict=True)}
        # Each measurement with the identity of its checkpoint.
        self._measured: ByteLRU[tuple[str, bytes]] = ByteLRU(
            MAX_PROBE_BYTES, lambda measured: len(measured[1])
        )

    def find(self, name: str) -> WatchedRun:
        """Return the run with this name. Raises UnknownRun."""
        if name not in self.runs:
            names = ", ".join(self.runs) or "none"
            raise UnknownRun(f"There is no run {name[:100]!r} here; there are: {names}.")
        return self.runs[name]

    def measure(
        self, name: str, step: int, probe: Probe, text: str = "", translation: str | None = None
    ) -> bytes:
        """Return `WatchedRun.measure`, computed once while it is kept.

        A checkpoint that was deleted keeps its measurements, also when the run is resumed. They are
        lost when another run takes its folder.
        """
        run = self.find(name)
        key = repr((name, run.beginning(), step, probe, text, translation))
        identity = run.identity(step)
        measured, content = self._measured.get(key) or ("", b"")
        if content and identity in ("", measured):
            return content
        content = run.measure(step, probe, text, translation)
        self._measured.put(key, (identity, content))
        return content


def watched_folders(paths: Sequence[Path]) -> list[RunFolder]:
    """Return the runs in `paths`: run folders, their checkpoints, and folders of runs.

    Paths without a run, such as model folders, are left out.
    """
    runs: dict[Path, RunFolder] = {}
    for path in paths:
        is_checkpoint = path.resolve().parent.name == "checkpoints"
        folder = path.resolve().parents[1] if is_checkpoint else path
        inside = [RunFolder(folder)] if (folder / "config.toml").exists() else list_runs(folder)
        for run in inside:
            runs.setdefault(run.folder.resolve(), run)
    return list(runs.values())


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _modified(file: Path) -> tuple[int, int]:
    """Return the time of the last change in nanoseconds, and the size; zeros without a file."""
    try:
        stat = file.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size
