"""The interface that decoding needs from a model: `start`, `step` and the state between steps.

Greedy decoding, sampling, beam search and scoring are each written once over these protocols, so
they run an RNN, an encoder-decoder Transformer and a GPT alike. The two kinds of models differ in
the class attribute `reads_source`.
"""

from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class State(Protocol):
    """The decoding state after some tokens, for example an RNN's hidden vectors or a KV cache."""

    def reorder(self, rows: Tensor) -> None:
        """Replace row i by the previous row `rows[i]`. Rows may be dropped or repeated."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """The members that both kinds of models share."""

    @property
    def training(self) -> bool: ...

    @property
    def context(self) -> int:
        """Maximum number of positions per row."""
        ...

    @property
    def device(self) -> torch.device: ...

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the logits (batch, n_new, vocab) after `tokens` (batch, n_new), and the state."""
        ...

    def train(self, mode: bool = True) -> object: ...


@runtime_checkable
class LanguageModel(Decoder, Protocol):
    """A model that continues a prompt, for example GPT."""

    reads_source: ClassVar[Literal[False]]

    def start(self, padding: Tensor | None = None) -> Any:
        """Return an empty state. `padding` (batch,) counts the pad tokens before each prompt."""
        ...


@runtime_checkable
class Seq2SeqModel(Decoder, Protocol):
    """A model that translates a source, for example an encoder-decoder Transformer."""

    reads_source: ClassVar[Literal[True]]

    def start(self, source: Tensor, source_mask: Tensor | None = None) -> Any:
        """Return the state before the first target token: the encoded source (batch, source_seq).

        `source_mask` is True where a source token is real. None means everywhere.
        """
        ...


GenerativeModel = LanguageModel | Seq2SeqModel
