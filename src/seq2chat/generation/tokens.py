"""One generated token, and the rules for where a sequence ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Token:
    """One generated token of sample `sample` of prompt `prompt`.

    `logprob` is its natural log probability under the model itself. `drawn_logprob` is the one
    under the distribution that it was drawn from, with temperature and all, which PPO needs of
    rollouts. `top` lists the most likely (token, log probability) pairs under the model. The engine
    sets `logprob` and `top` for requests with `logprobs`, `decode.stream` sets both log
    probabilities.

    `text` is the text that the request's `on_token` hook returned. `finish` is set on the last
    token of a sample, see `finish_reason`.
    """

    id: int
    sample: int = 0
    prompt: int = 0
    logprob: float | None = None
    drawn_logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()
    text: str = ""
    finish: Finish | None = None


def room_left(n_prompt: int, max_tokens: int, context: int) -> int:
    """Return how many tokens may follow a prompt of `n_prompt` tokens."""
    return min(max_tokens, context - n_prompt)


def finish_reason(is_end: bool, n_generated: int, room: int) -> Finish | None:
    """Return why a sequence ends with its newest token, or None if it continues.

    "stop": the token is an end token, or a stop hook ended the sequence (`is_end`). "length": the
    sequence has no room left, because of `max_tokens` or the context.
    """
    if is_end:
        return "stop"
    return "length" if n_generated >= room else None
