"""What TRL computes: reads the inputs of a test from one .npz file and writes TRL's outputs to
another.

Run by test_trl_parity.py with an interpreter that has trl==1.12.0, the last release with PPO.
Nothing is downloaded: the trainers are built on a two-layer GPT-2 with random weights and a
tokenizer made here. Their losses are then asked about the logits of the test, through a stand-in
for the model, so that both sides start from the same numbers in float64.
"""

import ast
import inspect
import os
import sys
import tempfile
import textwrap
from collections import defaultdict
from types import SimpleNamespace

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer
from trl.experimental.ppo import ppo_trainer

WORDS = ["<pad>", "<eos>", "a", "b", "c", "d", "e", "f"]
SHAPE = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 32, "vocab_size": len(WORDS)}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}


class Given(torch.nn.Module):
    """Stands in for a model: its logits are given, whatever it is asked."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, **_):
        return SimpleNamespace(logits=self.logits)


def tokenizer():
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="<eos>")


def options(folder):
    return {
        "output_dir": folder,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
    }


def loss_and_gradient(trainer, model, inputs):
    """The trainer's loss of the stand-in, and the gradient at its logits."""
    loss = trainer.compute_loss(model, inputs)
    (gradient,) = torch.autograd.grad(loss, model.logits)
    return loss.detach(), gradient


def statistics(given):
    x, mask = given["x"], given["mask"]
    return {
        "mean": ppo_trainer.masked_mean(x, mask),
        "var": ppo_trainer.masked_var(x, mask),
        "biased_var": ppo_trainer.masked_var(x, mask, unbiased=False),
        "whitened": ppo_trainer.masked_whiten(x, mask),
        "scaled": ppo_trainer.masked_whiten(x, mask, shift_mean=False),
    }


def ranking(given, folder):
    trainer = RewardTrainer(
        model=GPT2ForSequenceClassification(GPT2Config(**SHAPE, **SPECIAL, num_labels=1)),
        args=RewardConfig(**options(folder)),
        processing_class=tokenizer(),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4),
    )
    # TRL has the chosen answers first and then, in the same order, the rejected ones.
    model = Given(given["scores"][:, None])
    inputs = {"attention_mask": torch.ones(len(given["scores"]), 1)}
    loss, gradient = loss_and_gradient(trainer, model, inputs)
    metrics = trainer._metrics["train" if trainer.model.training else "eval"]
    return {
        "loss": loss,
        "gradient": gradient[:, 0],
        "accuracy": metrics["accuracy"][-1],
        "margin": metrics["margin"][-1],
    }


def dpo(given, folder):
    smoothing = float(given["smoothing"])
    trainer = DPOTrainer(
        model=GPT2LMHeadModel(GPT2Config(**SHAPE, **SPECIAL)),
        ref_model=GPT2LMHeadModel(GPT2Config(**SHAPE, **SPECIAL)),
        args=DPOConfig(**options(folder), beta=float(given["beta"]), label_smoothing=smoothing),
        processing_class=tokenizer(),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}] * 4),
    )
    n = len(given["tokens"]) // 2
    inputs = {"input_ids": given["tokens"], "attention_mask": torch.ones_like(given["tokens"])}
    inputs["completion_mask"] = given["mask"].long()

    def ask(loss_type, rows):
        trainer.loss_types = [loss_type]
        trainer.ref_model = Given(given["ref_logits"][rows])
        picked = {name: tensor[rows] for name, tensor in inputs.items()}
        return loss_and_gradient(trainer, Given(given["logits"][rows]), picked)

    everything = torch.arange(2 * n)
    loss, gradient = ask("sigmoid", everything)
    metrics = trainer._metrics["train" if trainer.model.training else "eval"]
    names = (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
    )
    shown = {name.replace("/", "_"): metrics[name][-1] for name in names}
    # "sigmoid" ignores label_smoothing in this release; "aot", which sorts the pairs of a batch,
    # smooths as the conservative loss does, and with one pair there is nothing to sort.
    single = [ask("aot", torch.tensor([i, n + i])) for i in range(n)]
    smooth_gradient = torch.zeros_like(gradient)
    for i, (_, piece) in enumerate(single):
        smooth_gradient[[i, n + i]] = piece
    smooth = torch.stack([piece for piece, _ in single])
    return {
        "loss": loss,
        "gradient": gradient,
        "smooth": smooth,
        "smooth_gradient": smooth_gradient,
        **shown,
    }


