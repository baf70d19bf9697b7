"""The whole pipeline: pretraining, demonstrations, comparisons, reward model, PPO-ptx, report.

Each stage leaves a folder and an entry in `stages.json`. A pipeline that is started again resumes
where it stopped.
"""

import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seq2chat.alignment.exam import SHOTS, answer_sheet, exam, headlines, text_sheet
from seq2chat.alignment.report import write_report
from seq2chat.alignment.rollout import roll_out
from seq2chat.alignment.setup import prepare
from seq2chat.config import Recipe, check, recipe_tables
from seq2chat.device import pick_device, pick_precision
from seq2chat.inference.load import load_gpt
from seq2chat.log import Log
from seq2chat.text.conversations import Query, world_comparisons, world_questions, write_comparisons
from seq2chat.training.autosize import step_seconds
from seq2chat.training.loop import train
from seq2chat.training.run_folder import RunFolder, finished_stages, open_run
from seq2chat.training.setup import resume_job, start_job
from seq2chat.training.types import Sampled, Step, Validated

Tables = dict[str, dict[str, Any]]

SAMPLED = 4  # answers of the policy per prompt, for labelers to rank
RANKED = 5000  # prompts whose answers are ranked
PROMPTS_AT_ONCE = 64
EXAM = 500  # held-out questions of the report, 20 per family
MIN_LENGTH = 50  # prompts or questions of a shortened stage: 2 questions per family


@dataclass(frozen=True)
class Stage:
    """One stage: the name of its folder, its title, and its share of the time."""

    name: str
    title: str
    share: float


STAGES = (
    Stage("base", "pretraining a GPT on the world's text", 0.48),
    Stage("sft", "fine-tuning on demonstrations", 0.15),
    Stage("comparisons", "ranking answers by labelers", 0.05),
    Stage("reward", "training a reward model on the rankings", 0.08),
    Stage("ppo", "reinforcement learning against the reward model", 0.20),
    Stage("report", "comparing base, sft and ppo", 0.04),
)


@dataclass(frozen=True)
class StageProgress:
    """The completed share of the pipeline and of the stage, and the latest event as text."""

    stage: Stage
    whole: float
    share: float
    text: str


FULL_STEPS = 3500  # of pretraining, by its recipe
MIN_SCALE = 0.03  # of the full lengths; with less, a stage has no time for its steps
RL_STEPS, RL_EPISODES, RL_BATCH = 70, 128, 32  # of reinforcement learning, by its recipe
LEAST_STEPS = 5  # of each stage: a short demo shows all stages rather than none
RL_MIN_STEPS = 26  # kept when stages are shortened, so that there is a schedule


class Pace:
    """Shortens the stages so that the pipeline ends within `seconds`, of which `used` have passed.

    If the time suffices for the lengths of the recipes, nothing is shortened. Otherwise training
    stages get their share of the remaining time, and the others their share of prompts and
    questions.
    """

    def __init__(self, seconds: float, used: float, stages: Sequence[Stage]) -> None:
        self.ends = time.monotonic() + seconds - used
        self.stages = list(stages)
        recipe = Recipe.from_tables(recipe_tables("demo-base"))
        device = pick_device()
        precision = pick_precision(recipe.train.precision, device)
        pretraining = step_seconds(recipe, device, precision) * FULL_STEPS
        self.whole = pretraining / STAGES[0].share
        least = used + MIN_SCALE * self.whole * self.share()
        check(
            self.scale() >= MIN_SCALE,
            f"The budget of {seconds:.0f}s is too short for the demo on this machine; write at "
            f"least --budget {math.ceil(1.5 * least)}s.",
        )

    def share(self) -> float:
        """Return the remaining share of the pipeline."""
        return sum(stage.share for stage in self.stages)

    def scale(self) -> float:
        """Return the share of their full lengths that the remaining stages have time for, at most
        1."""
        return min(1.0, (self.ends - time.monotonic()) / (self.whole * self.share()))

    def begin(self, stage: Stage) -> dict[str, Any]:
        """Return the options that shorten the next stage."""
        scale = self.scale()
        seconds = (self.ends - time.monotonic()) * stage.share / self.share()
        self.stages.remove(stage)
        if scale >= 1:
            return {}
        if stage.name == "comparisons":
            return {"prompts": max(MIN_LENGTH, round(scale * RANKED)), "seconds": seconds}
        if stage.name == "report":
            return {"questions": max(MIN_LENGTH, round(scale * EXAM))}
        shortened: dict[str, Any] = {"train.budget": f"{max(1, round(seconds))}s"}
        if stage.name == "ppo":
            # Fewer answers per step, in whole minibatches, rather than too few steps.
            batches = scale * RL_STEPS * RL_EPISODES / (RL_MIN_STEPS * RL_BATCH)
            shortened["align.episodes"] = min(RL_EPISODES, RL_BATCH * max(1, int(batches)))
        return shortened


