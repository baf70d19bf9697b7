"""A GPT whose steps of one token are computed by `DecodeStep`, for `decode.stream`."""

import logging
from typing import ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seq2chat.generation.decode_step import MAX_ROWS, DecodeStep, NoCompiler, can_step
from seq2chat.generation.protocols import LanguageModel
from seq2chat.models.gpt import GPT
from seq2chat.nn.cache import KVCache


class FastGPT:
    """`model` with faster steps, as a `LanguageModel`.

    Prompts, and steps of more than `MAX_ROWS` rows, are computed by the model itself.
    """

    reads_source: ClassVar[Literal[False]] = False

    def __init__(self, model: GPT) -> None:
        self.model = model
        self._step = step_of(model)

    @property
    def context(self) -> int:
        return self.model.context

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def training(self) -> bool:
        return self.model.training

    def train(self, mode: bool = True) -> GPT:
        """Set the mode of the model. Its dropout has no effect on steps of one token."""
        return self.model.train(mode)

    def start(self, padding: Int[Tensor, " batch"] | None = None) -> KVCache:
        self._step = step_of(self.model)
        return self.model.start(padding)

    def step(
        self, tokens: Int[Tensor, "batch n_new"], state: KVCache
    ) -> tuple[Float[Tensor, "batch n_new vocab"], KVCache]:
        """Return the logits and the new state, as `GPT.step`. Raises as it does."""
        n_row, n_new = tokens.shape
        if n_new > 1 or n_row > MAX_ROWS or not state.length:
            return self.model.step(tokens, state)
        self.model.check_context(state.longest + 1)
        place = state.length
        keys, values, room = state.reserve()
        if keys[0].shape[0] != n_row:
            raise IndexError(
                f"The state has {keys[0].shape[0]} rows, and there are {n_row} tokens."
            )
        firsts = [0] * n_row if state.padding is None else state.padding.tolist()
        logits = self._step(
            tokens[:, 0].tolist(), range(n_row), [place] * n_row, firsts, keys, values, room
        )
        return logits[:, None], state


def step_of(model: GPT) -> DecodeStep:
    """Return the decoding step of `model`, which is made again after its weights have changed."""
    version = sum(tensor._version for tensor in (*model.parameters(), *model.buffers()))
    known = _STEPS.get(model)
    if known is None or known[0] != version:
        known = version, DecodeStep(model)
        _STEPS[model] = known
    return known[1]


_STEPS: WeakKeyDictionary[GPT, tuple[int, DecodeStep]] = WeakKeyDictionary()
"""The steps of models in use. A step keeps tensors of its model, but not the model."""


def with_fast_steps(model: LanguageModel) -> LanguageModel:
    """Return `model` as a `FastGPT` if this machine can compile one, else the model itself."""
    if not can_step(model) or model.embed_tokens.weight.dtype != torch.float32:
        return model
    try:
        return FastGPT(model)
    except NoCompiler as error:
        logging.getLogger("seq2chat").info("Decoding is slower than it could be: %s.", error)
        return model
