"""A model that is served: its name, its weights in the number format that is fast here, and its
engine."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from seq2chat.alignment.pipeline import finished_stages
from seq2chat.config import check
from seq2chat.device import pick_device, pick_precision
from seq2chat.generation.engine import Engine
from seq2chat.generation.request import ContextExceeded
from seq2chat.models.bert import BERT
from seq2chat.models.folder import Model, n_parameters
from seq2chat.models.gpt import GPT
from seq2chat.nn.int8 import Int8Linear, quantized
from seq2chat.serving.logprobs import TokenNames
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import end_tokens
from seq2chat.text.tokenizers import Tokenizer
from seq2chat.training.checkpoint import load_checkpoint

WIDE = 4_000_000  # parameters below which products are so small that bfloat16 only adds calls

LONGEST = 32_768  # tokens of a text

# Bytes of which Unicode's composition makes one at most, as of the three letters of a Korean
# syllable.
NFC = 3


@dataclass
class Served:
    """One model under its name. `engine` is None for a family that does not continue texts."""

    id: str
    model: Model
    tokenizer: Tokenizer
    engine: Engine | None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def family(self) -> str:
        return self.model.config.family

    @property
    def context(self) -> int:
        """The most tokens of a text. A recurrence knows no bound, and is given one."""
        return min(self.model.context, LONGEST)

    @cached_property
    def _n_parameters(self) -> int:
        """As the model was saved, whatever it is kept as here."""
        return n_parameters(self.model.config)

    @cached_property
    def _most_bytes(self) -> int | None:
        """Upper bound in bytes on a text that fits the context. None for WordPiece: any word may be
        the token [UNK]."""
        if not isinstance(self.tokenizer, ByteBPE):
            return None
        tokens = range(self.tokenizer.vocab_size)
        return NFC * self.context * max(len(self.tokenizer.token_bytes(token)) for token in tokens)

    @cached_property
    def token_names(self) -> TokenNames:
        """The tokens as log probabilities write them."""
        assert isinstance(self.tokenizer, ByteBPE)
        return TokenNames(self.tokenizer)

    def check_size(self, *texts: str) -> None:
        """Raise ContextExceeded for texts that fit one context in no way, before encoding them
        takes a while."""
        n_bytes = sum(len(text.encode(errors="surrogatepass")) for text in texts)
        if self._most_bytes is not None and n_bytes > self._most_bytes:
            raise ContextExceeded(
                f"The text has {sum(map(len, texts)):,} characters, more than a context of "
                f"{self.context} tokens holds; shorten it."
            )

    @property
    def can_chat(self) -> bool:
        """Whether the model has learned to."""
        return (
            self.engine is not None
            and isinstance(self.tokenizer, ByteBPE)
            and bool(self.tokenizer.chat_template)
        )

    @property
    def end_tokens(self) -> list[int]:
        """The tokens that end an answer of a model that chats, or a text."""
        assert isinstance(self.tokenizer, ByteBPE)
        if self.can_chat:
            return end_tokens(self.tokenizer)
        return [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]

    def card(self) -> dict[str, object]:
        """What `/v1/models` tells of it."""
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "seq2chat",
            "context": self.context,
            "parameters": self._n_parameters,
            "family": self.family,
            "chat": self.can_chat,
            "vocab_size": self.tokenizer.vocab_size,
        }


def open_served(run: Path, name: str, n_slot: int = 16, int8: bool = False) -> Served:
    """Return the model of a run or model folder, ready to be served, with `int8` the weights of a
    GPT's products as integers. Raises UserError for a reward model, and for `int8` of another
    family."""
    model, tokenizer = load_checkpoint(run)
    check(
        model.config.family != "reward",
        f"{run} is a reward model; serve the policy that it judges.",
    )
    device = pick_device()
    model.to(device)
    if isinstance(model, GPT | BERT):
        small = device.type == "cpu" and n_parameters(model.config) < WIDE and not int8
        model.to(torch.float32 if small else pick_precision("auto", device).dtype)
    if int8:
        check(isinstance(model, GPT), f"{run} is a {model.config.family}; int8 is for a GPT.")
        assert isinstance(model, GPT)
        quantize(model)
    return Served(name, model, tokenizer, Engine(model, n_slot) if isinstance(model, GPT) else None)


def quantize(model: GPT) -> None:
    """Make the weights of all products of `model` 8-bit integers; a tied head gets integers of its
    own."""
    model.lm_head = Int8Linear(model.head_weight)
    for module in list(model.layers.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, quantized(child))


def stages(folder: Path) -> list[Path]:
    """Return the finished runs of a demo's folder that can be served, the aligned one first. A
    folder of another kind is returned as it is."""
    finished = finished_stages(folder)
    return [folder / name for name in ("ppo", "sft", "base") if name in finished] or [folder]


def names(runs: Sequence[Path]) -> list[str]:
    """Return a name for each run: its folders below `runs/`, or its folder's. Raises UserError when
    two are alike."""
    made = []
    for run in runs:
        parts = [part for part in run.resolve().parts if part != "checkpoints"]
        first = len(parts) - parts[::-1].index("runs") if "runs" in parts[:-1] else -1
        below = parts[first:]
        made.append("-".join(below))
    twice = next((name for name in made if made.count(name) > 1), None)
    check(twice is None, f"Two of the runs would be called {twice}; rename the folder of one.")
    return made
