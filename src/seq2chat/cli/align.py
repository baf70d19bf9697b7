"""`seq2chat sft`, `reward`, `dpo`, `ppo`, `grpo`: align a language model with human preferences."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from seq2chat.cli.options import given, recipe_flags
from seq2chat.cli.train import LoggedConsole, Watch, continue_run, free_folder, train_recipe
from seq2chat.config import Recipe, check, read_toml, recipe_names, recipe_tables

Source = Annotated[
    str,
    Parameter(
        help="recipe or .toml [default: the method's, or sft-lora or dpo-lora for large models]",
        show_default=False,
    ),
]
ALL = Parameter(name="*")

LORA_PARAMETERS = 30_000_000  # from this size on, adapters are trained by default

SFTFlags = recipe_flags("sft")
RewardFlags = recipe_flags("reward")
DPOFlags = recipe_flags("dpo")
PPOFlags = recipe_flags("ppo")
GRPOFlags = recipe_flags("grpo")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of every method that have a short flag."""

    data: Annotated[
        str | None,
        Parameter(
            help="file of conversations (sft), ranked answers (reward, dpo), prompts (ppo, grpo), "
            "or hh-rlhf, gsm8k or world [default: world]"
        ),
    ] = None
    start: Annotated[
        str | None,
        Parameter(
            help="run to start from, model folder (GPT-2, Llama, Qwen, Mistral), .gguf file, or "
            "published model such as smollm2"
        ),
    ] = None
    budget: Annotated[
        str | None, Parameter(help='length: "10m", "2h", "500 steps", "3 epochs"')
    ] = None
    device: Annotated[
        str | None, Parameter(help="auto, cpu, cuda, cuda:1 or mps [default: auto]")
    ] = None
    out: Annotated[Path | None, Parameter(help="run folder [default: runs/RECIPE]")] = None
    resume: Annotated[bool, Parameter(help="continue the run in --out", negative="")] = False
    watch: Watch = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RewardOptions(Options):
    """The same for methods that use a reward."""

    reward: Annotated[
        str | None,
        Parameter(help="run of a reward model, FILE.py:FUNCTION, or oracle (built-in world only)"),
    ] = None


def sft(
    recipe: Source = "",
    *,
    options: RewardOptions = RewardOptions(),
    flags: Annotated[SFTFlags, ALL] = SFTFlags(),  # pyrefly: ignore
) -> None:
    """Align with supervised fine-tuning (SFT) on demonstrations.

    With --reward, the checkpoint with the highest reward is kept.
    """
    _align("sft", recipe, options, flags)


def reward(
    recipe: Source = "",
    *,
    options: Options = Options(),
    flags: Annotated[RewardFlags, ALL] = RewardFlags(),  # pyrefly: ignore
) -> None:
    """Train a reward model on ranked answers."""
    _align("reward", recipe, options, flags)


def dpo(
    recipe: Source = "",
    *,
    options: Options = Options(),
    flags: Annotated[DPOFlags, ALL] = DPOFlags(),  # pyrefly: ignore
) -> None:
    """Align with DPO on ranked answers, without a reward model."""
    _align("dpo", recipe, options, flags)


def ppo(
    recipe: Source = "",
    *,
    options: RewardOptions = RewardOptions(),
    flags: Annotated[PPOFlags, ALL] = PPOFlags(),  # pyrefly: ignore
) -> None:
    """Align with PPO to maximize the score of a reward model.

    --align.ptx adds the pretraining loss, which preserves earlier skills (PPO-ptx).
    """
    _align("ppo", recipe, options, flags)


def grpo(
    recipe: Source = "",
    *,
    options: RewardOptions = RewardOptions(),
    flags: Annotated[GRPOFlags, ALL] = GRPOFlags(),  # pyrefly: ignore
) -> None:
    """Align with GRPO, which compares the rewards of answers to the same prompt."""
    _align("grpo", recipe, options, flags)


def _align(method: str, source: str, options: Options, flags: Any) -> None:
    """Start or resume a run of `method`. Short flags override the recipe like all others."""
    from seq2chat.alignment.policy import find_start
    from seq2chat.models.folder import load_config, n_parameters

    began = time.monotonic()
    changes = given(flags)
    short = {
        ("train", "budget"): options.budget,
        ("train", "device"): options.device,
        ("data", "corpus"): options.data,
        ("align", "start"): options.start,
        ("align", "reward"): getattr(options, "reward", None),
    }
    for (table, key), value in short.items():
        if value is not None:
            changes.setdefault(table, {})[key] = value
    if options.resume:
        _resume(method, source, options, changes)
        return
    requested = changes.setdefault("align", {}).setdefault("method", method)
    check(
        requested == method,
        f"seq2chat {method} has the method {method}; --align.method {requested} contradicts it.",
    )
    console = LoggedConsole()
    start = changes["align"].get("start", "")
    wants_all = changes["align"].get("lora_rank") == 0
    if not source and start and not wants_all and f"{method}-lora" in recipe_names():
        n = n_parameters(load_config(find_start(start)))
        if n >= LORA_PARAMETERS:
            source = f"{method}-lora"
            console.log(
                f"recipe {source}, as {start} has {n / 1e6:,.0f}M parameters (to train all of them:"
                " --align.lora-rank 0)"
            )
    is_file = source.endswith(".toml")
    tables = read_toml(Path(source)) if is_file else _shipped(source or method)
    its_method = tables.get("align", {}).get("method", method)
    check(
        its_method == method,
        f"{source} is a recipe of {its_method}; write seq2chat {its_method} {source}.",
    )
    if "corpus" in changes.get("data", {}):
        tables.get("align", {}).pop("examples", None)  # the number suits the recipe's own data
    recipe = Recipe.from_tables(tables, changes, source=source if is_file else "the flags")
    assert recipe.align is not None
    find_start(recipe.align.start)  # before anything is measured
    folder = options.out or free_folder(Path(source or method).stem, console)
    train_recipe(recipe, folder, console, began, options.watch)


def _shipped(name: str) -> dict[str, Any]:
    names = recipe_names()
    check(
        name in names or not Path(name).exists(),
        f"{name} is not a recipe; name data with --data {name}, or a run with --start {name}.",
    )
    check(name in names, f"There is no recipe {name}; there are {', '.join(names)}.")
    return recipe_tables(name)


def _resume(method: str, source: str, options: Options, changes: dict[str, Any]) -> None:
    from seq2chat.training.run_folder import open_run

    out = options.out
    check(out is not None, "No run to resume: name one with --out.")
    check(
        source == "",
        f"A resumed run keeps its own recipe; leave {source} out, or leave --resume out.",
    )
    assert out is not None
    its_method = open_run(out).recipe().method
    check(
        its_method == method,
        f"{out} is a run of {its_method or 'pretraining'}; resume it with seq2chat "
        f"{its_method or 'train'}.",
    )
    continue_run(out, changes, options.watch)
