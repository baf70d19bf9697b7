"""What is asked of the engine, and what it tells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from seq2chat.config import UserError
from seq2chat.generation.sampling import SamplingConfig

Finish = Literal["stop", "length"]


class QueueFull(UserError):
    """As many requests are waiting as may."""


class ContextExceeded(UserError):
    """Raised for a text that is longer than the model's context."""


class DeadlinePassed(UserError):
    """A request was not done in the time it had."""


@dataclass(frozen=True)
class Token:
    """One generated token of sample `sample`. `logprob` is its log probability under the model
    itself, `drawn_logprob` under the distribution that it was drawn from, as PPO needs of rollouts,
    and `top` the likeliest (token, log probability) under the model; they are None and empty unless
    asked for. `finish` is set on the last one of a sample."""

    sample: int
    id: int
    logprob: float | None
    drawn_logprob: float | None
    top: list[tuple[int, float]]
    finish: Finish | None


@dataclass(frozen=True)
class Read:
    """A prompt was read, `cached` tokens of it from the cache. `logprobs` and `tops` tell, if asked
    for, how probable each of its tokens was after those before it, and what was likeliest instead;
    nothing comes before the first one."""

    cached: int
    logprobs: list[float | None]
    tops: list[list[tuple[int, float]]]


Event = Token | Read | Exception


@runtime_checkable
class Constraint(Protocol):
    """What a sample may say, such as a grammar: `bias` is added to the logits, and `accept` is told
    what was drawn."""

    def bias(self) -> Float[Tensor, " vocab"]: ...
    def accept(self, token: int) -> None: ...


@dataclass
class Request:
    """What is asked of the engine, and whom it tells.

    `emit` is called in the engine's thread with each Event; an exception is the last one. If `emit`
    raises, the request ends. `stop(token)` is asked of each Token and ends its sample if true; what
    it or a constraint raises ends this request, and no other. `logprobs` is how many of the
    likeliest tokens are told beside each, None being no log probabilities; those of the
    distribution that is drawn from cost as much again, and are told where `drawn_logprobs` asks for
    them. Prompts are shared through the cache among requests of one `salt` only. `deadline` is a
    time of `time.monotonic`. The last `n_begun` tokens of the prompt are the beginning of the
    answer, which penalties count as generated.
    """

    prompt: list[int]
    sampling: SamplingConfig
    emit: Callable[[Event], object]
    end_tokens: Sequence[int] = ()
    n: int = 1
    stop: Callable[[Token], bool] | None = None
    logprobs: int | None = None
    prompt_logprobs: bool = False
    constraints: Sequence[Constraint] = ()
    salt: str = ""
    deadline: float | None = None
    drawn_logprobs: bool = False
    n_begun: int = 0
    aborted: bool = field(default=False, init=False)

    def abort(self) -> None:
        """End the request before the engine's next step. The step in progress may still emit its
        events."""
        self.aborted = True
