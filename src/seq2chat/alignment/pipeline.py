"""The whole line in one go: pretraining, demonstrations, comparisons, reward model, PPO-ptx,
report.

Each stage leaves its folder and is told in `stages.json`; started again, the line goes on where it
stopped.
"""

import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seq2chat.alignment.report import SHOTS, answer_sheet, exam, text_sheet, write_report
from seq2chat.alignment.rollout import roll_out
from seq2chat.alignment.setup import prepare_alignment
from seq2chat.config import Recipe, check, recipe_tables
from seq2chat.device import pick_device, pick_precision
from seq2chat.models.gpt import GPT
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.conversations import Query, world_comparisons, world_questions, write_comparisons
from seq2chat.training.autosize import step_seconds
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.loop import train
from seq2chat.training.run_folder import RunFolder, open_run
from seq2chat.training.setup import prepare_training, resume_job, start_job
from seq2chat.training.types import Sampled, Step, Validated

Say = Callable[[str], None]
Tables = dict[str, dict[str, Any]]

SAMPLED, RANKED, CHUNK = 4, 5000, 64
"""Answers sampled from the policy to each prompt that labelers rank, number of prompts, prompts
sampled at once."""

EXAM = 420  # held-out questions of the report, 20 per family
# Steps, examples, prompts or questions of a shortened stage: 2 questions per family.
LEAST_LENGTH = 42


@dataclass(frozen=True)
class Stage:
    """One stage: its folder's name, what it does, and its share of the time."""

    name: str
    title: str
    share: float


STAGES = (
    Stage("base", "pretraining a GPT on the world's text", 0.45),
    Stage("sft", "learning to answer from demonstrations", 0.15),
    Stage("comparisons", "asking labelers to rank answers", 0.04),
    Stage("reward", "learning to judge from their rankings", 0.10),
    Stage("ppo", "reinforcement learning against the judge", 0.22),
    Stage("report", "comparing base, sft and ppo", 0.04),
)


@dataclass(frozen=True)
class Moment:
    """Where the line stands: share of the whole and of the stage that is done, and what just
    happened."""

    stage: Stage
    whole: float
    share: float
    text: str


FULL_STEPS = 2000  # of pretraining, by its recipe
LEAST_SCALE = 0.1  # of the full lengths; with less, no stage has anything to learn from
RL_STEPS, RL_EPISODES = 70, 128  # of reinforcement learning, by its recipe
RL_BATCH, RL_LEAST = 32, 26  # episodes are whole minibatches, and so many steps are left a schedule


class Pace:
    """Shortens the stages so that the line ends within `seconds`, of which `used` have passed.

    Where all stages have time for their recipes' lengths, they have those lengths. Where they do
    not, training stages get their share of the time that is left, and the others their share of
    prompts and questions.
    """

    def __init__(self, seconds: float, used: float, left: Sequence[Stage]) -> None:
        self.ends = time.monotonic() + seconds - used
        self.left = list(left)
        recipe = Recipe.from_tables(recipe_tables("demo-base"))
        device = pick_device()
        a_step = step_seconds(recipe, device, pick_precision(recipe.train.precision, device))
        self.whole = a_step * FULL_STEPS / STAGES[0].share
        least = used + LEAST_SCALE * self.whole * self.shares()
        check(
            self.scale() >= LEAST_SCALE,
            f"The budget of {seconds:.0f}s is too short for the demo on this machine; write at "
            f"least --budget {math.ceil(1.5 * least)}s.",
        )

    def shares(self) -> float:
        """Return the share of the whole line that is left."""
        return sum(stage.share for stage in self.left)

    def scale(self) -> float:
        """Return the share of their full lengths for which the stages left have time, at most 1."""
        return min(1.0, (self.ends - time.monotonic()) / (self.whole * self.shares()))

    def begin(self, stage: Stage) -> dict[str, Any]:
        """Return the options that shorten the next stage."""
        scale = self.scale()
        seconds = (self.ends - time.monotonic()) * stage.share / self.shares()
        self.left.remove(stage)
        if scale >= 1:
            return {}
        if stage.name == "comparisons":
            return {"prompts": max(LEAST_LENGTH, round(scale * RANKED)), "seconds": seconds}
        if stage.name == "report":
            return {"questions": max(LEAST_LENGTH, round(scale * EXAM))}
        shortened: dict[str, Any] = {"train.budget": f"{max(1, round(seconds))}s"}
        if stage.name == "ppo":
            # Fewer answers per step rather than too few steps.
            batches = scale * RL_STEPS * RL_EPISODES / (RL_LEAST * RL_BATCH)
            shortened["align.episodes"] = min(RL_EPISODES, RL_BATCH * max(1, int(batches)))
        return shortened


