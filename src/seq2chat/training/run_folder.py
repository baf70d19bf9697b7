"""The run folder: configuration, metrics, samples, checkpoints, a log, and a plot of the loss."""

import json
import shutil
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from seq2chat.config import Recipe, check
from seq2chat.text.tokenizers import Tokenizer
from seq2chat.training.processes import is_main


class RunFolder:
    """The files of a run: `config.toml`, `metrics.jsonl`, `samples/`, `checkpoints/` and
    `log.txt`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.metrics_file = folder / "metrics.jsonl"

    def create(self) -> None:
        """Create the folders."""
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)

    def begin(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        """Create the folders, and write the tokenizer and the recipe of a new run."""
        self.create()
        tokenizer.save(self.folder / "tokenizer")
        self.save_recipe(recipe)  # last: it makes the folder a run

    def save_recipe(self, recipe: Recipe) -> None:
        """Write `config.toml` atomically."""
        recipe.save(self.folder / "config.toml")

    def clean(self, step: int) -> None:
        """Delete what a killed run left after `step`: metrics, and checkpoints that it was writing
        (`.step-*.tmp`) or deleting (`.step-*.old`)."""
        self.drop_after(step)
        for partial in self.checkpoints.glob(".step-*"):
            shutil.rmtree(partial)

    def discard(self) -> None:
        """Delete the files of the run, and its folder if nothing else is in it."""
        for name in ("samples", "checkpoints", "tokenizer"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for file in (self.folder / "config.toml", self.folder / "log.txt", self.metrics_file):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # of a user's other files
            self.folder.rmdir()

    def note(self, text: str) -> None:
        """Append a line with a timestamp to `log.txt`."""
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def record(self, values: dict[str, Any]) -> None:
        """Append one object to `metrics.jsonl`."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def event(self, kind: str, sentence: str, **values: Any) -> None:
        """Append an event to `events.jsonl`, beside those of `seq2chat launch`."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        event = {"time": stamp, "event": kind, "sentence": sentence} | values
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def plot(self) -> None:
        """Draw the losses into `loss.png`."""
        plot_runs([self], self.folder / "loss.png")

    def sample(self, step: int, text: str) -> None:
        (self.folder / "samples" / f"step-{step:06d}.txt").write_text(text, encoding="utf-8")

    def drop_after(self, step: int) -> None:
        """Drop the metrics of steps after `step`. A killed run wrote them, and the resumed run will
        write them again."""
        kept = [m for m in self.metrics() if m["step"] <= step]
        temporary = self.metrics_file.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(m) + "\n" for m in kept), encoding="utf-8")
        temporary.replace(self.metrics_file)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the objects of `metrics.jsonl`, without a last line that a kill cut short."""
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def is_validated(self, step: int) -> bool:
        """Return whether the newest record is the validation of `step`, the last one of a run."""
        metrics = self.metrics()
        return (
            bool(metrics)
            and metrics[-1]["step"] == step
            and any(key.startswith("val_") for key in metrics[-1])
        )

    def recipe(self) -> Recipe:
        return Recipe.load(self.folder / "config.toml")

    def list_checkpoints(self) -> list[Path]:
        """Return the complete checkpoints, oldest first. A folder without a manifest is
        incomplete."""
        folders = [file.parent for file in self.checkpoints.glob("step-*/manifest.json")]
        return sorted(folders, key=lambda folder: int(folder.name.removeprefix("step-")))

    def newest_sample(self) -> str:
        """Return the newest sample, or an empty string."""
        files = sorted((self.folder / "samples").glob("step-*.txt"))
        return files[-1].read_text(encoding="utf-8") if files else ""

    def summary(self) -> dict[str, Any]:
        """Return the newest value of each metric, as one row of a table."""
        last: dict[str, Any] = {}
        for values in self.metrics():
            last |= values
        keys = (
            "step",
            "tokens",
            "loss",
            "val_loss",
            "val_loss_per_character",
            "val_bpb",
            "val_accuracy",
            "score",
            "val_score",
            "elapsed_seconds",
        )
        return {"run": str(self.folder), **{key: last.get(key) for key in keys}}


