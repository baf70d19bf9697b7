"""From a recipe to a task: of an alignment method, or of pretraining."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from seq2chat.alignment.dpo import DPO
from seq2chat.alignment.grpo import GRPO
from seq2chat.alignment.policy import load_policy, set_dropout, with_shape
from seq2chat.alignment.ppo import PPO
from seq2chat.alignment.reward import RewardModeling
from seq2chat.alignment.sft import SFT
from seq2chat.config import (
    AlignConfig,
    Budget,
    Recipe,
    check,
)
from seq2chat.config.align import field_defaults, lora_alpha
from seq2chat.device import pick_precision, seed_everything
from seq2chat.log import Log
from seq2chat.models.gpt import GPT
from seq2chat.models.lora import add_lora
from seq2chat.text.chat import end_tokens, own_template
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.tokenizers import Tokenizer
from seq2chat.training.checkpoint import find_checkpoint
from seq2chat.training.setup import prepare_training
from seq2chat.training.types import Task

TASKS: dict[str, Callable[[Recipe, GPT, TextTokenizer, Log, Log], Task]] = {
    "sft": SFT,
    "reward": RewardModeling,
    "dpo": DPO,
    "ppo": PPO,
    "grpo": GRPO,
}
"""The task of each method, made of the recipe, the starting model and its tokenizer."""


def prepare(
    recipe: Recipe, tokenizer: Tokenizer | None, device: torch.device, log: Log, status: Log
) -> Task:
    """Return the task of a recipe of any kind. Errors are those of `prepare_training` and
    `prepare_alignment`."""
    prepare_task = prepare_training if recipe.align is None else prepare_alignment
    return prepare_task(recipe, tokenizer, device, log, status)


def prepare_alignment(
    recipe: Recipe, tokenizer: Tokenizer | None, device: torch.device, log: Log, status: Log
) -> Task:
    """Return the task of the recipe's method on the model in `align.start`, with its own tokenizer.

    Raises UserError if the start is not a language model, or if examples or reward can't be used.
    """
    align = recipe.align
    assert align is not None
    _check_options(recipe, align)
    status("loading the starting model")
    policy, chat_tokenizer = load_policy(align.start)
    set_dropout(policy.to(device), recipe.model.dropout)
    # Before any copy is made: a reference that computes in another precision is another policy.
    policy.compute_dtype = pick_precision(recipe.train.precision, device).dtype
    policy.gradient_checkpointing = recipe.train.gradient_checkpointing
    seed_everything(recipe.train.seed)
    if recipe.method != "reward":  # which trains a model of its own shape
        recipe = with_shape(recipe, policy.config)
    if rank := getattr(align, "lora_rank", 0):
        # The control tokens of another model's template have been trained.
        is_ours = own_template(chat_tokenizer) is None
        add_lora(
            policy,
            rank,
            lora_alpha(align),
            sorted(chat_tokenizer.control.values()) if is_ours else (),
        )
    end_tokens(chat_tokenizer)  # a template without an end of answers is refused now
    status("reading examples and reward")
    task = TASKS[align.method](recipe, policy, chat_tokenizer, log, status)
    task.origin = weights_fingerprint(align) + task.origin
    return task


def _check_options(recipe: Recipe, align: AlignConfig) -> None:
    """Raise UserError for options that alignment does not use."""
    method = align.method
    check(
        recipe.tokenizer.path == "",
        "tokenizer.path is for pretraining; an aligned model keeps its own tokenizer.",
    )
    check(
        recipe.train.accumulation == 1 or not hasattr(align, "episodes"),
        f"train.accumulation is for other methods; {method} takes align.episodes answers in "
        "minibatches of train.batch_size.",
    )
    check(
        method == "sft" or Budget.parse(recipe.train.budget).unit != "tokens",
        f"train.budget is {recipe.train.budget}, but {method} counts no tokens; write steps, epochs"
        " or a time.",
    )
    unused = (("train", "prompt"), ("tokenizer", "vocab_size"), ("data", "document_mask"))
    for table, name in unused:
        section = getattr(recipe, table)
        check(
            getattr(section, name) == field_defaults(type(section))[name],
            f"{table}.{name} is for pretraining; {method} has no use for it.",
        )


def weights_fingerprint(align: AlignConfig) -> str:
    """Return a hash of the weights of the starting model and of the reward model."""
    digest = hashlib.sha256()
    reward = getattr(align, "reward", "")
    for source in (align.start, reward if Path(reward).is_dir() else ""):
        if source:
            for file in sorted(find_checkpoint(Path(source)).glob("*.safetensors")):
                with file.open("rb") as weights:
                    digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()
