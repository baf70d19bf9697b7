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

from seq2chat.alignment.exam import SHOTS, answer_sheet, headlines, text_sheet
from seq2chat.alignment.report import write_report
from seq2chat.alignment.rollout import roll_out
from seq2chat.alignment.setup import prepare
from seq2chat.alignment.subject import (
    DEMONSTRATIONS,
    Subject,
    Tables,
    a_text,
    check_same,
    record,
    the_world,
)
from seq2chat.config import Recipe, check, recipe_tables
from seq2chat.device import pick_device, pick_precision
from seq2chat.inference.load import load_gpt
from seq2chat.log import Log
from seq2chat.text.conversations import Query, world_comparisons, write_comparisons
from seq2chat.training.autosize import step_seconds
from seq2chat.training.loop import train
from seq2chat.training.run_folder import RunFolder, finished_stages, open_run
from seq2chat.training.setup import resume_job, start_job
from seq2chat.training.types import Sampled, Step, Validated

SAMPLED = 4  # answers of the policy per prompt, for labelers to rank
RANKED = 5000  # prompts whose answers are ranked
PROMPTS_AT_ONCE = 64
EXAM = 500  # held-out questions of the report
EXAMPLES = 1000  # training questions that prompts of the base model are taken from
MIN_LENGTH = 50  # prompts or questions of a shortened stage: 2 questions per family


@dataclass(frozen=True)
class Stage:
    """One stage: the name of its folder, its title, and its share of the time."""

    name: str
    title: str
    share: float


STAGES = (
    Stage("base", "pretraining a GPT", 0.54),
    Stage("sft", "fine-tuning on demonstrations", 0.16),
    Stage("comparisons", "ranking answers by labelers", 0.05),
    Stage("reward", "training a reward model on the rankings", 0.08),
    Stage("ppo", "reinforcement learning against the reward model", 0.13),
    Stage("report", "comparing base, sft and ppo", 0.04),
)


@dataclass(frozen=True)
class StageProgress:
    """The completed share of the pipeline and of the stage, and the latest event as text."""

    stage: Stage
    whole: float
    share: float
    text: str


TRAINED = ("base", "sft", "reward", "ppo")
FULL_STEPS = 3500  # of pretraining, by its recipe
FULL_MEGABYTES = 20  # of pretraining text, by its recipe
MOST_MEGABYTES = 500
RL_STEPS, RL_EPISODES, RL_BATCH = 45, 128, 32  # of reinforcement learning, by its recipe
READING_SCALE = 0.2  # of the full lengths; with less, the base model does not learn to read
RESUMED_SCALE = 0.03  # the same for the stages after it; with less, there is no time for steps
SMALL_SCALE = 0.3  # of the full lengths; with less, a smaller model learns more
SMALL = {"model.d_model": 128, "model.n_head": 4}
PROBES = 4  # measurements before the machine is called slow
PAUSE = 2.0  # seconds between them
LEAST_STEPS = 5  # of each stage: a short demo shows all stages rather than none
RL_MIN_STEPS = 26  # kept when stages are shortened, so that there is a schedule


@dataclass(frozen=True)
class Work:
    """The work on one stage: where, about what, and with which options.

    `fitted` are the options that fit the stage into its time, and `changes` those of the caller.
    """

    folder: Path
    stage: str
    subject: Subject
    seed: int
    fitted: dict[str, Any]
    changes: dict[str, Any]
    stop: threading.Event
    log: Log

    @property
    def options(self) -> dict[str, Any]:
        return self.fitted | self.changes


