"""The policy: a language model with chat tokens, and what all tasks that train one share."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seq2chat.alignment.samples import SAMPLES, show_answers
from seq2chat.config import GPTConfig, Recipe, UserError, check
from seq2chat.inference.load import load_gpt
from seq2chat.models.gpt import GPT
from seq2chat.models.lora import merged
from seq2chat.text.chat import with_chat
from seq2chat.text.conversations import Prompt
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.training.checkpoint import find_checkpoint
from seq2chat.training.parallel import Parallel
from seq2chat.training.types import SampleLoader, Task


class PolicyTask(Task[GPT, TextTokenizer]):
    """A task that trains a policy.

    Its samples are answers to held-out prompts. Adapters are merged into the weights of its
    checkpoints.
    """

    def __init__(
        self,
        recipe: Recipe,
        policy: GPT,
        tokenizer: TextTokenizer,
        loader: SampleLoader,
        prompts: Sequence[Prompt],
        validation_tokens: int = 0,
    ) -> None:
        super().__init__(recipe, policy, tokenizer, loader, validation_tokens)
        self.prompts = prompts[:SAMPLES]

    @property
    def policy(self) -> GPT:
        return self.model

    @property
    def align(self) -> Any:
        """The options of the method."""
        return self.recipe.align

    def result(self) -> GPT:
        """Return the policy that is kept, with its adapters."""
        return self.policy

    def published(self) -> GPT:
        return merged(self.result()) if self.align.lora_rank else self.result()

    def divide(self, parallel: Parallel, dtype: torch.dtype) -> None:
        """Divide the policy, unless it has adapters, whose frozen weights are whole everywhere."""
        self.parallel = parallel
        if not self.align.lora_rank:
            parallel.divide(self.policy, dtype)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"policy": self.policy} if self.align.lora_rank else {}

    def sample(self, model: GPT) -> str:
        return show_answers(model, self.tokenizer, self.prompts, self.align.max_tokens)


def find_start(start: str) -> Path:
    """Return the model folder of `align.start`. Raises UserError if there is none."""
    check(start != "", "No model to align: name a run or a model folder with --start.")
    return find_checkpoint(Path(start))


def load_policy(start: str) -> tuple[GPT, TextTokenizer]:
    """Return the language model in the run or model folder `start`, in float32, and its tokenizer.

    A tokenizer without a chat template gets ChatML's and its control tokens, and the model gets
    embeddings for them if it has none. Raises UserError if the folder holds no GPT.
    """
    model, tokenizer = load_gpt(find_start(start), device="cpu")
    tokenizer = with_chat(tokenizer)
    return grow_vocabulary(model, tokenizer.vocab_size), tokenizer


def set_dropout(model: GPT, rate: float) -> None:
    """Set the dropout rate of `model` in training, however it was built."""
    model.config = dataclasses.replace(model.config, dropout=rate)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate


@torch.no_grad()
def grow_vocabulary(model: GPT, vocab_size: int) -> GPT:
    """Return `model` with embeddings for at least `vocab_size` tokens.

    New embeddings are the mean of the old ones, which hardly changes the probabilities of old
    tokens (Hewitt 2021, "Initializing new word embeddings").
    """
    old = model.config.vocab_size
    if vocab_size <= old:
        return model
    larger = GPT(dataclasses.replace(model.config, vocab_size=vocab_size))
    state = model.state_dict()
    for name, tensor in state.items():
        if name in ("embed_tokens.weight", "lm_head.weight"):
            mean = tensor.mean(0, keepdim=True)
            state[name] = torch.cat([tensor, mean.expand(vocab_size - old, -1)])
    larger.load_state_dict(state)
    larger.compute_dtype = model.compute_dtype
    return larger.eval()


def with_shape(recipe: Recipe, shape: GPTConfig) -> Recipe:
    """Return the recipe with the shape of the starting model and its own dropout.

    Raises UserError if the recipe requests another shape, which can't be chosen.
    """
    default = type(recipe.model)()
    for name, value in vars(recipe.model).items():
        start_value = getattr(shape, name, None)
        is_requested = value not in (getattr(default, name, None), start_value)
        if is_requested and name not in ("dropout", "score_bias"):
            raise UserError(
                f"model.{name} is {value}, but align.start has {start_value}; leave it out: the "
                "shape is that of the starting model."
            )
    model = dataclasses.replace(shape, dropout=recipe.model.dropout)
    return dataclasses.replace(recipe, model=model)
