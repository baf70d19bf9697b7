"""Weights at the start of training that look things up.

A language model looks up an earlier fact with two layers of heads (Olsson et al. 2022). Heads of
the first layer copy the previous tokens into every position. Heads of the second find the place
whose previous tokens are the current ones, and copy the token there. Such heads form late or never
in a small model on little text. So they are built here from the structure of trained ones, as in
mimetic initialization (Trockman and Kolter 2023), and training refines them.
"""

import math

import torch
from torch import Tensor, nn

from seq2chat.config import check
from seq2chat.models.gpt import GPT, Attention
from seq2chat.nn.block import RMSNorm

OFFSETS = (1, 2, 3, 4)  # the previous tokens that the first layer copies, one head each
FREQUENT = 0.25  # of the vocabulary
FREQUENCIES = 6  # rotary frequencies that tell neighboring positions apart
SHARPNESS = 1.5  # of the norms of queries and keys; larger values attend to fewer positions


@torch.no_grad()
def build_induction_heads(model: GPT) -> None:
    """Overwrite the first two layers' heads of a fresh model with a circuit that copies the token
    after the latest four.

    The embedding gets a constant dimension, which a tied output head turns into a constant of the
    logits, and leaves the last dimensions to the previous tokens. Random parts are drawn from
    torch's global generator. Raises UserError unless the model has rotary positions, a tied head,
    two layers, a head per offset for queries and keys alike, and room for the previous tokens.
    """
    config = model.config
    width = config.d_head // 2  # of each previous token in the residual stream
    check(
        config.layout == "modern" and config.tie_embeddings,
        'train.init "induction" needs model.layout "modern" and model.tie_embeddings.',
    )
    check(
        config.n_layer >= 2 and config.n_head >= len(OFFSETS) and config.n_kv_head == config.n_head,
        f'train.init "induction" needs at least two layers and {len(OFFSETS)} heads, and as many '
        "heads of keys as of queries.",
    )
    n_embed = config.d_model - len(OFFSETS) * width
    check(
        n_embed > 2 * width and width >= FREQUENCIES,
        f'train.init "induction" needs more room: model.d_model is {config.d_model} with heads of '
        f"{config.d_head}.",
    )
    scale = config.d_model**-0.5
    embedding = model.embed_tokens.weight
    embedding.normal_(std=scale)
    embedding[:, 0] = 3 * scale  # the constant dimension
    embedding[:, n_embed:] = 0.0
    project = torch.zeros(width, config.d_model)
    project[:, 1:n_embed] = _orthonormal(n_embed - 1, width).T
    # What identifies a token in a match. The pieces that come first in a byte-pair vocabulary are
    # so frequent that they would match everywhere.
    frequent = embedding[: int(FREQUENT * config.vocab_size)]
    frequent -= frequent @ project.T @ project
    slots = [slice(n_embed + i * width, n_embed + (i + 1) * width) for i in range(len(OFFSETS))]
    first, second = [m for m in model.modules() if isinstance(m, Attention)][:2]
    for attention in (first, second):
        for norm in (attention.q_norm, attention.k_norm):
            assert isinstance(norm, RMSNorm)
            norm.weight.fill_(SHARPNESS)
    for head, (offset, slot) in enumerate(zip(OFFSETS, slots, strict=True)):
        _attend_back(first, head, offset, config.rope_theta)
        _copy(first, head, project, slot, 1.5 * scale)
    n_copying = min(config.n_head, math.ceil((n_embed - 1) / config.d_head))
    _match(second, n_copying, project, slots)
    for head in range(n_copying):
        # Each head copies another part of the embedding.
        at = 1 + head * config.d_head
        part = slice(at, min(n_embed, at + config.d_head))
        rows = torch.zeros(part.stop - part.start, config.d_model)
        rows[:, part] = torch.eye(part.stop - part.start)
        _copy(second, head, rows, part, scale)


def _rows(linear: nn.Linear, attention: Attention, head: int) -> Tensor:
    """Return the rows of a projection that belong to a head, (d_head, d_model)."""
    return linear.weight.unflatten(0, (-1, attention.d_head))[head]


def _attend_back(attention: Attention, head: int, offset: int, theta: float) -> None:
    """Make a head attend `offset` positions back, whatever the tokens are.

    Query and key are the same vector in the fastest rotary planes, with the key turned by the
    angle of `offset` positions, so that their product is largest at that distance.
    """
    d_head = attention.d_head
    planes = torch.arange(FREQUENCIES)
    angles = offset * theta ** (-2 * planes / d_head)
    query = _rows(attention.q_proj, attention, head)
    key = _rows(attention.k_proj, attention, head)
    for rows in (query, key):
        rows.mul_(0.05)
    query[planes, 0] += 3.0
    key[planes, 0] += 3 * angles.cos()
    key[planes + d_head // 2, 0] += 3 * angles.sin()


def _match(attention: Attention, n_heads: int, project: Tensor, slots: list[slice]) -> None:
    """Make the first heads attend where the tokens before a position are those up to the current
    one. Each offset is turned in another way, so that it only matches itself."""
    turns = [_orthonormal(attention.d_head, len(project)) for _ in slots]
    for head in range(n_heads):
        query = _rows(attention.q_proj, attention, head)
        key = _rows(attention.k_proj, attention, head)
        query.copy_(turns[0] @ project)
        for turn, slot in zip(turns[1:], slots, strict=False):
            query[:, slot] += turn
        key.zero_()
        for turn, slot in zip(turns, slots, strict=True):
            key[:, slot] += turn


def _copy(attention: Attention, head: int, rows: Tensor, to: slice, scale: float) -> None:
    """Make a head write `rows` @ (the token that it attends to) into the dimensions `to`."""
    value = _rows(attention.v_proj, attention, head)
    value.zero_()
    value[: len(rows)] = rows
    start = head * attention.d_head
    attention.o_proj.weight[to, start : start + len(rows)] = scale * torch.eye(len(rows))


def _orthonormal(n: int, k: int) -> Tensor:
    """Return `k` random orthonormal columns of length `n`."""
    return torch.linalg.qr(torch.randn(n, k))[0]
