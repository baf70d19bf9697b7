"""The run folder: configuration, one JSON object a step, samples, a log, and the loss curve as a
picture."""

import json
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seq2chat.config import Recipe, check


class RunLog:
    """Files of the run in `folder`: `config.toml`, `metrics.jsonl`, `samples/`, `checkpoints/`,
    `log.txt`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.metrics_file = folder / "metrics.jsonl"

    def create(self) -> None:
        """Make the folders."""
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)

    def note(self, text: str) -> None:
        """Append a line with the time of day to `log.txt`."""
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def record(self, values: dict[str, Any]) -> None:
        """Append one object to `metrics.jsonl`."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def sample(self, step: int, text: str) -> None:
        (self.folder / "samples" / f"step-{step:06d}.txt").write_text(text, encoding="utf-8")

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps after `step`: a killed run wrote them, the resumed one writes them
        again."""
        kept = [m for m in self.metrics() if m["step"] <= step]
        temporary = self.metrics_file.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(m) + "\n" for m in kept), encoding="utf-8")
        temporary.replace(self.metrics_file)

    def metrics(self) -> list[dict[str, Any]]:
        """Objects of `metrics.jsonl` in order; a last line cut short by a kill is left out."""
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def is_validated(self, step: int) -> bool:
        """Whether the newest record is the validation of `step`, the last thing a run measures."""
        metrics = self.metrics()
        return (
            bool(metrics)
            and metrics[-1]["step"] == step
            and any(key.startswith("val_") for key in metrics[-1])
        )

    def recipe(self) -> Recipe:
        return Recipe.load(self.folder / "config.toml")

    def list_checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first; what has no manifest was cut short and is not one."""
        found = self.checkpoints.glob("step-*/manifest.json")
        return sorted(
            (manifest.parent for manifest in found), key=lambda p: int(p.name.removeprefix("step-"))
        )

    def newest_sample(self) -> str:
        """The text sampled last, or nothing."""
        files = sorted((self.folder / "samples").glob("step-*.txt"))
        return files[-1].read_text(encoding="utf-8") if files else ""

    def summary(self) -> dict[str, Any]:
        """Where the run stands, in one row."""
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
            "elapsed_seconds",
        )
        return {"run": str(self.folder), **{key: last.get(key) for key in keys}}


def open_run(folder: Path) -> RunLog:
    """The run in `folder`. Raises `UserError` when there is none."""
    check(
        (folder / "config.toml").exists(),
        f"{folder} is not a run folder; `seq2chat runs list` shows those there are.",
    )
    return RunLog(folder)


def list_runs(root: Path) -> list[RunLog]:
    """Runs below `root`, by name."""
    return [RunLog(config.parent) for config in sorted(root.glob("*/config.toml"))]


def compare_runs(runs: Sequence[RunLog]) -> list[dict[str, Any]]:
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


def _flat_config(run: RunLog) -> dict[str, Any]:
    """Return the options in a run's `config.toml` by `table.key`."""
    tables = tomllib.loads((run.folder / "config.toml").read_text(encoding="utf-8"))
    return {
        f"{table}.{key}": value for table, keys in tables.items() for key, value in keys.items()
    }


def plot_runs(runs: Sequence[RunLog], file: Path, x: str = "tokens") -> None:
    """Draw into `file` (.png, .svg or .pdf): of one run its training loss (smoothed) and validation
    loss in nats a token; of several their validation in bits per byte, which may be compared
    whatever their tokenizers.

    Raises `UserError` when there is nothing to draw, or the file's ending is unknown.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    check(
        file.suffix in (".png", ".svg", ".pdf"),
        f"Can't draw {file}; end its name in .png, .svg or .pdf.",
    )
    curves = []
    for run in runs:
        metrics, name = run.metrics(), run.folder.name
        key, label = ("val_loss", "validation") if len(runs) == 1 else ("val_bpb", name)
        if len(runs) == 1:
            curves.append(
                (_smooth([(m[x], m["loss"]) for m in metrics if "loss" in m]), "-", "training")
            )
        curves.append(([(m[x], m[key]) for m in metrics if key in m], "o-", label))
    check(
        any(points for points, _, _ in curves),
        "There is nothing to draw: nothing has been recorded yet"
        + (
            "."
            if len(runs) == 1
            else ", or these are BERTs, whose losses have no common unit; plot them one by one."
        ),
    )
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for points, style, label in curves:
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.set(
        xlabel=x.replace("_", " "),
        ylabel="nats a token" if len(runs) == 1 else "bits per byte (validation)",
    )
    axes.set_title(" · ".join(run.folder.name for run in runs))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Bias-corrected exponential average over about a hundredth of the curve."""
    decay = 1 - 1 / max(1, len(points) / 100)
    average, weight, smoothed = 0.0, 0.0, []
    for x, y in points:
        average, weight = decay * average + (1 - decay) * y, decay * weight + (1 - decay)
        smoothed.append((x, average / weight))
    return smoothed