def run_pipeline(
    folder: Path,
    stop: threading.Event,
    log: Log,
    changes: Tables | None = None,
    seed: int = 1,
    seconds: float = math.inf,
) -> Iterator[StageProgress]:
    """Run the remaining stages of the pipeline in `folder` until `stop` is set, and yield the
    progress.

    `changes` override options of the recipes, for example `{"base": {"train.budget": "1m"}}`. If
    the pipeline would take more than `seconds` on this machine, its stages are shortened. Raises
    UserError if that leaves too little of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    finished = finished_stages(folder)
    _check_seed(folder, seed)
    remaining = [stage for stage in STAGES if stage.name not in finished]
    pace = None
    if remaining and seconds < math.inf:
        used = sum(finished.values()) + unfinished_seconds(folder, remaining)
        pace = Pace(seconds, used, remaining)
    if pace is not None and pace.scale() < 1:
        minutes = seconds / 60
        log(
            f"this machine has time for {pace.scale():.0%} of the demo's full length in "
            f"{minutes:.0f} minutes, so the models learn less; --budget "
            f"{math.ceil(minutes / pace.scale())}m would be enough for all of it"
        )
    for stage in remaining:
        before = sum(s.share for s in STAGES[: STAGES.index(stage)])
        began = time.monotonic()
        options = {} if pace is None else pace.begin(stage)
        options |= (changes or {}).get(stage.name, {})
        run = {"comparisons": _compare, "report": _report}.get(stage.name, _train)
        for share, text in run(folder, stage.name, stop, log, options, seed):
            yield StageProgress(stage, before + share * stage.share, share, text)
        if stop.is_set():
            return
        finished[stage.name] = round(time.monotonic() - began, 1)
        (folder / "stages.json").write_text(json.dumps(finished, indent=1) + "\n", encoding="utf-8")


def _check_seed(folder: Path, seed: int) -> None:
    if (folder / "base" / "config.toml").exists():
        started = open_run(folder / "base").recipe().train.seed // 100
        check(
            started == seed,
            f"{folder} was started with seed {started}; continue with it, or choose another "
            "folder.",
        )


def unfinished_seconds(folder: Path, remaining: Sequence[Stage]) -> float:
    """Return the training seconds of an interrupted stage."""
    checkpoints = RunFolder(folder / remaining[0].name).list_checkpoints()
    if not checkpoints:
        return 0.0
    progress = json.loads(
        (checkpoints[-1] / "trainer" / "progress.json").read_text(encoding="utf-8")
    )
    return progress["seconds"]


def stage_tables(folder: Path, name: str, seed: int) -> Tables:
    """Return the options that the pipeline adds to the recipe of a stage: the paths of its model,
    data and reward model.

    Every stage has its own seed, and therefore other questions of the world.
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
    folder: Path, name: str, stop: threading.Event, log: Log, changes: dict[str, Any], seed: int
) -> Iterator[tuple[float, str]]:
    run = folder / name
    yield 0.0, "preparing"
    if not RunFolder(run).list_checkpoints():
        # A stage without a checkpoint restarts, with the time that is left now.
        RunFolder(run).discard()
    if (run / "config.toml").exists():
        job = resume_job(run, {}, log, prepare=prepare)
    else:
        recipe = Recipe.from_tables(
            recipe_tables(f"demo-{name}"), stage_tables(folder, name, seed), _nested(changes)
        )
        job = start_job(recipe, run, log, prepare=prepare)
    job.least_steps = LEAST_STEPS
    for event in train(job, stop):
        match event:
            case Step():
                values = job.task.display(event.metrics) or [f"loss {event.loss:.3f}"]
                yield event.share, " · ".join([f"step {event.step}", *values])
            case Validated():
                values = dict(event.metrics)
                if event.evaluation is not None:
                    values[f"nats per {job.task.unit}"] = event.evaluation.loss
                line = " · ".join(f"{key} {value:.3f}" for key, value in values.items())
                log(f"{name}, step {event.step}: {line}")
            case Sampled():
                log(event.text.strip())