def run_line(
    folder: Path,
    stop: threading.Event,
    say: Say,
    changes: Tables | None = None,
    seed: int = 1,
    seconds: float = math.inf,
) -> Iterator[Moment]:
    """Run what is left of the line in `folder`, until `stop` is set; yields where it stands.

    `changes` are laid over the recipes: `{"base": {"train.budget": "1m"}, ...}`. Where the whole
    line would take more than `seconds` on this machine, its stages are shortened. Raises UserError
    where that leaves nothing of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    finished = finished_stages(folder)
    if (folder / "base" / "config.toml").exists():
        begun = open_run(folder / "base").recipe().train.seed // 100
        check(
            begun == seed,
            f"{folder} was begun with seed {begun}; go on with it, or choose another folder.",
        )
    left = [stage for stage in STAGES if stage.name not in finished]
    pace = None
    if left and seconds < math.inf:
        pace = Pace(seconds, sum(finished.values()) + unfinished_seconds(folder, left), left)
    if pace is not None and pace.scale() < 1:
        say(
            f"this machine has time for {pace.scale():.0%} of the demo's full length in"
            f" {seconds / 60:.0f} minutes, so the models learn less; --budget "
            f"{math.ceil(seconds / 60 / pace.scale())}m would take all of it"
        )
    for number, stage in enumerate(STAGES):
        before = sum(s.share for s in STAGES[:number])
        if stage.name in finished:
            continue
        work = {"comparisons": _compare, "report": _report}.get(stage.name, _train)
        began = time.monotonic()
        options = ({} if pace is None else pace.begin(stage)) | (changes or {}).get(stage.name, {})
        for share, text in work(folder, stage.name, stop, say, options, seed):
            yield Moment(stage, before + share * stage.share, share, text)
        if stop.is_set():
            return
        finished[stage.name] = round(time.monotonic() - began, 1)
        (folder / "stages.json").write_text(json.dumps(finished, indent=1) + "\n", encoding="utf-8")


def unfinished_seconds(folder: Path, left: Sequence[Stage]) -> float:
    """Return the seconds that the stage which was interrupted has been trained."""
    checkpoints = RunFolder(folder / left[0].name).list_checkpoints()
    if not checkpoints:
        return 0.0
    progress = json.loads(
        (checkpoints[-1] / "trainer" / "progress.json").read_text(encoding="utf-8")
    )
    return progress["seconds"]


def finished_stages(folder: Path) -> dict[str, float]:
    """Return the stages that are done, and the seconds that each took."""
    file = folder / "stages.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def stage_tables(folder: Path, name: str, seed: int) -> Tables:
    """Return what the line lays over the recipe of a stage: where its model, data and judge are.

    Every stage has a seed of its own, and with it other questions of the world.
    """
    number = [stage.name for stage in STAGES].index(name)
    tables: Tables = {"train": {"seed": 100 * seed + number}}
    start = {"sft": "base", "reward": "sft", "ppo": "sft"}.get(name)
    if start:
        tables["align"] = {"start": str(folder / start)}
    if name == "reward":
        tables["data"] = {"corpus": str(folder / "comparisons.jsonl")}
    if name == "ppo":
        tables["align"] |= {"reward": str(folder / "reward")}
    return tables


def _train(
    folder: Path, name: str, stop: threading.Event, say: Say, changes: dict[str, Any], seed: int
) -> Iterator[tuple[float, str]]:
    run, prepare = folder / name, prepare_training if name == "base" else prepare_alignment
    yield 0.0, "making ready"
    if not RunFolder(run).list_checkpoints():
        # A stage without a checkpoint begins again, with the time it has now.
        shutil.rmtree(run, ignore_errors=True)
    if (run / "config.toml").exists():
        job = resume_job(run, {}, say, prepare=prepare)
    else:
        recipe = Recipe.from_tables(
            recipe_tables(f"demo-{name}"), stage_tables(folder, name, seed), _nested(changes)
        )
        job = start_job(recipe, run, say, prepare=prepare)
    for event in train(job, stop):
        match event:
            case Step():
                shown = [
                    f"{key} {event.metrics[key]:.2f}"
                    for key in job.task.displayed
                    if key in event.metrics
                ]
                yield (
                    event.share,
                    " · ".join([f"step {event.step}", *(shown or [f"loss {event.loss:.3f}"])]),
                )
            case Validated():
                e, values = event.evaluation, dict(event.metrics)
                values |= {} if e is None else {f"nats a {job.task.unit}": e.loss}
                say(
                    f"{name}, step {event.step}: "
                    + " · ".join(f"{k} {v:.3f}" for k, v in values.items())
                )
            case Sampled():
                say(event.text.strip())


def _nested(flat: dict[str, Any]) -> Tables:
    tables: Tables = {}
    for key, value in flat.items():
        table, _, name = key.partition(".")
        tables.setdefault(table, {})[name] = value
    return tables


def _compare(
    folder: Path, name: str, stop: threading.Event, say: Say, changes: dict[str, Any], seed: int
) -> Iterator[tuple[float, str]]:
    """Sample answers of the fine-tuned policy, put some of the world's own beside them, and have
    labelers rank them."""
    model, tokenizer = load_checkpoint(folder / "sft")
    assert isinstance(model, GPT) and isinstance(tokenizer, ByteBPE)
    model.to(pick_device())
    asked = world_questions(changes.get("prompts", RANKED), seed=100 * seed + 50)
    answers: list[list[str]] = []
    began = time.monotonic()
    for first in range(0, len(asked), CHUNK):
        if stop.is_set():
            return
        if time.monotonic() - began > changes.get("seconds", math.inf):
            break
        queries = [Query(q.messages) for q in asked[first : first + CHUNK]]
        texts = roll_out(model, tokenizer, queries, 32, n=SAMPLED, seed=first).answers
        answers += [
            [text for text in texts[i : i + SAMPLED] if text.strip()]
            for i in range(0, len(texts), SAMPLED)
        ]
        yield first / len(asked), f"{first} of {len(asked)} prompts"
    compared = world_comparisons(asked[: len(answers)], seed, answers)
    write_comparisons(folder / "comparisons.jsonl", compared)
    say(f"{sum(len(c.pairs()) for c in compared):,} pairs of answers ranked")


def _report(
    folder: Path, name: str, stop: threading.Event, say: Say, changes: dict[str, Any], seed: int
) -> Iterator[tuple[float, str]]:
    asked = exam(changes.get("questions", EXAM), seed=100 * seed)
    models: dict[str, GPT] = {}
    for run in ("base", "sft", "ppo"):
        model, tokenizer = load_checkpoint(folder / run)
        assert isinstance(model, GPT) and isinstance(tokenizer, ByteBPE)
        models[run] = model.to(pick_device())
    yield 0.0, "base"
    sheets = [text_sheet("base", models["base"], tokenizer, asked)]
    sheets.append(text_sheet("base, prompted", models["base"], tokenizer, asked, SHOTS))
    for place, run in ((0.3, "sft"), (0.6, "ppo")):
        if stop.is_set():
            return
        yield place, run
        sheets.append(
            answer_sheet(
                run, models[run], tokenizer, asked, models["sft"] if run == "ppo" else None
            )
        )
    write_report(folder, asked, sheets)
    say("gold score: " + ", ".join(f"{sheet.name} {sheet.score:.3f}" for sheet in sheets))
