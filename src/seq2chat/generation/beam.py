"""Beam search: the best of several hypotheses that grow side by side, for many inputs at once.

Written over `start`, `step` and `reorder`, so that it serves an RNN, a Transformer and a GPT alike.
Every further token lowers the log probability of a hypothesis; a length penalty divides it, so that
long ones may win.
"""

import math
from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seq2chat.config import check
from seq2chat.generation.decode import check_prompts, evaluating, log_softmax, prefill
from seq2chat.generation.protocols import GenerativeModel

LengthPenalty = Literal["gnmt", "average", "none"]

ALPHA = {"gnmt": 0.6, "average": 1.0, "none": 0.0}
# Tokens by which a translation may outgrow its source (Vaswani et al. 2017, section 6.1).
BEYOND_SOURCE = 50


@dataclass(frozen=True)
class Hypothesis:
    """One result: its tokens with the end token, the log probability of each, their sum divided by
    the length penalty, and whether it came to its end; one that did not was cut at the greatest
    length."""

    tokens: list[int]
    logprobs: list[float]
    score: float
    finished: bool


def penalty_at(n: int, kind: LengthPenalty, alpha: float) -> float:
    """Return what the log probability of `n` tokens, the end token included, is divided by.

    gnmt: ((5 + n) / 6)^α (Wu et al. 2016, equation 14, without coverage). average: n^α, which at α
    = 1 gives the mean of the tokens and otherwise is the `length_penalty` of `transformers`. none:
    1.
    """
    return {"gnmt": ((5 + n) / 6) ** alpha, "average": n**alpha, "none": 1.0}[kind]


@torch.inference_mode()
def beam_search(
    model: GenerativeModel,
    prompts: Sequence[Sequence[int]],
    end_token: int,
    sources: Sequence[Sequence[int]] | None = None,
    *,
    beam: int = 5,
    n_best: int = 1,
    length_penalty: LengthPenalty = "gnmt",
    alpha: float | None = None,
    min_length: int = 0,
    max_length: int = 0,
) -> list[list[Hypothesis]]:
    """Return the `n_best` hypotheses of each input, best first; fewer where there are no more.

    Of the beginnings of each length the `beam` most probable go on; one that ends while it is among
    them is finished (Sutskever et al. 2014, section 3.2). The search of an input is over when
    `beam` hypotheses are finished, or when no running one can come among the `n_best` any more: log
    probabilities only fall, so the best it can reach is its present one, divided by the penalty of
    the greatest length. Those cut at that length follow the finished ones.

    `prompts` and `sources` are those of `decode.stream`. `min_length` and `max_length` count
    generated tokens, the end token included; `max_length` 0 is 50 more than the source has or
    `min_length` is, and for a language model what its context leaves. `alpha` None is 0.6 for gnmt
    (Vaswani et al. 2017, section 6.1) and 1 for average. The model is in evaluation mode meanwhile.
    Raises UserError for options that make no sense, and as `stream` does.
    """
    _check_options(beam, n_best, length_penalty, alpha, min_length, max_length)
    check_prompts(prompts, model.context)
    penalty = partial(
        penalty_at, kind=length_penalty, alpha=ALPHA[length_penalty] if alpha is None else alpha
    )
    with evaluating(model):
        logits, state = prefill(model, prompts, sources)
        room = [model.context - len(prompt) for prompt in prompts]
        if max_length or sources is not None:
            wanted = [
                max_length or max(min_length, len(source)) + BEYOND_SOURCE
                for source in sources or prompts
            ]
            room = [min(most, length) for most, length in zip(room, wanted, strict=True)]
        check(
            min_length <= min(room),
            f"min_length is {min_length}, and an input here may have {min(room)} tokens; write at "
            "most that.",
        )
        results = [_Results(most, beam, n_best, penalty) for most in room]
        running = _Hypotheses.empty(len(prompts), model.device)
        for length in range(1, max(room) + 1):
            barred = end_token if length < min_length else None
            # At most `beam` of them end, so `beam` are left to go on.
            extended, parents = _extend(running, logits, 2 * beam, barred)
            ends = extended.tokens[:, :, -1] == end_token
            among = torch.arange(ends.shape[1], device=ends.device) < beam
            for index, tokens, logprobs, total in extended.listed(ends & among):
                results[index].add(tokens, logprobs, total, finished=True)
            # Where fewer than `beam` are left, one that ended fills the row, as impossible.
            extended.total.masked_fill_(ends, -math.inf)
            goes_on = ends.int().argsort(dim=1, stable=True)[:, :beam]
            extended, parents = extended.pick(goes_on), parents.gather(1, goes_on)

            inputs, best = extended.inputs.tolist(), extended.total.amax(dim=1).tolist()
            cut = torch.tensor(
                [results[index].room == length for index in inputs], device=ends.device
            )
            for index, tokens, logprobs, total in extended.listed(cut[:, None].expand_as(goes_on)):
                results[index].add(tokens, logprobs, total, finished=False)
            is_open = [
                results[index].is_open(length, total)
                for index, total in zip(inputs, best, strict=True)
            ]
            if not any(is_open):
                break
            keep = torch.tensor(is_open, device=ends.device).nonzero()[:, 0]
            rows = (keep[:, None] * running.total.shape[1] + parents[keep]).flatten()
            if not torch.equal(rows, torch.arange(len(logits), device=rows.device)):
                state.reorder(rows)
            running = extended.keep(keep)
            logits, state = model.step(running.tokens[:, :, -1].flatten()[:, None], state)
            logits = logits[:, -1]
    return [result.ended[:n_best] for result in results]