def _nested(flat: dict[str, Any]) -> Tables:
    tables: Tables = {}
    for key, value in flat.items():
        table, _, name = key.partition(".")
        tables.setdefault(table, {})[name] = value
    return tables


def _compare(
    folder: Path, name: str, stop: threading.Event, log: Log, changes: dict[str, Any], seed: int
) -> Iterator[tuple[float, str]]:
    """Sample answers of the fine-tuned policy, mix them with the world's own, and let labelers rank
    them."""
    policy, tokenizer = load_gpt(folder / "sft")
    questions = world_questions(changes.get("prompts", RANKED), seed=100 * seed + 50)
    answers: list[list[str]] = []
    began = time.monotonic()
    for first in range(0, len(questions), PROMPTS_AT_ONCE):
        if stop.is_set():
            return
        if time.monotonic() - began > changes.get("seconds", math.inf):
            break
        queries = [Query(q.messages) for q in questions[first : first + PROMPTS_AT_ONCE]]
        rollout = roll_out(policy, tokenizer, queries, 32, n=SAMPLED, seed=first)
        groups = (rollout.answers[i : i + SAMPLED] for i in range(0, len(rollout), SAMPLED))
        answers += [[text for text in group if text.strip()] for group in groups]
        yield first / len(questions), f"{first} of {len(questions)} prompts"
    comparisons = world_comparisons(questions[: len(answers)], seed, answers)
    write_comparisons(folder / "comparisons.jsonl", comparisons)
    log(f"{sum(len(c.pairs()) for c in comparisons):,} pairs of answers ranked")


def _report(
    folder: Path, name: str, stop: threading.Event, log: Log, changes: dict[str, Any], seed: int
) -> Iterator[tuple[float, str]]:
    questions = exam(changes.get("questions", EXAM), seed=100 * seed)
    base, tokenizer = load_gpt(folder / "base")
    sft, chat_tokenizer = load_gpt(folder / "sft")
    ppo, _ = load_gpt(folder / "ppo")
    yield 0.0, "base"
    sheets = [text_sheet("base", base, tokenizer, questions)]
    sheets.append(text_sheet("base, prompted", base, tokenizer, questions, SHOTS))
    for share, run, model, reference in ((0.3, "sft", sft, None), (0.6, "ppo", ppo, sft)):
        if stop.is_set():
            return
        yield share, run
        sheets.append(answer_sheet(run, model, chat_tokenizer, questions, reference))
    write_report(folder, questions, sheets)
    rights = {sheet.name: headlines(questions, sheet)["right"].rate for sheet in sheets}
    log("right answers: " + ", ".join(f"{name} {rate:.0%}" for name, rate in rights.items()))
