"""From a recipe with a method of alignment to what the training loop needs."""

import dataclasses
from pathlib import Path

import torch

from seq2chat.alignment.data import load_policy
from seq2chat.alignment.dpo import make_dpo
from seq2chat.alignment.grpo import make_grpo
from seq2chat.alignment.lora import add_lora, merged
from seq2chat.alignment.ppo import make_ppo
from seq2chat.alignment.reward import load_scorer, make_reward
from seq2chat.alignment.sft import make_sft
from seq2chat.config import Recipe, check
from seq2chat.device import seed_everything
from seq2chat.models.reward import RewardModel
from seq2chat.text.conversations import TRAINING
from seq2chat.text.tokenizer import Tokenizer
from seq2chat.text.wordpiece import WordPiece
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.job import Prepared
from seq2chat.training.task import Say


def prepare_alignment(
    recipe: Recipe, tokenizer: Tokenizer | WordPiece | None, device: torch.device, say: Say, doing: Say
) -> Prepared:
    """Return the model in `align.start` and the task of the recipe's method; the tokenizer is that model's own.

    Raises UserError for a start that is no language model, examples that can't be read, and a reward that can't judge.
    """
    align = recipe.align
    check(recipe.tokenizer.path == "", "tokenizer.path is for pretraining; an aligned model keeps its own tokenizer.")
    check(
        align.method not in ("ppo", "grpo") or recipe.train.accumulation == 1,
        f"train.accumulation is for other methods; {align.method} takes align.episodes answers in minibatches of "
        "train.batch_size.",
    )
    doing("loading the model to start from")
    policy, own = load_policy(align.start)
    policy.to(device)
    seed_everything(recipe.train.seed)
    scorer = None
    if align.method in ("ppo", "grpo") or align.reward:
        scorer = load_scorer(align.reward, own, device, align.examples or TRAINING, recipe.train.seed)
    if align.lora_rank:
        check(align.method != "reward", "align.lora_rank is for policies; a reward model trains all its weights.")
        add_lora(policy, align.lora_rank)
    doing("reading the examples")
    match align.method:
        case "reward":
            recipe, model, task = make_reward(recipe, policy, own, say)
            return Prepared(recipe, model, own, task)
        case "sft":
            recipe, task = make_sft(recipe, policy, own, scorer, say, doing)
        case "dpo":
            recipe, task = make_dpo(recipe, policy, own, say)
        case "grpo":
            assert scorer is not None
            recipe, task = make_grpo(recipe, policy, own, scorer, say)
        case "ppo":
            assert scorer is not None
            judge, _ = load_checkpoint(Path(align.reward)) if Path(align.reward).is_dir() else (None, None)
            assert judge is None or isinstance(judge, RewardModel)
            recipe, task = make_ppo(recipe, policy, own, scorer, judge, say, doing)
        case _:
            raise AssertionError(align.method)
    if align.lora_rank:
        publish = task.publish or (lambda: policy)
        task = dataclasses.replace(task, publish=lambda: merged(publish()), modules=task.modules or {"policy": policy})
    return Prepared(recipe, policy, own, task)