def grpo(given, folder):
    trainer = GRPOTrainer(
        model=GPT2LMHeadModel(GPT2Config(**SHAPE, **SPECIAL)),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(**options(folder), num_generations=4, epsilon=float(given["clip"])),
        processing_class=tokenizer(),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 4),
    )
    prompt = given["prompt"]
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": given["tokens"],
        "completion_mask": given["mask"].long(),
        "advantages": given["advantages"],
        "old_per_token_logps": given["old_logp"],
        "ref_per_token_logps": given["ref_logp"],
        "num_items_in_batch": given["mask"].sum(),
    }
    trainer.model.eval()
    # TRL's default weighs the penalty by π/π_old (DeepSeek-AI 2025, arXiv 2512.02556); GRPO as
    # published does not.
    trainer.args.use_bias_correction_kl = False
    # With a beta the trainer would load its reference from the model's address, and this model has
    # none.
    trainer.beta = float(given["beta"])
    found = {}
    for loss_type in ("dapo", "bnpo", "grpo"):
        trainer.loss_type = loss_type
        trainer._metrics = defaultdict(lambda: defaultdict(list))
        loss, gradient = loss_and_gradient(trainer, Given(given["logits"]), inputs)
        metrics = trainer._metrics["eval"]
        found |= {f"{loss_type}_loss": loss, f"{loss_type}_gradient": gradient}
    return {
        **found,
        "kl": metrics["kl"][-1],
        "clip_fraction": metrics["clip_ratio/region_mean"][-1],
    }


def group(given):
    """The lines of `GRPOTrainer` that turn rewards into advantages."""
    found = {}
    for scale in ("group", "none"):
        names = {
            "rewards": given["rewards"].flatten(),
            "num_generations": given["rewards"].shape[1],
            "self": SimpleNamespace(scale_rewards=scale),
        }
        source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
        found[scale] = run(
            source,
            sys.modules[GRPOTrainer.__module__],
            "mean_grouped_rewards =",
            "is_std_zero =",
            names,
        )
    return {name: names["advantages"].view_as(given["rewards"]) for name, names in found.items()}


def ppo(given):
    """The lines of `PPOTrainer.train` from log probabilities to returns, and from those to the
    loss."""
    args = SimpleNamespace(
        kl_estimator="k1",
        kl_coef=float(given["beta"]),
        whiten_rewards=False,
        gamma=float(given["gamma"]),
        lam=float(given["lam"]),
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=0.1,
    )
    source = inspect.getsource(ppo_trainer.PPOTrainer.train)
    names = {
        "args": args,
        "responses": given["logp"],
        "logprobs": given["logp"],
        "ref_logprobs": given["ref_logp"],
        "values": given["values"],
        "scores": given["score"],
        "sequence_lengths": given["last"],
    }
    names = run(source, ppo_trainer, "response_idxs =", "advantages = torch.masked_fill", names)
    found = {name: names[name] for name in ("rewards", "advantages", "returns")}
    new_logp, new_values = (torch.nn.Parameter(given[name]) for name in ("new_logp", "new_values"))
    names |= {
        "micro_batch_inds": slice(None),
        "new_logprobs": torch.masked_fill(
            new_logp, names["padding_mask"], ppo_trainer.INVALID_LOGPROB
        ),
        "vpred": torch.masked_fill(new_values, names["padding_mask_p1"], 0),
        "mb_logprobs": names["logprobs"],
        "mb_values": names["values"],
        "mb_return": names["returns"],
        "mb_advantage": names["advantages"],
    }
    names = run(source, ppo_trainer, "vpredclipped =", "pg_loss =", names)
    names = run(source, ppo_trainer, "pg_clipfrac =", "pg_clipfrac =", names)
    losses = {name: names[name] for name in ("pg_loss", "vf_loss", "vf_clipfrac", "pg_clipfrac")}
    (policy_gradient,) = torch.autograd.grad(losses["pg_loss"], new_logp)
    (value_gradient,) = torch.autograd.grad(losses["vf_loss"], new_values)
    return {**found, **losses, "policy_gradient": policy_gradient, "value_gradient": value_gradient}


def run(source, module, first, last, names):
    """Return the names after the statements of `source` from the one that begins with `first`
    through the one that begins with `last` in the same block: TRL's own lines, which cannot be
    called alone."""
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        body = getattr(node, "body", None)
        lines = [ast.unparse(statement) for statement in body] if isinstance(body, list) else []
        begins = [i for i, line in enumerate(lines) if line.startswith(first)]
        ends = [i for i, line in enumerate(lines) if line.startswith(last)]
        if begins and ends:
            names = vars(module) | names
            exec("\n".join(lines[begins[0] : ends[-1] + 1]), names)
            return names
    raise LookupError(f"No statement begins with {first!r}.")


def main(source, target):
    given = defaultdict(dict)
    with np.load(source) as file:
        for name in file.files:
            section, key = name.split("/")
            given[section][key] = torch.from_numpy(file[name])
    torch.set_default_dtype(torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "statistics": statistics(given["statistics"]),
            "ranking": ranking(given["ranking"], folder),
            "dpo": dpo(given["dpo"], folder),
            "grpo": grpo(given["grpo"], folder),
            "group": group(given["group"]),
            "full": ppo(given["full"]),
            "ragged": ppo(given["ragged"]),
        }
    flat = {f"{section}/{key}": x for section, values in found.items() for key, x in values.items()}
    np.savez(target, **{name: torch.as_tensor(x).detach().numpy() for name, x in flat.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
