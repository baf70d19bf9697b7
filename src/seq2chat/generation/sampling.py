"""From logits to a token: pure functions, and the options that combine them."""

import math
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seq2chat.config import check

# Below this the most likely token is drawn anyway, and the quotients would overflow float32.
MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True)
class SamplingConfig:
    """Options for drawing the next token. The defaults draw from the model's own distribution.

    >>> SamplingConfig(top_p=1.5)
    Traceback (most recent call last):
    seq2chat.config.errors.UserError: top_p is 1.5; write a number above 0 and at most 1 (off).
    """

    max_tokens: Annotated[int, "maximum number of tokens to generate"] = 256
    temperature: Annotated[
        float, "divides the logits; lower values are more deterministic, 0 is greedy"
    ] = 1.0
    top_k: Annotated[int, "keep the k most likely tokens; 0 keeps all"] = 0
    top_p: Annotated[
        float, "keep the most likely tokens that together have this probability; 1 keeps all"
    ] = 1.0
    min_p: Annotated[
        float,
        "keep tokens with at least this share of the largest probability; 0 keeps all",
    ] = 0.0
    repetition_penalty: Annotated[
        float, "above 1, tokens seen before become less likely; 1 is off"
    ] = 1.0
    seed: Annotated[int | None, "the same seed draws the same tokens; default: random"] = None
    presence_penalty: Annotated[
        float, "subtracted from the logit of a token generated before; 0 is off"
    ] = 0.0
    frequency_penalty: Annotated[
        float, "subtracted each time that a token was generated before; 0 is off"
    ] = 0.0
    logit_bias: Annotated[
        tuple[tuple[int, float], ...], "(token, number added to its logit) pairs"
    ] = ()

    def __post_init__(self) -> None:
        check(self.max_tokens > 0, f"max_tokens is {self.max_tokens}; write a positive number.")
        check(
            0 <= self.temperature < math.inf,
            f"temperature is {self.temperature}; write 0 (greedy) or a positive number.",
        )
        check(self.top_k >= 0, f"top_k is {self.top_k}; write 0 (off) or a positive number.")
        check(
            0 < self.top_p <= 1,
            f"top_p is {self.top_p}; write a number above 0 and at most 1 (off).",
        )
        check(0 <= self.min_p <= 1, f"min_p is {self.min_p}; write a number between 0 (off) and 1.")
        check(
            0 < self.repetition_penalty < math.inf,
            f"repetition_penalty is {self.repetition_penalty}; write a positive number, 1 is off.",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            check(
                math.isfinite(getattr(self, name)),
                f"{name} is {getattr(self, name)}; write a number, 0 is off.",
            )
        for token, bias in self.logit_bias:
            check(
                token >= 0 and not math.isnan(bias),
                f"logit_bias has {bias} for token {token}; write (id, number).",
            )

    @property
    def has_penalties(self) -> bool:
        """True if the distribution depends on earlier tokens and not only on the logits."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )


class Penalties:
    """The earlier tokens of one row, as the penalties need them.

    `seen` (vocab,) marks the tokens of prompt and answer, for the repetition penalty. `counts`
    (vocab,) counts the tokens of the answer, for the presence and frequency penalties.
    """

    def __init__(self, prompt: Sequence[int], vocab_size: int, device: torch.device) -> None:
        self.seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.counts = torch.zeros(vocab_size, device=device)
        self.seen[list(prompt)] = True

    def add(self, token: int) -> None:
        """Count a generated token."""
        self.seen[token] = True
        self.counts[token] += 1


def penalize(
    logits: Float[Tensor, "batch vocab"], config: SamplingConfig, penalties: Sequence[Penalties]
) -> Float[Tensor, "batch vocab"]:
    """Return the logits after the penalties of `config`, given each row's earlier tokens."""
    if config.repetition_penalty != 1:
        logits = penalize_repetition(
            logits, torch.stack([p.seen for p in penalties]), config.repetition_penalty
        )
    if config.presence_penalty != 0 or config.frequency_penalty != 0:
        logits = penalize_counts(
            logits,
            torch.stack([p.counts for p in penalties]),
            config.presence_penalty,
            config.frequency_penalty,
        )
    return logits


def penalize_counts(
    logits: Float[Tensor, "batch vocab"],
    counts: Float[Tensor, "batch vocab"],
    presence: float,
    frequency: float,
) -> Float[Tensor, "batch vocab"]:
    """Subtract `presence` once and `frequency` per occurrence from the logits of generated tokens.

    This is how OpenAI's API defines its penalties.
    """
    return logits - presence * (counts > 0) - frequency * counts


def penalize_repetition(
    logits: Float[Tensor, "batch vocab"], seen: Bool[Tensor, "batch vocab"], penalty: float
) -> Float[Tensor, "batch vocab"]:
    """Divide the positive logits of seen tokens by `penalty`, and multiply the negative ones.

    Keskar et al. 2019, CTRL, section 4.1, in the form that lowers logits of either sign.
    """
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalized, logits)