class Pace:
    """Fits the stages of the pipeline in `folder` into `seconds`, of which `used` have passed.

    Training stages get their share of the remaining time, and the others their share of prompts and
    questions. On a machine that has little time for the recipes' model, the model is smaller.
    """

    def __init__(self, folder: Path, seconds: float, used: float, stages: Sequence[Stage]) -> None:
        self.ends = time.monotonic() + seconds - used
        self.stages = list(stages)
        self.folder = folder
        self.shape: dict[str, Any] = {}
        is_new = stages[0].name == "base" and not RunFolder(folder / "base").list_checkpoints()
        scale = READING_SCALE if is_new else RESUMED_SCALE
        self.whole = measured_seconds(folder)
        if not self.whole:
            self._measure({}, SMALL_SCALE if is_new else scale)
        if is_new and self.scale() < SMALL_SCALE:
            self.shape = SMALL
            self._measure(SMALL, scale)
        least = math.ceil(used + 1.1 * scale * self.whole * self.share())
        goal = "for a model that reads" if is_new else f"after the {used:.0f}s already used"
        to_begin = [
            s for s in stages if s.name in TRAINED and not _progress(folder / s.name)["step"]
        ]
        check(
            not to_begin or self.scale() >= scale,
            f"The budget of {seconds:.0f}s is too short {goal} on this machine; write at least "
            f"--budget {least}s.",
        )

    def _measure(self, shape: dict[str, Any], scale: float) -> None:
        """Measure the pace of a model.

        If it is too slow for `scale`, measure again later: other programs may have been busy.
        """
        self.whole = _probe(shape)
        for _ in range(PROBES - 1):
            if self.scale() >= scale:
                return
            time.sleep(PAUSE)
            self.whole = min(self.whole, _probe(shape))

    def share(self) -> float:
        """Return the remaining share of the pipeline."""
        return sum(stage.share for stage in self.stages)

    def scale(self) -> float:
        """Return the multiple of their full lengths that the remaining stages have time for."""
        return max(0.0, self.ends - time.monotonic()) / (self.whole * self.share())

    def begin(self, stage: Stage) -> dict[str, Any]:
        """Return the options that fit the next stage into its time."""
        self.whole = measured_seconds(self.folder) or self.whole
        scale = self.scale()
        used = _progress(self.folder / stage.name)["seconds"]
        seconds = (self.ends - time.monotonic() + used) * stage.share / self.share()
        self.stages.remove(stage)
        timed = {"train.budget": f"{max(1, round(seconds))}s"}
        text = f"world:{min(MOST_MEGABYTES, math.ceil(FULL_MEGABYTES * max(1.0, scale)))}MB"
        match stage.name:
            case "base":
                return {**timed, **self.shape, "data.corpus": text}
            case "sft":
                return {**timed, "align.examples": round(DEMONSTRATIONS * max(1.0, scale))}
            case "comparisons":
                return {"prompts": max(MIN_LENGTH, round(scale * RANKED)), "seconds": seconds}
            case "ppo":
                # Fewer answers per step, in whole minibatches, rather than too few steps.
                batches = int(scale * RL_STEPS * RL_EPISODES / (RL_MIN_STEPS * RL_BATCH))
                return {**timed, "align.episodes": min(RL_EPISODES, RL_BATCH * max(1, batches))}
            case "report":
                return {"questions": min(EXAM, max(MIN_LENGTH, round(scale * EXAM)))}
        return timed


def measured_seconds(folder: Path) -> float:
    """Return the seconds that the whole pipeline of full length takes at the pace of its
    pretraining, or 0 before that is finished."""
    progress = _progress(folder / "base")
    if "base" not in finished_stages(folder) or not progress["step"]:
        return 0.0
    return progress["seconds"] / progress["step"] * FULL_STEPS / STAGES[0].share


def _progress(run: Path) -> dict[str, Any]:
    """Return the progress of the newest checkpoint of a run, or zeros without one."""
    checkpoints = RunFolder(run).list_checkpoints()
    if not checkpoints:
        return {"seconds": 0.0, "step": 0}
    return json.loads((checkpoints[-1] / "trainer" / "progress.json").read_text(encoding="utf-8"))


