"""The training that a plan is made for: a GPT, its batch and its number of tokens."""

from dataclasses import dataclass, replace
from pathlib import Path

from seq2chat.config import (
    GPT3,
    Budget,
    GPTConfig,
    Recipe,
    UserError,
    check,
    recipe_names,
    recipe_tables,
)
from seq2chat.config.toml import did_you_mean
from seq2chat.scale.stage import n_parameters

GPT3_TOKENS = 300e9  # Brown et al. 2020, table 2.1
# Sequences of 2,048 tokens per step. Brown et al. 2020, table 2.1, round them to 0.5, 1, 2 and 3.2
# million tokens. These are the next numbers that many ranks can divide.
GPT3_BATCH = {
    "gpt3-small": 256,
    "gpt3-medium": 256,
    "gpt3-large": 256,
    "gpt3-xl": 512,
    "gpt3-2.7b": 512,
    "gpt3-6.7b": 1024,
    "gpt3-13b": 1024,
    "gpt3-175b": 1536,
}
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022 (Chinchilla), table 3


@dataclass(frozen=True)
class Workload:
    """A training run without its machine.

    `batch` is in sequences per optimizer step, all ranks together, and `tokens` are those of the
    whole run. `tokens_from` names the source of that number. `matrices` is the optimizer of the
    blocks' matrices, which decides the size of its state.
    """

    name: str
    model: GPTConfig
    batch: int
    tokens: float
    tokens_from: str
    matrices: str = "adamw"
    micro_batch: int | None = None
    checkpointing: bool | None = None

    @property
    def batch_tokens(self) -> int:
        return self.batch * self.model.context

    @property
    def steps(self) -> float:
        return self.tokens / self.batch_tokens


def find_workload(source: str, batch: int | None = None, tokens: str | None = None) -> Workload:
    """Return the workload of a GPT-3 preset, a shipped recipe, a .toml file or a run folder.

    `batch` and `tokens`, for example "300B", replace its own. Raises UserError for an unknown name
    or a model that is no GPT.
    """
    workload = _preset(source) if source in GPT3 else _recipe(source)
    if batch is not None:
        check(batch > 0, f"--batch is {batch}; write a positive number of sequences.")
        workload = replace(workload, batch=batch)
    if tokens is not None:
        workload = replace(workload, tokens=_parse_tokens(tokens), tokens_from="--tokens")
    return workload


def _preset(name: str) -> Workload:
    return Workload(name, GPT3[name], GPT3_BATCH[name], GPT3_TOKENS, "the paper")


def _recipe(source: str) -> Workload:
    if source in recipe_names():
        recipe = Recipe.from_tables(recipe_tables(source), source=source)
    else:
        path = Path(source)
        path = path / "config.toml" if (path / "config.toml").exists() else path
        if not path.exists():
            hint = did_you_mean(source, [*GPT3, *recipe_names()])
            raise UserError(
                f"There is no preset, recipe or file {source}.{hint} Presets are {', '.join(GPT3)}."
            )
        recipe = Recipe.load(path)
    model = recipe.model
    if not isinstance(model, GPTConfig) or recipe.align is not None:
        kind = f"recipe of {recipe.method}" if recipe.align is not None else model.family
        raise UserError(f"{source} is a {kind}; plans are for the pretraining of a GPT.")
    model = replace(model, vocab_size=model.vocab_size or recipe.tokenizer.vocab_size)
    batch = recipe.train.batch_size * recipe.train.accumulation
    tokens, tokens_from = _budget_tokens(recipe, model, batch)
    return Workload(
        source,
        model,
        batch,
        tokens,
        tokens_from,
        recipe.optim.matrices,
        recipe.train.batch_size,
        recipe.train.gradient_checkpointing,
    )


def _budget_tokens(recipe: Recipe, model: GPTConfig, batch: int) -> tuple[float, str]:
    budget = Budget.parse(recipe.train.budget)
    if budget.unit == "tokens":
        return budget.amount, "train.budget"
    if budget.unit == "steps":
        return budget.amount * batch * model.context, "train.budget"
    # A time, or epochs of a text that is not read here.
    return (
        float(TOKENS_PER_PARAMETER * n_parameters(model)),
        f"{TOKENS_PER_PARAMETER} per parameter, as train.budget is {recipe.train.budget!r}",
    )


def _parse_tokens(text: str) -> float:
    try:
        return Budget.parse(f"{text} tokens").amount
    except UserError as error:
        raise UserError(f'--tokens is {text!r}; write a number, for example "300B".') from error
