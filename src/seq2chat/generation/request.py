"""The requests that the engine runs, and the events that it emits for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from seq2chat.config import UserError
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.generation.tokens import Token


class QueueFull(UserError):
    """Raised when the maximum number of requests is already waiting."""


class ContextExceeded(UserError):
    """Raised for a text that is longer than the model's context."""


class DeadlinePassed(UserError):
    """Raised when a request was not done within its time."""

    def __init__(self) -> None:
        super().__init__("The request was not done within its time; ask for less, or later.")


@dataclass(frozen=True)
class PromptRead:
    """The event after a prompt was read, `cached` tokens of it from the cache.

    With `Request.prompt_logprobs`, `logprobs` holds the log probability of each prompt token after
    the tokens before it, and `tops` the most likely (token, log probability) pairs in its place.
    The first token has none.
    """

    cached: int
    logprobs: list[float | None]
    tops: list[list[tuple[int, float]]]


Event = Token | PromptRead | Exception


@runtime_checkable
class Constraint(Protocol):
    """A limit on the tokens of one sample, for example a grammar."""

    def bias(self) -> Float[Tensor, " vocab"]:
        """Return the numbers that are added to the logits, -inf for a token that is not allowed."""
        ...

    def accept(self, token: int) -> None:
        """Advance by a token that was drawn."""
        ...


@dataclass
class Request:
    """One prompt for the engine, with its options and its callbacks.

    `emit` is called in the engine's thread with each Event. An exception is always the last event.
    If `emit` raises, the request ends. `on_token` is called with each drawn token except end
    tokens, before it is emitted. It returns the text to attach to the token, and True to end the
    sample there. If it or a constraint raises, this request ends, and no other.

    `logprobs` is the number of most likely tokens to report per token. With 0 only the drawn token
    has a log probability, with None no log probabilities are computed. Requests share cached
    prompts only if they have the same `salt`. `deadline` is a time of `time.monotonic`. The last
    `n_begun` tokens of the prompt are the beginning of the answer, so penalties count them as
    generated.
    """

    prompt: list[int]
    sampling: SamplingConfig
    emit: Callable[[Event], object]
    end_tokens: Sequence[int] = ()
    n: int = 1
    on_token: Callable[[Token], tuple[str, bool]] | None = None
    logprobs: int | None = None
    prompt_logprobs: bool = False
    constraints: Sequence[Constraint] = ()
    salt: str = ""
    deadline: float | None = None
    n_begun: int = 0
    aborted: bool = field(default=False, init=False)

    def abort(self) -> None:
        """End the request before the engine's next step.

        The step in progress may still emit events of the request.
        """
        self.aborted = True

    def is_late(self, now: float) -> bool:
        """Return True if `now` is after the deadline."""
        return self.deadline is not None and now > self.deadline
