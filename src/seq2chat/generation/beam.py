"""Beam search for many inputs at once.

It only uses `start`, `step` and `reorder`, so it runs an RNN, a Transformer and a GPT alike. Every
further token lowers the log probability of a hypothesis. Dividing by a length penalty lets long
hypotheses win, too.
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
from seq2chat.device import widest_dtype
from seq2chat.generation.decode import check_prompts, evaluating, log_softmax, prefill
from seq2chat.generation.protocols import GenerativeModel
from seq2chat.generation.tokens import room_left

LengthPenalty = Literal["gnmt", "average", "none"]

ALPHA = {"gnmt": 0.6, "average": 1.0, "none": 0.0}
# Tokens by which a translation may be longer than its source (Vaswani et al. 2017, section 6.1).
BEYOND_SOURCE = 50


@dataclass(frozen=True)
class Hypothesis:
    """One result: its tokens with the end token, and the log probability of each.

    `score` is their sum divided by the length penalty. `finished` is False if the hypothesis was
    cut at the maximum length.
    """

    tokens: list[int]
    logprobs: list[float]
    score: float
    finished: bool


@dataclass(frozen=True)
class Candidate:
    """One extension that a step of the search has considered for input number `input`.

    `total` is the sum of the log probabilities of `tokens`. One that is `kept` is extended by the
    next step, and one that is `ended` is a result.
    """

    input: int
    tokens: list[int]
    total: float
    kept: bool
    ended: bool


def penalty_at(n: int, kind: LengthPenalty, alpha: float) -> float:
    """Return the divisor for the log probability of `n` tokens, the end token included.

    gnmt: ((5 + n) / 6)^α (Wu et al. 2016, equation 14, without coverage). average: n^α, which is
    `length_penalty` in `transformers`, and gives the mean over the tokens at α = 1. none: 1.
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
    observe: Callable[[list[Candidate]], object] | None = None,
) -> list[list[Hypothesis]]:  # the options are keywords of the public API
    """Return the `n_best` hypotheses per input, best first, or fewer if there are no more.

    At each length the `beam` most probable hypotheses continue, and one that ends among them is
    finished (Sutskever et al. 2014, section 3.2). The search of an input is over when `beam`
    hypotheses are finished, or when no running one can reach the `n_best` any more: log
    probabilities only fall, so its best possible score is the current one divided by the penalty of
    the maximum length. Hypotheses that were cut at that length come after the finished ones.

    `prompts` and `sources` are as in `decode.stream`. `min_length` and `max_length` count generated
    tokens, the end token included. `max_length` 0 means 50 more than the source or
    `min_length`, and for a language model the room in its context. `alpha` None means 0.6 for gnmt
    (Vaswani et al. 2017, section 6.1) and 1 for average. `observe` is called with the candidates of
    each step, best first. The model is in evaluation mode during the call. Raises UserError for
    invalid options, and as `stream` does.
    """
    _check_options(
        beam=beam,
        n_best=n_best,
        length_penalty=length_penalty,
        alpha=alpha,
        min_length=min_length,
        max_length=max_length,
    )
    check_prompts(prompts, model.context)
    penalty = partial(
        penalty_at, kind=length_penalty, alpha=ALPHA[length_penalty] if alpha is None else alpha
    )
    with evaluating(model):
        logits, state = prefill(model, prompts, sources)
        limits = [max_length or model.context] * len(prompts)
        if sources is not None and not max_length:
            limits = [max(min_length, len(source)) + BEYOND_SOURCE for source in sources]
        room = [
            room_left(len(prompt), limit, model.context)
            for prompt, limit in zip(prompts, limits, strict=True)
        ]
        check(
            min_length <= min(room),
            f"min_length is {min_length}, but an input has room for {min(room)} tokens only; write "
            "at most that.",
        )
        results = [_Results(input_room, beam, n_best, penalty) for input_room in room]
        running = _Hypotheses.empty(len(prompts), model.device)
        for length in range(1, max(room) + 1):
            barred = end_token if length < min_length else None
            # At most `beam` of the 2 · beam best end, so at least `beam` are left to continue.
            extended, parents = _extend(running, logits, 2 * beam, barred)
            ends = extended.tokens[:, :, -1] == end_token
            is_in_beam = torch.arange(ends.shape[1], device=ends.device) < beam
            for index, tokens, logprobs, total in extended.listed(ends & is_in_beam):
                results[index].add(tokens, logprobs, total, finished=True)
            if observe is not None:
                observe(_candidates(extended, ends, beam))
            # If fewer than `beam` are left, ended ones fill the row and are marked as impossible.
            extended.total.masked_fill_(ends, -math.inf)
            continuing = ends.int().argsort(dim=1, stable=True)[:, :beam]
            extended = extended.pick(continuing)
            parents = parents.gather(1, continuing)

            inputs = extended.inputs.tolist()
            best = extended.total.amax(dim=1).tolist()
            is_cut = torch.tensor(
                [results[index].room == length for index in inputs], device=ends.device
            )
            is_cut = is_cut[:, None].expand_as(continuing)
            for index, tokens, logprobs, total in extended.listed(is_cut):
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
    """The ended hypotheses of one input, best first. `room` is the maximum length."""

    room: int
    beam: int
    n_best: int
    penalty: Callable[[int], float]
    ended: list[Hypothesis] = field(default_factory=list)

    def add(self, tokens: list[int], logprobs: list[float], total: float, finished: bool) -> None:
        hypothesis = Hypothesis(tokens, logprobs, total / self.penalty(len(tokens)), finished)
        insort(self.ended, hypothesis, key=lambda h: (not h.finished, -h.score))

    def is_open(self, length: int, best: float) -> bool:
        """Return True if a running hypothesis may still become a result.

        The running ones have `length` tokens and log probabilities of at most `best`.
        """
        if length == self.room or len(self.ended) >= self.beam or best == -math.inf:
            return False
        return (
            len(self.ended) < self.n_best
            or best / self.penalty(self.room) > self.ended[self.n_best - 1].score
        )


