"""`seq2chat sft`, `reward`, `dpo`, `ppo`, `grpo`: align a language model with human preferences."""

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from seq2chat.cli.options import RecipeFlags, given
from seq2chat.cli.train import Said, begin, continue_run, free_folder
from seq2chat.config import Recipe, check, read_toml, recipe_names, recipe_tables

Source = Annotated[
    str,
    Parameter(help="recipe or .toml [default: the method's recipe]", show_default=False),
]
Data = Annotated[
    str | None,
    Parameter(help="file of conversations, hh-rlhf, gsm8k, or the built-in world [default: world]"),
]
Start = Annotated[
    str | None, Parameter(help="run or model folder to start from, also of a GPT-2 or a Qwen3")
]
Judge = Annotated[
    str | None,
    Parameter(
        name="--reward", help="run of a reward model, FILE.py:FUNCTION, or oracle, for the world"
    ),
]
Budget = Annotated[str | None, Parameter(help='length: "10m", "2h", "500 steps", "3 epochs"')]
Out = Annotated[Path | None, Parameter(help="run folder [default: runs/METHOD]")]
Resume = Annotated[bool, Parameter(help="continue the run in --out", negative="")]
Flags = Annotated[RecipeFlags, Parameter(name="*")]
NONE = RecipeFlags()


def sft(
    recipe: Source = "",
    *,
    data: Data = None,
    start: Start = None,
    budget: Budget = None,
    out: Out = None,
    reward: Judge = None,
    resume: Resume = False,
    flags: Flags = NONE,
) -> None:
    """Align with supervised fine-tuning (SFT) on demonstrations.

    With --reward, the checkpoint with the highest reward is kept.
    """
    _align("sft", recipe, data, start, budget, out, resume, flags, reward)


def reward(
    recipe: Source = "",
    *,
    data: Data = None,
    start: Start = None,
    budget: Budget = None,
    out: Out = None,
    resume: Resume = False,
    flags: Flags = NONE,
) -> None:
    """Train a reward model on ranked answers."""
    _align("reward", recipe, data, start, budget, out, resume, flags)


def dpo(
    recipe: Source = "",
    *,
    data: Data = None,
    start: Start = None,
    budget: Budget = None,
    out: Out = None,
    resume: Resume = False,
    flags: Flags = NONE,
) -> None:
    """Align with DPO on ranked answers, without a reward model."""
    _align("dpo", recipe, data, start, budget, out, resume, flags)


def ppo(
    recipe: Source = "",
    *,
    data: Data = None,
    start: Start = None,
    reward: Judge = None,
    budget: Budget = None,
    out: Out = None,
    resume: Resume = False,
    flags: Flags = NONE,
) -> None:
    """Align with PPO to maximize the score of a reward model.

    --align.ptx adds the pretraining loss, which preserves earlier skills (PPO-ptx).
    """
    _align("ppo", recipe, data, start, budget, out, resume, flags, reward)


def grpo(
    recipe: Source = "",
    *,
    data: Data = None,
    start: Start = None,
    reward: Judge = None,
    budget: Budget = None,
    out: Out = None,
    resume: Resume = False,
    flags: Flags = NONE,
) -> None:
    """Align with GRPO, which compares the rewards of answers to the same prompt."""
    _align("grpo", recipe, data, start, budget, out, resume, flags, reward)


def _align(
    method: str,
    source: str,
    data: str | None,
    start: str | None,
    budget: str | None,
    out: Path | None,
    resume: bool,
    flags: RecipeFlags,
    judge: str | None = None,
) -> None:
    """Begin or continue the run; what has a flag of its own is laid over the recipe like every
    other."""
    began = time.monotonic()
    changes = given(flags)
    short = {("train", "budget"): budget, ("data", "corpus"): data, ("align", "start"): start}
    for (table, key), value in (short | {("align", "reward"): judge}).items():
        if value is not None:
            changes.setdefault(table, {})[key] = value
    if resume:
        check(out is not None, "Which run shall go on? Name it with --out.")
        check(
            source == "",
            f"A run goes on by its own recipe; leave {source} out, or leave --resume out.",
        )
        assert out is not None
        from seq2chat.training.run_folder import open_run

        theirs = open_run(out).recipe().method
        check(
            theirs == method,
            f"{out} is a run of {theirs or 'pretraining'}; go on with seq2chat "
            f"{theirs or 'train'}.",
        )
        continue_run(out, changes)
        return
    asked = changes.setdefault("align", {}).setdefault("method", method)
    check(
        asked == method,
        f"seq2chat {method} has the method {method}; --align.method {asked} contradicts it.",
    )
    if source.endswith(".toml"):
        tables = read_toml(Path(source))
    else:
        name = source or method
        check(
            name in recipe_names(),
            f"There is no recipe {name}; there are {', '.join(recipe_names())}.",
        )
        tables = recipe_tables(name)
    theirs = tables.get("align", {}).get("method", method)
    check(theirs == method, f"{source} is a recipe of {theirs}; write seq2chat {theirs} {source}.")
    if "corpus" in changes.get("data", {}):
        tables.get("align", {}).pop("examples", None)  # the number that suits the recipe's own data
    recipe = Recipe.from_tables(
        tables, changes, source=source if source.endswith(".toml") else "the flags"
    )
    begin(recipe, out or free_folder(Path(source or method).stem), Said(), began)