def _probe(shape: dict[str, Any]) -> float:
    """Return the seconds of the whole pipeline by a few training steps of a model."""
    recipe = Recipe.from_tables(recipe_tables("demo-base"), _nested(shape))
    device = pick_device()
    seconds = step_seconds(recipe, device, pick_precision(recipe.train.precision, device))
    return seconds * FULL_STEPS / STAGES[0].share


def run_pipeline(
    folder: Path,
    stop: threading.Event,
    log: Log,
    changes: Tables | None = None,
    seed: int = 1,
    seconds: float = math.inf,
    text: Path | None = None,
) -> Iterator[StageProgress]:
    """Run the remaining stages of the pipeline in `folder` until `stop` is set, and yield the
    progress.

    The subject is the world, or the `text` in a file. The stages are fitted into `seconds`, see
    `Pace`. `changes` override options of the recipes, for example `{"base": {"train.budget":
    "1m"}}`. Raises UserError if the time is too short, or if the folder is about something else.
    """
    finished = finished_stages(folder)
    remaining = [stage for stage in STAGES if stage.name not in finished]
    if not remaining and (text is None or not text.exists()):
        return
    began = time.monotonic()
    subject = the_world() if text is None else a_text(text, folder, log)
    check_same(folder, subject, seed)
    if not remaining:
        return
    pace = None
    if seconds < math.inf:
        used = sum(finished.values()) + _progress(folder / remaining[0].name)["seconds"]
        pace = Pace(folder, seconds, used + time.monotonic() - began, remaining)
        if pace.shape:
            log("this machine is slow for the demo's model in that time, so it gets a smaller one")
    record(folder, subject, seed)
    subject.prepare()
    for stage in remaining:
        before = sum(s.share for s in STAGES[: STAGES.index(stage)])
        began = time.monotonic() - _progress(folder / stage.name)["seconds"]
        fitted = {} if pace is None else pace.begin(stage)
        wanted = (changes or {}).get(stage.name, {})
        work = Work(folder, stage.name, subject, seed, fitted, wanted, stop, log)
        run = {"comparisons": _compare, "report": _report}.get(stage.name, _train)
        for share, line in run(work):
            yield StageProgress(stage, before + share * stage.share, share, line)
        if stop.is_set():
            return
        finished[stage.name] = round(time.monotonic() - began, 1)
        temporary = folder / "stages.tmp"
        temporary.write_text(json.dumps(finished, indent=1) + "\n", encoding="utf-8")
        temporary.replace(folder / "stages.json")


def _stage_tables(work: Work) -> Tables:
    """Return the options that the pipeline adds to the recipe of a stage: the paths of its model,
    data and reward model.

    Every stage has its own seed, and therefore other questions of the world.
    """
    folder = work.folder
    name = work.stage
    number = [stage.name for stage in STAGES].index(name)
    tables: Tables = {"train": {"seed": 100 * work.seed + number}}
    start = {"sft": "base", "reward": "sft", "ppo": "sft"}.get(name)
    if start:
        tables["align"] = {"start": str(folder / start)}
    if name in ("sft", "ppo"):
        mix = work.subject.tables("base").get("data", {}).get("corpus")
        tables["align"]["ptx_corpus"] = mix or open_run(folder / "base").recipe().data.corpus
    if name == "reward":
        tables["data"] = {"corpus": str(folder / "comparisons.jsonl")}
    if name == "ppo":
        tables["align"] |= {"reward": str(folder / "reward")}
    return tables


