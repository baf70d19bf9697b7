"""A GPT whose steps of one token are computed by `DecodeStep`, for `decode.stream`."""

import logging
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seq2chat.generation.decode_step import MAX_ROWS, DecodeStep, NoCompiler, can_step
from seq2chat.generation.protocols import LanguageModel
from seq2chat.models.gpt import GPT
from seq2chat.nn.cache import KVCache


class FastGPT:
    """`model` with faster steps, as a `LanguageModel`. Its weights must not change meanwhile.

    Prompts, and steps of more than `MAX_ROWS` rows, are computed by the model itself.
    """

    reads_source: ClassVar[Literal[False]] = False
    training = False

    def __init__(self, model: GPT) -> None:
        self.model = model.eval()
        self._step = DecodeStep(model)

    @property
    def context(self) -> int:
        return self.model.context

    @property
    def device(self) -> torch.device:
        return self.model.device

    def train(self, mode: bool = True) -> "FastGPT":
        """Return the model, which is always in evaluation mode."""
        return self

    def start(self, padding: Int[Tensor, " batch"] | None = None) -> KVCache:
        return self.model.start(padding)

    def step(
        self, tokens: Int[Tensor, "batch n_new"], state: KVCache
    ) -> tuple[Float[Tensor, "batch n_new vocab"], KVCache]:
        """Return the logits and the new state, as `GPT.step`. Raises as it does."""
        n_row, n_new = tokens.shape
        if n_new > 1 or n_row > MAX_ROWS:
            return self.model.step(tokens, state)
        self.model.check_context(state.longest + 1)
        place = state.length
        keys, values, room = state.reserve()
        firsts = [0] * n_row if state.padding is None else state.padding.tolist()
        logits = self._step(
            tokens[:, 0].tolist(), range(n_row), [place] * n_row, firsts, keys, values, room
        )
        return logits[:, None], state


def with_fast_steps(model: LanguageModel) -> LanguageModel:
    """Return `model` as a `FastGPT` if this machine can compile one, else the model itself."""
    if not can_step(model) or model.embed_tokens.weight.dtype != torch.float32:
        return model
    try:
        return FastGPT(model)
    except NoCompiler as error:
        logging.getLogger("seq2chat").info("Decoding is slower than it could be: %s.", error)
        return model
