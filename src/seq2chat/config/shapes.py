"""The shapes of models, one dataclass per family."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from seq2chat.config.errors import check

LayoutName = Literal["gpt2", "modern", "llama", "qwen2", "mistral"]

Objective = Literal["next token", "masked tokens", "translation", "score"]
"""What a family of models is trained to predict."""


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a GPT. Zeros are replaced by derived values on construction."""

    family: ClassVar[str] = "gpt"
    objective: ClassVar[Objective] = "next token"

    layout: Annotated[
        LayoutName,
        "the published family whose blocks these are; gpt2 includes GPT-3, and modern is Qwen3",
    ] = "modern"
    vocab_size: Annotated[int, "rows of the embedding; 0 takes the tokenizer's size"] = 0
    context: Annotated[int, "number of positions"] = 256
    n_layer: Annotated[int, "number of blocks"] = 6
    n_head: Annotated[int, "number of attention heads"] = 6
    n_kv_head: Annotated[int, "heads of keys and values; 0 is n_head"] = 0
    d_model: Annotated[int, "width of the residual stream"] = 384
    d_head: Annotated[int, "width of a head; 0 is d_model / n_head"] = 0
    d_ff: Annotated[
        int, "inner width of the feed-forward; 0 is 4 (gpt2) or 8/3 (others) times d_model"
    ] = 0
    dropout: Annotated[float, "dropout on embeddings and on the output of each branch"] = 0.0
    tie_embeddings: Annotated[
        bool, "share the embedding with the output head (always so in gpt2)"
    ] = False
    window: Annotated[
        int,
        "every second layer (gpt2) or each one (mistral) attends to this many last positions; 0 is"
        " all",
    ] = 0
    rope_theta: Annotated[float, "base of the rotary angles (not in gpt2)"] = 10000.0
    rope_scaling: Annotated[
        Literal["none", "linear", "llama3"], "stretching of the rotary angles for longer contexts"
    ] = "none"
    rope_factor: Annotated[float, "with rope_scaling: the factor by which angles shrink"] = 1.0
    rope_context: Annotated[int, "with llama3 scaling: the context before it was stretched"] = 0
    attention_bias: Annotated[bool, "llama only: biases on q, k, v and o"] = False
    mlp_bias: Annotated[bool, "llama only: biases in the feed-forward"] = False
    norm_eps: Annotated[float, "epsilon of the norms; 0 is 1e-5 (gpt2) or 1e-6 (others)"] = 0.0

    def __post_init__(self) -> None:
        gpt2 = self.layout == "gpt2"
        for name in ("context", "n_layer", "n_head", "d_model"):
            check(
                getattr(self, name) > 0,
                f"model.{name} is {getattr(self, name)}; write a positive number.",
            )
        for name in (
            "vocab_size",
            "n_kv_head",
            "d_head",
            "d_ff",
            "window",
            "rope_theta",
            "norm_eps",
        ):
            check(
                getattr(self, name) >= 0, f"model.{name} is {getattr(self, name)}; write 0 or more."
            )
        check(0 <= self.dropout < 1, f"model.dropout is {self.dropout}; write a number in [0, 1).")
        check(
            self.d_head > 0 or self.d_model % self.n_head == 0,
            f"model.d_model {self.d_model} is not a multiple of model.n_head {self.n_head}; change "
            "one or give d_head.",
        )
        self._derive("d_head", self.d_model // self.n_head)
        self._derive("n_kv_head", self.n_head)
        self._derive("d_ff", 4 * self.d_model if gpt2 else -(-8 * self.d_model // 3 // 64) * 64)
        self._derive("norm_eps", 1e-5 if gpt2 else 1e-6)
        check(
            self.n_head % self.n_kv_head == 0,
            f"model.n_head {self.n_head} is not a multiple of model.n_kv_head {self.n_kv_head}.",
        )
        if gpt2:
            object.__setattr__(self, "tie_embeddings", True)  # as in GPT-2
            check(
                self.n_kv_head == self.n_head and self.d_head * self.n_head == self.d_model,
                "The layout gpt2 has no model.n_kv_head and no model.d_head; leave them out.",
            )
        else:
            check(
                self.d_head % 2 == 0,
                f"model.d_head is {self.d_head}; rotary positions need an even number.",
            )
        check(
            self.window == 0 or self.layout in ("gpt2", "mistral"),
            f"model.window belongs to the layouts gpt2 and mistral, and not to {self.layout}.",
        )
        check(
            self.layout == "llama" or not (self.attention_bias or self.mlp_bias),
            "model.attention_bias and model.mlp_bias belong to the layout llama, and not to "
            f"{self.layout}.",
        )
        self._check_scaling()

    def _check_scaling(self) -> None:
        scaling = self.rope_scaling
        check(
            self.layout != "gpt2" or scaling == "none",
            "model.rope_scaling needs rotary positions, which the layout gpt2 lacks.",
        )
        check(
            (self.rope_factor > 1) if scaling != "none" else (self.rope_factor == 1),
            f"model.rope_factor is {self.rope_factor} with model.rope_scaling {scaling!r}; write a "
            "factor above 1 together with a kind of scaling.",
        )
        check(
            (self.rope_context > 0) == (scaling == "llama3"),
            f"model.rope_context is {self.rope_context} with model.rope_scaling {scaling!r}; write "
            "the original context together with llama3, and only there.",
        )

    def _derive(self, name: str, value: Any) -> None:
        if not getattr(self, name):
            object.__setattr__(self, name, value)


def _gpt3(n_layer: int, d_model: int, n_head: int) -> GPTConfig:
    return GPTConfig(
        "gpt2", vocab_size=50257, context=2048, n_layer=n_layer, n_head=n_head, d_model=d_model
    )


@dataclass(frozen=True)
class Seq2SeqConfig:
    """Shape of an RNN encoder–decoder."""

    family: ClassVar[str] = "seq2seq"
    objective: ClassVar[Objective] = "translation"

    vocab_size: Annotated[int, "rows of the embedding; 0 takes the tokenizer's size"] = 0
    attention: Annotated[
        Literal["fixed", "additive"],
        "the decoder's view of the source: its last state, or Bahdanau's attention",
    ] = "additive"
    cell: Annotated[Literal["gru", "lstm"], "recurrent cell"] = "gru"
    context: Annotated[
        int, "maximum tokens of a source or target in training, which bounds the memory"
    ] = 256
    n_layer: Annotated[int, "recurrent layers of encoder and decoder each"] = 1
    d_embed: Annotated[int, "width of the embeddings"] = 256
    d_model: Annotated[int, "width of a hidden state"] = 512
    bidirectional: Annotated[bool, "the encoder reads the source in both directions"] = True
    reverse_source: Annotated[bool, "feed the source last word first (Sutskever et al. 2014)"] = (
        False
    )
    dropout: Annotated[float, "dropout on embeddings, between layers and before the output"] = 0.3
    tie_embeddings: Annotated[bool, "one matrix for both embeddings and the output head"] = True

    def __post_init__(self) -> None:
        _check_shape(self, positive=("context", "n_layer", "d_embed", "d_model"))


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of an encoder–decoder Transformer. Zeros are replaced by derived values."""

    family: ClassVar[str] = "transformer"
    objective: ClassVar[Objective] = "translation"

    vocab_size: Annotated[int, "rows of the embedding; 0 takes the tokenizer's size"] = 0
    context: Annotated[int, "maximum tokens of a source or target"] = 256
    n_layer: Annotated[int, "blocks of encoder and decoder each"] = 3
    n_head: Annotated[int, "number of attention heads"] = 4
    d_model: Annotated[int, "width of the residual stream"] = 256
    d_ff: Annotated[int, "inner width of the feed-forward; 0 is 4 times d_model"] = 0
    dropout: Annotated[float, "dropout on embeddings and on the output of each branch"] = 0.1
    positions: Annotated[Literal["sinusoidal", "learned"], "position encoding"] = "sinusoidal"
    norm: Annotated[
        Literal["pre", "post"], "norm before each branch, or after the residual addition (2017)"
    ] = "pre"
    activation: Annotated[Literal["relu", "gelu"], "activation of the feed-forward"] = "relu"
    tie_embeddings: Annotated[bool, "one matrix for both embeddings and the output head"] = True
    norm_eps: Annotated[float, "epsilon of the norms"] = 1e-5

    def __post_init__(self) -> None:
        _check_shape(self, positive=("context", "n_layer", "n_head", "d_model"))
        if not self.d_ff:
            object.__setattr__(self, "d_ff", 4 * self.d_model)


@dataclass(frozen=True)
class BERTConfig:
    """Shape of a BERT. Zeros are replaced by derived values."""

    family: ClassVar[str] = "bert"
    objective: ClassVar[Objective] = "masked tokens"

    vocab_size: Annotated[int, "rows of the embedding; 0 takes the tokenizer's size"] = 0
    context: Annotated[int, "number of positions"] = 128
    n_layer: Annotated[int, "number of blocks"] = 4
    n_head: Annotated[int, "number of attention heads"] = 4
    d_model: Annotated[int, "width of the residual stream"] = 256
    d_ff: Annotated[int, "inner width of the feed-forward; 0 is 4 times d_model"] = 0
    dropout: Annotated[float, "dropout on embeddings and on the output of each branch"] = 0.1
    masked_lm: Annotated[
        bool, "has the head that predicts tokens, which sentence encoders lack"
    ] = True
    next_sentence: Annotated[bool, "also train next-sentence prediction"] = False
    norm_eps: Annotated[float, "epsilon of the norms"] = 1e-12

    def __post_init__(self) -> None:
        _check_shape(self, positive=("context", "n_layer", "n_head", "d_model"))
        if not self.d_ff:
            object.__setattr__(self, "d_ff", 4 * self.d_model)


@dataclass(frozen=True)
class RewardConfig(GPTConfig):
    """Shape of a reward model: a GPT with one number as its output."""

    family: ClassVar[str] = "reward"
    objective: ClassVar[Objective] = "score"

    score_bias: Annotated[
        float, "added to every score; set after training so that demonstrations have mean 0"
    ] = 0.0


ModelConfig = GPTConfig | Seq2SeqConfig | TransformerConfig | BERTConfig | RewardConfig


def _check_shape(config: Any, positive: tuple[str, ...]) -> None:
    for name in positive:
        check(
            getattr(config, name) > 0,
            f"model.{name} is {getattr(config, name)}; write a positive number.",
        )
    for name in {"vocab_size", "d_ff", "norm_eps"} & {f.name for f in dataclasses.fields(config)}:
        check(
            getattr(config, name) >= 0, f"model.{name} is {getattr(config, name)}; write 0 or more."
        )
    check(0 <= config.dropout < 1, f"model.dropout is {config.dropout}; write a number in [0, 1).")
    heads = getattr(config, "n_head", 1)
    check(
        config.d_model % heads == 0,
        f"model.d_model {config.d_model} is not a multiple of model.n_head {heads}; change one.",
    )


# Brown et al. 2020, table 2.1. Two of its rows contradict themselves (24 heads of 128 are not 2048;
# width 5140 is not 40 heads of 128): the preset keeps the head size of 128 and takes 16 heads for
# XL and width 5120 for 13B.
GPT3 = {
    "gpt3-small": _gpt3(12, 768, 12),
    "gpt3-medium": _gpt3(24, 1024, 16),
    "gpt3-large": _gpt3(24, 1536, 16),
    "gpt3-xl": _gpt3(24, 2048, 16),
    "gpt3-2.7b": _gpt3(32, 2560, 32),
    "gpt3-6.7b": _gpt3(32, 4096, 32),
    "gpt3-13b": _gpt3(40, 5120, 40),
    "gpt3-175b": _gpt3(96, 12288, 96),
}
