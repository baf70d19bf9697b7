"""The state of one running sequence in the engine, and how its next token is drawn."""

import random
from dataclasses import dataclass, field, replace
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.generation.decode import log_softmax
from seq2chat.generation.request import Constraint, Request
from seq2chat.generation.sampling import Penalties, SamplingConfig, draw, next_token_logits
from seq2chat.generation.tokens import Token


class Phase(Enum):
    """The phases of a sequence, in their order. A sequence may end in any of them."""

    WAITING = "waiting"  # the first sample of the request reads the prompt for this one
    READING = "reading"
    DECODING = "decoding"
    ENDED = "ended"  # its slot may hold another sequence


@dataclass
class Sequence:
    """One sample of a request: its tokens, and its slot in the cache.

    `n_computed` tokens have keys and values in the slot, `n_cached` of them copied from the cache
    when the sequence was admitted. `room` is the maximum number of generated tokens.
    """

    request: Request
    sample: int
    slot: int
    room: int
    generator: random.Random
    arrival: int
    phase: Phase = Phase.READING
    n_cached: int = 0
    n_computed: int = field(init=False)
    tokens: list[int] = field(init=False)
    # Per prompt token; nothing comes before the first one.
    logprobs: list[float | None] = field(default_factory=lambda: [None], init=False)
    tops: list[list[tuple[int, float]]] = field(default_factory=lambda: [[]], init=False)
    _penalties: Penalties | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.n_computed = self.n_cached
        self.tokens = list(self.request.prompt)

    @property
    def n_prompt(self) -> int:
        return len(self.request.prompt)

    @property
    def n_generated(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def constraint(self) -> Constraint | None:
        """The limit on the tokens of this sample, if it has one."""
        return self.request.constraints[self.sample] if self.request.constraints else None

    def append(self, token_id: int) -> None:
        """Append a token that was drawn."""
        self.tokens.append(token_id)
        if self._penalties is not None:
            self._penalties.add(token_id)

    def constrained(self, logits: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
        """Return the logits plus the bias of the constraint. Raises what the constraint raises."""
        if self.constraint is None:
            return logits
        return logits + self.constraint.bias().to(logits.device)

    def score_prompt(self, start: int, logits: Float[Tensor, "chunk vocab"]) -> None:
        """Store the log probabilities of the prompt tokens that follow a chunk.

        The chunk begins at position `start`, and `logits` are the model's outputs for it. The last
        token of the prompt has no successor.
        """
        targets = self.request.prompt[start + 1 : start + 1 + len(logits)]
        logprobs = log_softmax(logits[: len(targets)])
        index = torch.tensor(targets, device=logprobs.device)[:, None]
        self.logprobs.extend(logprobs.gather(-1, index)[:, 0].tolist())
        self.tops.extend(most_likely(logprobs, [self.request.logprobs or 0] * len(targets)))

    def penalties(self, vocab_size: int, device: torch.device) -> Penalties:
        """Return the penalties of the tokens so far, counted from the first call on."""
        if self._penalties is None:
            # The beginning of an answer counts as generated.
            first = self.n_prompt - self.request.n_begun
            self._penalties = Penalties(self.request.prompt[:first], vocab_size, device)
            for token_id in self.request.prompt[first:]:
                self._penalties.add(token_id)
        return self._penalties


def draw_tokens(sequences: list[Sequence], logits: Float[Tensor, "sequences vocab"]) -> list[int]:
    """Return the next token of each sequence. Sequences with equal options are drawn together."""
    groups: dict[SamplingConfig, list[int]] = {}
    for index, sequence in enumerate(sequences):
        config = replace(sequence.request.sampling, max_tokens=1, seed=None)
        groups.setdefault(config, []).append(index)
    tokens = [0] * len(sequences)
    for config, members in groups.items():
        part = logits if len(members) == len(sequences) else logits[members]
        penalties = [
            sequences[i].penalties(part.shape[-1], part.device)
            for i in members
            if config.has_penalties
        ]
        processed = next_token_logits(part, config, penalties)
        ids = draw(processed, config, [sequences[i].generator for i in members])
        for i, token_id in zip(members, ids.tolist(), strict=True):
            tokens[i] = token_id
    return tokens


def scored_tokens(
    sequences: list[Sequence], ids: list[int], logits: Float[Tensor, "sequences vocab"]
) -> list[Token]:
    """Return the drawn tokens `ids`, with log probabilities for the requests that want them."""
    tokens = [Token(i, sequence.sample) for i, sequence in zip(ids, sequences, strict=True)]
    scored = [i for i, seq in enumerate(sequences) if seq.request.logprobs is not None]
    if scored:
        logprobs = log_softmax(logits[scored])
        index = torch.tensor([[ids[i]] for i in scored], device=logprobs.device)
        own = logprobs.gather(-1, index)[:, 0].tolist()
        tops = most_likely(logprobs, [sequences[i].request.logprobs or 0 for i in scored])
        for i, logprob, top in zip(scored, own, tops, strict=True):
            tokens[i] = replace(tokens[i], logprob=logprob, top=top)
    return tokens


def most_likely(
    logprobs: Float[Tensor, "rows vocab"], counts: list[int]
) -> list[list[tuple[int, float]]]:
    """Return the `counts[i]` most likely (token, log probability) pairs of row i, best first."""
    if not any(counts):
        return [[] for _ in counts]
    best = logprobs.topk(min(max(counts), logprobs.shape[-1]), dim=-1)
    return [
        list(zip(ids[:n], values[:n], strict=True))
        for ids, values, n in zip(best.indices.tolist(), best.values.tolist(), counts, strict=True)
    ]
