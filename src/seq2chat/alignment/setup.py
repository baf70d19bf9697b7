"""From a recipe with a method of alignment to what the training loop needs."""

import dataclasses
import hashlib
from pathlib import Path

import torch

from seq2chat.alignment.dpo import make_dpo
from seq2chat.alignment.grpo import make_grpo
from seq2chat.alignment.lora import add_lora, merged
from seq2chat.alignment.policy import load_policy, set_dropout
from seq2chat.alignment.ppo import make_ppo
from seq2chat.alignment.reward import load_scorer, make_reward
from seq2chat.alignment.sft import make_sft
from seq2chat.config import AlignConfig, Budget, Recipe, check
from seq2chat.device import pick_precision, seed_everything
from seq2chat.models.reward import RewardModel
from seq2chat.text.conversations import TRAINING
from seq2chat.text.tokenizers import Tokenizer
from seq2chat.training.checkpoint import find_checkpoint, load_checkpoint
from seq2chat.training.setup import Prepared
from seq2chat.training.tasks import Say


def prepare_alignment(
    recipe: Recipe,
    tokenizer: Tokenizer | None,
    device: torch.device,
    say: Say,
    doing: Say,
) -> Prepared:
    """Return the model in `align.start` and the task of the recipe's method; the tokenizer is that
    model's own.

    Raises UserError for a start that is no language model, examples that can't be read, and a
    reward that can't judge.
    """
    align = recipe.align
    check(
        recipe.tokenizer.path == "",
        "tokenizer.path is for pretraining; an aligned model keeps its own tokenizer.",
    )
    check(
        align.method not in ("ppo", "grpo") or recipe.train.accumulation == 1,
        f"train.accumulation is for other methods; {align.method} takes align.episodes answers in"
        " minibatches of train.batch_size.",
    )
    check(
        align.method == "sft" or Budget.parse(recipe.train.budget).unit != "tokens",
        f"train.budget is {recipe.train.budget}, and {align.method} counts no tokens; write steps, "
        "epochs or a time.",
    )
    for table, name in (
        ("train", "prompt"),
        ("tokenizer", "vocab_size"),
        ("data", "document_mask"),
    ):
        section = getattr(recipe, table)
        default = next(field.default for field in dataclasses.fields(section) if field.name == name)
        check(
            getattr(section, name) == default,
            f"{table}.{name} is for pretraining; {align.method} has no use for it.",
        )
    doing("loading the model to start from")
    policy, own = load_policy(align.start)
    set_dropout(policy.to(device), recipe.model.dropout)
    # Before any copy is made: a reference that multiplies in another number format is another
    # policy.
    policy.compute_dtype = pick_precision(recipe.train.precision, device).dtype
    seed_everything(recipe.train.seed)
    scorer = None
    if align.method in ("ppo", "grpo") or align.reward:
        scorer = load_scorer(
            align.reward, own, device, align.examples or TRAINING, recipe.train.seed
        )
    if align.lora_rank:
        check(
            align.method != "reward",
            "align.lora_rank is for policies; a reward model trains all its weights.",
        )
        add_lora(policy, align.lora_rank, sorted(own.control.values()))
    doing("reading the examples")
    match align.method:
        case "reward":
            recipe, model, task = make_reward(recipe, policy, own, say)
            return Prepared(
                recipe, model, own, dataclasses.replace(task, origin=weights_fingerprint(align))
            )
        case "sft":
            recipe, task = make_sft(recipe, policy, own, scorer, say, doing)
        case "dpo":
            recipe, task = make_dpo(recipe, policy, own, say)
        case "grpo":
            assert scorer is not None
            recipe, task = make_grpo(recipe, policy, own, scorer, say)
        case "ppo":
            assert scorer is not None
            judge, _ = (
                load_checkpoint(Path(align.reward)) if Path(align.reward).is_dir() else (None, None)
            )
            assert judge is None or isinstance(judge, RewardModel)
            recipe, task = make_ppo(recipe, policy, own, scorer, judge, say, doing)
        case _:
            raise AssertionError(align.method)
    if align.lora_rank:
        publish = task.publish or (lambda: policy)
        task = dataclasses.replace(
            task, publish=lambda: merged(publish()), modules=task.modules or {"policy": policy}
        )
    # What the task mixes in, such as text of pretraining, is part of its origin already.
    return Prepared(
        recipe,
        policy,
        own,
        dataclasses.replace(task, origin=weights_fingerprint(align) + task.origin),
    )


def weights_fingerprint(align: AlignConfig) -> str:
    """Return a hash of the weights that a run begins with: the starting model's, and those of a
    judge."""
    digest = hashlib.sha256()
    for source in (align.start, align.reward):
        if source and Path(source).is_dir():
            for file in sorted(find_checkpoint(Path(source)).glob("*.safetensors")):
                with file.open("rb") as weights:
                    digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()