def _train(work: Work) -> Iterator[tuple[float, str]]:
    run = work.folder / work.stage
    yield 0.0, "preparing"
    if not RunFolder(run).list_checkpoints():
        # A stage without a checkpoint restarts, with the time that is left now.
        RunFolder(run).discard()
    if (run / "config.toml").exists():
        limits = {k: v for k, v in work.options.items() if k == "train.budget"}
        if RunFolder(run).is_validated(_progress(run)["step"]):
            limits = {}  # it may be finished
        job = resume_job(run, _nested(limits), work.log, prepare=prepare)
    else:
        recipe = Recipe.from_tables(
            recipe_tables(f"demo-{work.stage}"),
            _nested(work.fitted),
            work.subject.tables(work.stage),
            _stage_tables(work),
            _nested(work.changes),
        )
        job = start_job(recipe, run, work.log, prepare=prepare)
    job.least_steps = LEAST_STEPS
    for event in train(job, work.stop):
        match event:
            case Step():
                values = job.task.display(event.metrics) or [f"loss {event.loss:.3f}"]
                yield event.share, " · ".join([f"step {event.step}", *values])
            case Validated():
                values = dict(event.metrics)
                if event.evaluation is not None:
                    values[f"nats per {job.task.unit}"] = event.evaluation.loss
                line = " · ".join(f"{key} {value:.3f}" for key, value in values.items())
                work.log(f"{work.stage}, step {event.step}: {line}")
            case Sampled():
                work.log(event.text.strip())


def _nested(flat: dict[str, Any]) -> Tables:
    tables: Tables = {}
    for key, value in flat.items():
        table, _, name = key.partition(".")
        tables.setdefault(table, {})[name] = value
    return tables


def _compare(work: Work) -> Iterator[tuple[float, str]]:
    """Sample answers of the fine-tuned policy, mix them with the world's own, and let labelers rank
    them.

    Prompts that the time is too short to sample answers for get the world's own only. They cost
    next to nothing, and without enough of them, a reward model prefers safe answers such as "I do
    not know" to right ones (docs/log.md).
    """
    policy, tokenizer = load_gpt(work.folder / "sft")
    questions = work.subject.training(work.options.get("prompts", RANKED), 100 * work.seed + 50)
    answers: list[list[str]] = []
    began = time.monotonic()
    for first in range(0, len(questions), PROMPTS_AT_ONCE):
        if work.stop.is_set():
            return
        if answers and time.monotonic() - began > work.options.get("seconds", math.inf):
            break
        queries = [Query(q.messages) for q in questions[first : first + PROMPTS_AT_ONCE]]
        rollout = roll_out(policy, tokenizer, queries, 32, n=SAMPLED, seed=first)
        groups = (rollout.answers[i : i + SAMPLED] for i in range(0, len(rollout), SAMPLED))
        answers += [[text for text in group if text.strip()] for group in groups]
        yield first / len(questions), f"{first} of {len(questions)} prompts"
    n_sampled = len(answers)
    answers += [[] for _ in questions[n_sampled:]]
    comparisons = world_comparisons(questions, work.seed, answers)
    write_comparisons(work.folder / "comparisons.jsonl", comparisons)
    n_pairs = sum(len(c.pairs()) for c in comparisons)
    work.log(
        f"{n_pairs:,} pairs of answers to {len(questions):,} prompts ranked, with the model's own "
        f"for {n_sampled:,}"
    )


def _report(work: Work) -> Iterator[tuple[float, str]]:
    folder = work.folder
    questions = work.subject.exam(work.options.get("questions", EXAM), 100 * work.seed)
    examples = work.subject.training(EXAMPLES, 100 * work.seed)
    base, tokenizer = load_gpt(folder / "base")
    sft, chat_tokenizer = load_gpt(folder / "sft")
    ppo, _ = load_gpt(folder / "ppo")
    yield 0.0, "base"
    sheets = [text_sheet("base", base, tokenizer, questions)]
    sheets.append(text_sheet("base, prompted", base, tokenizer, questions, examples, SHOTS))
    for share, run, model, reference in ((0.3, "sft", sft, None), (0.6, "ppo", ppo, sft)):
        if work.stop.is_set():
            return
        yield share, run
        sheets.append(answer_sheet(run, model, chat_tokenizer, questions, reference))
    write_report(folder, questions, sheets)
    rights = {sheet.name: headlines(questions, sheet)["right"].rate for sheet in sheets}
    work.log("right answers: " + ", ".join(f"{name} {rate:.0%}" for name, rate in rights.items()))