def keep_top_k(logits: Float[Tensor, "batch vocab"], k: int) -> Float[Tensor, "batch vocab"]:
    """Set all but the `k` largest logits to -inf (Fan et al. 2018, section 5.2).

    Ties with the k-th logit stay.

    >>> keep_top_k(torch.tensor([[1.0, 3.0, 2.0]]), k=2)
    tensor([[-inf, 3., 2.]])
    """
    if k >= logits.shape[-1]:
        return logits
    least = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < least, -math.inf)


def keep_top_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """Set all logits outside the nucleus to -inf (Holtzman et al. 2020, section 3.1).

    The nucleus is the smallest set of most likely tokens whose probabilities sum to at least `p`.

    >>> keep_top_p(torch.tensor([[0.6, 0.3, 0.1]]).log(), p=0.8).exp()
    tensor([[0.6000, 0.3000, 0.0000]])
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.double().softmax(dim=-1)
    mass_before = probabilities.cumsum(dim=-1) - probabilities
    outside = torch.zeros_like(mass_before, dtype=torch.bool).scatter(-1, order, mass_before >= p)
    return logits.masked_fill(outside, -math.inf)


def keep_min_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """Set to -inf the logits of tokens less probable than `p` times the most likely token.

    Nguyen et al. 2024, min-p, section 3.
    """
    least = logits.max(dim=-1, keepdim=True).values + math.log(p)
    return logits.masked_fill(logits < least, -math.inf)


def next_token_logits(
    logits: Float[Tensor, "batch vocab"],
    config: SamplingConfig,
    penalties: Sequence[Penalties] = (),
) -> Float[Tensor, "batch vocab"]:
    """Return the logits of the distribution that `config` draws from.

    The steps are, in this order: penalties, bias, temperature, top-k, top-p, min-p. `penalties`
    holds each row's earlier tokens. Temperature 0 takes the largest logit, so only penalties and
    bias apply.
    """
    if penalties:
        logits = penalize(logits, config, penalties)
    if config.logit_bias:
        tokens, biases = zip(*config.logit_bias, strict=True)
        bias = torch.tensor(biases, dtype=logits.dtype, device=logits.device)
        logits = logits.index_add(
            -1, torch.tensor(tokens, device=logits.device), bias.expand(len(logits), -1)
        )
    if config.temperature == 0:
        return logits
    logits = logits / max(config.temperature, MIN_TEMPERATURE)
    if config.top_k > 0:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p > 0:
        logits = keep_min_p(logits, config.min_p)
    return logits


def sample(
    logits: Float[Tensor, "batch vocab"],
    config: SamplingConfig,
    generators: Sequence[random.Random],
    penalties: Sequence[Penalties] = (),
) -> Int[Tensor, " batch"]:
    """Return one token per row, see `next_token_logits` and `draw`."""
    return draw(next_token_logits(logits, config, penalties), config, generators)


def draw(
    logits: Float[Tensor, "batch vocab"],
    config: SamplingConfig,
    generators: Sequence[random.Random],
) -> Int[Tensor, " batch"]:
    """Return one token per row, given the result of `next_token_logits`.

    A token is drawn by inverting the cumulative distribution at one uniform number. The number is
    from the row's own generator, so a draw does not depend on the other rows. Temperature 0 takes
    the most likely token.
    """
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    uniform = torch.tensor(
        [[generator.random()] for generator in generators], dtype=torch.float64
    ).to(logits.device)
    # Rounding must not move the draw to the very end, where tokens of probability zero may be.
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point, right=True)[:, 0]


def row_generators(
    seed: int | None, n_rows: int, numbers: Sequence[int] | None = None
) -> list[random.Random]:
    """Return one independent generator per row, each a function of (seed, row) alone.

    Of a part of a larger batch, `numbers` are the places of its rows there.

    With seed None, a random seed is used.
    """
    seed = secrets.randbits(64) if seed is None else seed
    return [random.Random(f"{seed}/{row}") for row in numbers or range(n_rows)]