@dataclass
class _Hypotheses:
    """Hypotheses of one length, `width` per input.

    One that is impossible, for example because it has ended, has the total log probability -inf.
    """

    inputs: Int[Tensor, " n_inputs"]
    total: Float[Tensor, "n_inputs width"]
    tokens: Int[Tensor, "n_inputs width length"]
    logprobs: Float[Tensor, "n_inputs width length"]

    @classmethod
    def empty(cls, n_inputs: int, device: torch.device) -> "_Hypotheses":
        """Return one empty hypothesis per input."""
        total = torch.zeros(n_inputs, 1, dtype=widest_dtype(device), device=device)
        tokens = torch.empty(n_inputs, 1, 0, dtype=torch.int64, device=device)
        return cls(torch.arange(n_inputs, device=device), total, tokens, tokens.to(total.dtype))

    def pick(self, columns: Int[Tensor, "n_inputs new_width"]) -> "_Hypotheses":
        """Return the hypotheses `columns` of each input."""
        index = columns[:, :, None]
        return _Hypotheses(
            self.inputs,
            self.total.gather(1, columns),
            self.tokens.take_along_dim(index, 1),
            self.logprobs.take_along_dim(index, 1),
        )

    def keep(self, rows: Int[Tensor, " fewer_inputs"]) -> "_Hypotheses":
        """Return the hypotheses of the inputs in `rows`."""
        return _Hypotheses(
            self.inputs[rows], self.total[rows], self.tokens[rows], self.logprobs[rows]
        )

    def listed(
        self, mask: Bool[Tensor, "n_inputs width"]
    ) -> Iterator[tuple[int, list[int], list[float], float]]:
        """Yield (input, tokens, log probabilities, their sum) of the possible ones in `mask`."""
        rows, columns = (mask & (self.total > -math.inf)).nonzero(as_tuple=True)
        yield from zip(
            self.inputs[rows].tolist(),
            self.tokens[rows, columns].tolist(),
            self.logprobs[rows, columns].tolist(),
            self.total[rows, columns].tolist(),
            strict=True,
        )


def _extend(
    running: _Hypotheses, logits: Float[Tensor, "rows vocab"], n_best: int, barred: int | None
) -> tuple[_Hypotheses, Int[Tensor, "n_inputs new_width"]]:
    """Return each input's `n_best` most probable extensions by one token, best first.

    The second result is the column of the hypothesis that each one extends. The token `barred` is
    never used, and its probability is not given to the others.
    """
    n_inputs = len(running.inputs)
    logprobs = log_softmax(logits)
    if barred is not None:
        logprobs[:, barred] = -math.inf
    # A row can contribute at most `n_best`. Reducing each row first avoids a second pass over
    # something as large as the vocabulary.
    row_best, tokens = logprobs.topk(min(n_best, logprobs.shape[1]), dim=-1)
    logprobs = row_best.double().view(n_inputs, -1)
    totals = running.total.repeat_interleave(row_best.shape[1], dim=1) + logprobs
    total, index = totals.topk(min(n_best, totals.shape[1]), dim=1)
    parents = index // row_best.shape[1]
    prefixes = running.pick(parents)
    new_tokens = tokens.view(n_inputs, -1).gather(1, index)
    new_logprobs = logprobs.gather(1, index)
    tokens = torch.cat([prefixes.tokens, new_tokens[:, :, None]], dim=2)
    logprobs = torch.cat([prefixes.logprobs, new_logprobs[:, :, None]], dim=2)
    return _Hypotheses(running.inputs, total, tokens, logprobs), parents


def _candidates(
    extended: _Hypotheses, ends: Bool[Tensor, "n_inputs width"], beam: int
) -> list[Candidate]:
    """Return the extensions of all inputs, best first. The `beam` best that do not end are kept."""
    # The number of candidates up to each that do not end.
    n_open = (~ends).cumsum(1)
    is_kept = ~ends & (n_open <= beam)
    is_ended = ends & (torch.arange(ends.shape[1], device=ends.device) < beam)
    return [
        Candidate(index, tokens, total, kept, ended)
        for (index, tokens, _, total), kept, ended in zip(
            extended.listed(torch.ones_like(ends)),
            is_kept[extended.total > -math.inf].tolist(),
            is_ended[extended.total > -math.inf].tolist(),
            strict=True,
        )
    ]


def _check_options(
    beam: int,
    n_best: int,
    length_penalty: LengthPenalty,
    alpha: float | None,
    min_length: int,
    max_length: int,
) -> None:
    check(beam > 0, f"beam is {beam}; write a positive number (1 is greedy).")
    check(0 < n_best <= beam, f"n_best is {n_best}; write a number from 1 to the beam of {beam}.")
    check(
        alpha is None or 0 <= alpha < math.inf,
        f"alpha is {alpha}; write 0 (no penalty) or a positive number.",
    )
    check(
        not alpha or length_penalty != "none",
        "alpha has no effect with length_penalty none; leave it out.",
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
