"""What the engine knows of each sample that runs, and how its next token is drawn."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.generation.decode import token_logprobs
from seq2chat.generation.request import Constraint, Request
from seq2chat.generation.sampling import Penalties, SamplingConfig, draw, next_token_logits


class Phase(Enum):
    """The states of a row, in the order in which it passes through them. A row may end in any of
    them."""

    WAITING = "waiting"  # the first sample of the request reads the prompt for this one
    READING = "reading"
    DECODING = "decoding"
    ENDED = "ended"  # the slot belongs to others


@dataclass
class Row:
    """One sample of a request: its tokens, the slot it is in, and how many tokens have keys and
    values there."""

    request: Request
    sample: int
    slot: int
    room: int
    generator: random.Random
    tokens: list[int]
    arrival: int
    phase: Phase = Phase.READING
    computed: int = 0
    cached: int = 0
    before: Penalties | None = None
    logprobs: list[float | None] = field(default_factory=lambda: [None])
    tops: list[list[tuple[int, float]]] = field(default_factory=lambda: [[]])

    @property
    def n_prompt(self) -> int:
        return len(self.request.prompt)

    @property
    def constraint(self) -> Constraint | None:
        """What this sample may say, if that is told."""
        return self.request.constraints[self.sample] if self.request.constraints else None

    def constrained(self, logits: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
        """Return the logits as its constraint leaves them. Raises what the constraint does."""
        return (
            logits if self.constraint is None else logits + self.constraint.bias().to(logits.device)
        )

    def penalties(self, vocab_size: int, device: torch.device) -> Penalties:
        """What was said before, counted from the first time this is asked for."""
        if self.before is None:
            begun = self.n_prompt - self.request.n_begun
            self.before = Penalties(self.request.prompt[:begun], vocab_size, device)
            for token in self.request.prompt[begun:]:
                self.before.add(token)
        return self.before

    def remembered(self, since: int = 0) -> "Kept":
        """What its slot can be remembered for: the part of the prompt that was read, as prompts
        are."""
        return Kept(
            self.request.prompt[: min(self.computed, self.n_prompt)], self.request.salt, since
        )


@dataclass(frozen=True)
class Kept:
    """What a slot holds after its row has ended."""

    prompt: list[int] = field(default_factory=list)
    salt: str = ""
    since: int = 0


def draw_tokens(
    rows: Sequence[Row], logits: Float[Tensor, "rows vocab"]
) -> tuple[list[int], list[float | None]]:
    """Return the next token of each row and, where that is asked for, its log probability as drawn;
    rows of like options go together."""
    groups: dict[SamplingConfig, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(replace(row.request.sampling, max_tokens=1, seed=None), []).append(index)
    tokens = [0] * len(rows)
    drawn: list[float | None] = [None] * len(rows)
    for config, members in groups.items():
        part = logits if len(members) == len(rows) else logits[members]
        before = [
            rows[i].penalties(part.shape[-1], part.device) for i in members if config.penalises
        ]
        processed = next_token_logits(part, config, before)
        chosen = draw(processed, config, [rows[i].generator for i in members])
        if asked := [at for at, i in enumerate(members) if rows[i].request.drawn_logprobs]:
            for at, logprob in zip(
                asked, token_logprobs(processed[asked], chosen[asked]).tolist(), strict=True
            ):
                drawn[members[at]] = logprob
        for i, token in zip(members, chosen.tolist(), strict=True):
            tokens[i] = token
    return tokens, drawn


def likeliest(
    logprobs: Float[Tensor, "rows vocab"], counts: list[int]
) -> list[list[tuple[int, float]]]:
    """Return the `counts[i]` likeliest (token, log probability) of row i, likeliest first."""
    if not any(counts):
        return [[] for _ in counts]
    best = logprobs.topk(min(max(counts), logprobs.shape[-1]), dim=-1)
    return [
        list(zip(ids[:n], values[:n], strict=True))
        for ids, values, n in zip(best.indices.tolist(), best.values.tolist(), counts, strict=True)
    ]


def n_shared_tokens(kept: Kept, request: Request, chunk: int) -> int:
    """Return how many tokens at the beginning of both prompts are the same, in whole chunks,
    leaving one to read."""
    if kept.salt != request.salt:
        return 0
    most = (min(len(kept.prompt), len(request.prompt) - 1)) // chunk * chunk
    return next(
        (
            i
            for i in range(0, most, chunk)
            if kept.prompt[i : i + chunk] != request.prompt[i : i + chunk]
        ),
        max(most, 0),
    )