class ReadOnlyRun(RunFolder):
    """The same files for the processes of a run that don't write them."""

    def begin(self, recipe: Recipe, tokenizer: Tokenizer) -> None: ...
    def save_recipe(self, recipe: Recipe) -> None: ...
    def clean(self, step: int) -> None: ...
    def discard(self) -> None: ...
    def note(self, text: str) -> None: ...
    def record(self, values: dict[str, Any]) -> None: ...
    def event(self, kind: str, sentence: str, **values: Any) -> None: ...
    def sample(self, step: int, text: str) -> None: ...
    def plot(self) -> None: ...


def run_folder(folder: Path) -> RunFolder:
    """Return the run in `folder`, which process 0 writes and the others read."""
    return RunFolder(folder) if is_main() else ReadOnlyRun(folder)


def open_run(folder: Path) -> RunFolder:
    """Return the run in `folder`. Raises UserError if there is none."""
    check(
        (folder / "config.toml").exists(),
        f"{folder} is not a run folder; `seq2chat runs list` lists those in runs/.",
    )
    return run_folder(folder)


def finished_stages(folder: Path) -> dict[str, float]:
    """Return the seconds of each finished stage of a pipeline in `folder`, by the stage's name."""
    file = folder / "stages.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def list_runs(root: Path) -> list[RunFolder]:
    """Return the runs in `root`, and the stages of the demos in it, by name."""
    demos = [file.parent for file in root.glob("*/stages.json")]
    configs = [file for folder in (root, *demos) for file in folder.glob("*/config.toml")]
    return [RunFolder(config.parent) for config in sorted(configs)]


def compare_runs(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Return the summary of each run and, as `table.key`, the options in which the runs differ.

    An option that a run's configuration lacks is None.
    """
    configs = [_flat_config(run) for run in runs]
    different = []
    for key in sorted(set().union(*configs)):
        values = {json.dumps(config.get(key)) for config in configs}
        if len(values) > 1:
            different.append(key)
    return [
        run.summary() | {key: config.get(key) for key in different}
        for run, config in zip(runs, configs, strict=True)
    ]


def _flat_config(run: RunFolder) -> dict[str, Any]:
    """Return the options in a run's `config.toml` by `table.key`."""
    tables = tomllib.loads((run.folder / "config.toml").read_text(encoding="utf-8"))
    return {
        f"{table}.{key}": value for table, keys in tables.items() for key, value in keys.items()
    }


def plot_runs(runs: Sequence[RunFolder], file: Path, x: str = "tokens") -> None:
    """Draw the loss curves of runs into `file` (.png, .svg or .pdf).

    One run shows its smoothed training loss and its validation loss in nats per token. Several runs
    show their validation in bits per byte, which is comparable between tokenizers. Raises UserError
    if there is nothing to draw, or if the suffix of the file is unknown.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    check(
        file.suffix in (".png", ".svg", ".pdf"),
        f"Can't draw {file}; choose a name that ends in .png, .svg or .pdf.",
    )
    is_single = len(runs) == 1
    curves = _run_curves(runs[0], x) if is_single else [_validation_curve(run, x) for run in runs]
    berts = ", or these are BERTs, whose losses have no common unit; plot them one by one"
    check(
        any(points for points, _, _ in curves),
        f"There is nothing to draw: nothing has been recorded yet{'' if is_single else berts}.",
    )
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for points, style, label in curves:
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.set(
        xlabel=x.replace("_", " "),
        ylabel="nats per token" if is_single else "bits per byte (validation)",
    )
    axes.set_title(" · ".join(run.folder.name for run in runs))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


Curve = tuple[list[tuple[float, float]], str, str]
"""Points, line style and label."""


def _run_curves(run: RunFolder, x: str) -> list[Curve]:
    metrics = run.metrics()
    training = _smooth([(float(m[x]), m["loss"]) for m in metrics if "loss" in m])
    validation = [(float(m[x]), m["val_loss"]) for m in metrics if "val_loss" in m]
    return [(training, "-", "training"), (validation, "o-", "validation")]


def _validation_curve(run: RunFolder, x: str) -> Curve:
    points = [(float(m[x]), m["val_bpb"]) for m in run.metrics() if "val_bpb" in m]
    return points, "o-", run.folder.name


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the bias-corrected exponential average over about a hundredth of the curve."""
    decay = 1 - 1 / max(1, len(points) / 100)
    average = weight = 0.0
    smoothed = []
    for x, y in points:
        average = decay * average + (1 - decay) * y
        weight = decay * weight + (1 - decay)
        smoothed.append((x, average / weight))
    return smoothed
