"""The parameters and floating point operations of one pipeline stage, per rank."""

import re
from dataclasses import dataclass, replace
from functools import cache

import torch

from seq2chat.config import GPTConfig
from seq2chat.models.gpt import GPT, flops_per_token
from seq2chat.scale.layout import Layout

# Every tensor rank has all of these. They act after the sum over ranks, or between the matrices.
REPLICATED = re.compile(r".*norm\.(weight|bias)|.*(o_proj|down_proj)\.bias")


@dataclass(frozen=True)
class Count:
    """Parameters of a part of the model: of matrices and of vectors, divided by tensor ranks or
    not."""

    matrices: int = 0
    vectors: int = 0
    replicated: int = 0

    @property
    def total(self) -> int:
        return self.matrices + self.vectors + self.replicated

    def per_rank(self, tensor: int) -> float:
        """Return the parameters of one of `tensor` ranks, before any sharding."""
        return (self.matrices + self.vectors) / tensor + self.replicated


@dataclass(frozen=True)
class Counts:
    """Parameters by part: one block, the embeddings, the last norm and the head.

    `head` is the matrix from the last hidden state to logits, whether or not it is the embedding.
    """

    block: Count
    embeddings: Count
    norm: Count
    head: Count


@cache
def counts(model: GPTConfig) -> Counts:
    """Return the parameters by part, counted on the model's own tensors."""
    with torch.device("meta"):
        one = GPT(replace(model, n_layer=1))
    parts = {"block": Count(), "embeddings": Count(), "norm": Count()}
    for name, parameter in one.named_parameters():
        part = "block" if name.startswith("layers.") else "embeddings"
        part = "norm" if name.startswith("norm.") else part
        if name == "lm_head.weight":
            continue
        kind = "matrices" if parameter.ndim == 2 and part == "block" else "vectors"
        kind = "replicated" if REPLICATED.fullmatch(name) else kind
        count = parts[part]
        parts[part] = replace(count, **{kind: getattr(count, kind) + parameter.numel()})
    return Counts(**parts, head=Count(vectors=model.vocab_size * model.d_model))


def n_parameters(model: GPTConfig) -> int:
    """Return the parameters of the whole model."""
    parts = counts(model)
    own_head = 0 if model.tie_embeddings else parts.head.total
    total = model.n_layer * parts.block.total + parts.embeddings.total + parts.norm.total
    return total + own_head


@cache
def model_flops(model: GPTConfig) -> int:
    """Return `flops_per_token`, which counts the tensors of the whole model, without doing so
    again."""
    return flops_per_token(model)


@dataclass(frozen=True)
class Stage:
    """The layers of one rank of a pipeline. Only the first stage has the embeddings, and only the
    last one the norm and the head, as a copy if it is tied."""

    model: GPTConfig
    layout: Layout
    index: int

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == self.layout.pipeline - 1

    @property
    def layers(self) -> int:
        return self.model.n_layer // self.layout.pipeline

    @property
    def block_parameters(self) -> float:
        """Parameters per rank of one block, before sharding."""
        return counts(self.model).block.per_rank(self.layout.tensor)

    @property
    def end_parameters(self) -> float:
        """Parameters per rank of embeddings, last norm and head, before sharding."""
        parts = counts(self.model)
        owned = []
        if self.is_first:
            owned.append(parts.embeddings)
        if self.is_last:
            owned.append(parts.norm)
            if not (self.model.tie_embeddings and self.is_first):
                owned.append(parts.head)
        return sum(part.per_rank(self.layout.tensor) for part in owned)

    @property
    def parameters(self) -> float:
        """Parameters per rank, before sharding."""
        return self.layers * self.block_parameters + self.end_parameters

    @property
    def muon_parameters(self) -> float:
        """Parameters per rank of the matrices of blocks, before sharding."""
        return self.layers * counts(self.model).block.matrices / self.layout.tensor

    def flops(self) -> float:
        """Return the FLOPs per rank of forward and backward pass of one micro-batch.

        Checkpointing repeats the forward pass of the blocks (Narayanan et al. 2021, equation 2).
        """
        head = 6 * counts(self.model).head.total
        blocks = (model_flops(self.model) - head) / self.layout.pipeline
        blocks *= 4 / 3 if self.layout.checkpointing else 1
        per_token = (blocks + (head if self.is_last else 0)) / self.layout.tensor
        return per_token * self.layout.micro_batch * self.model.context


def stages(model: GPTConfig, layout: Layout) -> list[Stage]:
    """Return the first and the last stage, between which no rank has more to store or to do."""
    return [Stage(model, layout, index) for index in sorted({0, layout.pipeline - 1})]