@dataclass
class _Results:
    """The search of one input: its greatest length, and the hypotheses that have ended, best
    first."""

    room: int
    beam: int
    n_best: int
    penalty: Callable[[int], float]
    ended: list[Hypothesis] = field(default_factory=list)

    def add(self, tokens: list[int], logprobs: list[float], total: float, finished: bool) -> None:
        hypothesis = Hypothesis(tokens, logprobs, total / self.penalty(len(tokens)), finished)
        insort(self.ended, hypothesis, key=lambda h: (not h.finished, -h.score))

    def is_open(self, length: int, best: float) -> bool:
        """Whether running hypotheses of `length` tokens, at most `best` their log probability, may
        still count."""
        if length == self.room or len(self.ended) >= self.beam or best == -math.inf:
            return False
        return (
            len(self.ended) < self.n_best
            or best / self.penalty(self.room) > self.ended[self.n_best - 1].score
        )


@dataclass
class _Hypotheses:
    """Hypotheses of one length, equally many (`width`) for each input. An impossible one has log
    probability -inf."""

    inputs: Int[Tensor, " n_inputs"]
    total: Float[Tensor, "n_inputs width"]
    tokens: Int[Tensor, "n_inputs width length"]
    logprobs: Float[Tensor, "n_inputs width length"]

    @classmethod
    def empty(cls, n_inputs: int, device: torch.device) -> "_Hypotheses":
        """One empty hypothesis for each input."""
        total = torch.zeros(n_inputs, 1, dtype=torch.float64, device=device)
        tokens = torch.empty(n_inputs, 1, 0, dtype=torch.int64, device=device)
        return cls(torch.arange(n_inputs, device=device), total, tokens, tokens.double())

    def pick(self, columns: Int[Tensor, "n_inputs new_width"]) -> "_Hypotheses":
        """Return the hypotheses `columns` of each input."""
        tokens, logprobs = (
            part.take_along_dim(columns[:, :, None], 1) for part in (self.tokens, self.logprobs)
        )
        return _Hypotheses(self.inputs, self.total.gather(1, columns), tokens, logprobs)

    def keep(self, rows: Int[Tensor, " fewer_inputs"]) -> "_Hypotheses":
        """Return the hypotheses of the inputs in `rows`."""
        return _Hypotheses(
            self.inputs[rows], self.total[rows], self.tokens[rows], self.logprobs[rows]
        )

    def listed(
        self, which: Bool[Tensor, "n_inputs width"]
    ) -> Iterator[tuple[int, list[int], list[float], float]]:
        """Yield (input, tokens, log probabilities, their sum) of those possible among `which`."""
        rows, columns = (which & (self.total > -math.inf)).nonzero(as_tuple=True)
        parts = (
            self.inputs[rows],
            *(part[rows, columns] for part in (self.tokens, self.logprobs, self.total)),
        )
        yield from zip(*(part.tolist() for part in parts), strict=True)


def _extend(
    running: _Hypotheses, logits: Float[Tensor, "rows vocab"], n_best: int, barred: int | None
) -> tuple[_Hypotheses, Int[Tensor, "n_inputs new_width"]]:
    """Return the `n_best` likeliest extensions by one token of each input's hypotheses, best first,
    and whose they are.

    The token `barred` is not taken; its probability stays its own.
    """
    n_inputs = len(running.inputs)
    logprobs = log_softmax(logits)
    if barred is not None:
        logprobs[:, barred] = -math.inf
    # Each row can give `n_best` at most, so that nothing as large as the vocabulary is touched
    # again.
    likeliest, tokens = logprobs.topk(min(n_best, logprobs.shape[1]), dim=-1)
    logprobs = likeliest.double().view(n_inputs, -1)
    totals = running.total.repeat_interleave(likeliest.shape[1], dim=1) + logprobs
    total, index = totals.topk(min(n_best, totals.shape[1]), dim=1)
    parents = index // likeliest.shape[1]
    before = running.pick(parents)
    tokens = torch.cat(
        [before.tokens, tokens.view(n_inputs, -1).gather(1, index)[:, :, None]], dim=2
    )
    logprobs = torch.cat([before.logprobs, logprobs.gather(1, index)[:, :, None]], dim=2)
    return _Hypotheses(running.inputs, total, tokens, logprobs), parents


def _check_options(
    beam: int,
    n_best: int,
    length_penalty: LengthPenalty,
    alpha: float | None,
    min_length: int,
    max_length: int,
) -> None:
    check(beam > 0, f"beam is {beam}; write a positive number, 1 is greedy.")
    check(0 < n_best <= beam, f"n_best is {n_best}; write a number from 1 to the beam of {beam}.")
    check(
        alpha is None or 0 <= alpha < math.inf,
        f"alpha is {alpha}; write 0 (no penalty) or a positive number.",
    )
    check(
        not alpha or length_penalty != "none",
        "alpha is the strength of a length penalty; leave it out with none.",
    )
    check(min_length >= 0, f"min_length is {min_length}; write 0 or a positive number.")
    check(
        max_length >= 0,
        f"max_length is {max_length}; write 0 (by the source's length) or a positive number.",
    )
    check(
        not max_length or min_length <= max_length,
        f"min_length {min_length} is above max_length {max_length}; write at most that.",
    )
