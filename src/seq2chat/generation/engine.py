"""Continuous batching: many requests share one model, and each gets the tokens that it would get
alone.

A step of the engine admits who waits, gives every decoding row its next token in one pass over the
weights, and reads a few chunks of the prompts that are not read yet, so that a long prompt never
holds the others up (Yu et al. 2022, Orca; Agrawal et al. 2023, Sarathi). Row i of a pass is slot i
of the cache: running rows stand in front without a gap, and the slots behind them remember the
prompts of finished rows for those that begin alike.

Prompts are read in chunks of one size at fixed places, and on CPUs no kernel here lets one row
change another's bits. So a prompt has the same keys and values to the last bit whether it is read
at once, between others, or found in the cache; on a GPU, to rounding.
"""

import itertools
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.config import UserError, check
from seq2chat.generation.decode import check_prompts, log_softmax
from seq2chat.generation.request import DeadlinePassed, Event, QueueFull, Read, Request, Token
from seq2chat.generation.sampling import row_generators
from seq2chat.generation.sequence import Kept, Phase, Row, draw_tokens, likeliest, n_shared_tokens
from seq2chat.generation.token_pass import TokenPass, least_rows
from seq2chat.models.gpt import GPT
from seq2chat.nn.slots import SlotCache

CHUNK = 32  # tokens of a prompt read in one pass
KEYS = 64  # a pass of decoding sees a multiple of so many keys


@dataclass
class Statistics:
    """What the engine has done so far."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    aborted: int = 0
    steps: int = 0


class Engine:
    """Runs requests on one GPT, up to `n_slot` samples at a time; further ones wait, `max_waiting`
    requests at most.

    `submit` and `Request.abort` may be called from any thread, `step` from one only. `budget` is
    how many tokens a step reads and writes together, at least one chunk of a prompt.
    """

    def __init__(
        self, model: GPT, n_slot: int = 16, max_waiting: int = 256, budget: int = 128
    ) -> None:
        check(n_slot > 0, f"The engine has {n_slot} slots; give it at least one.")
        config, dtype = model.eval().config, next(model.parameters()).dtype
        self.model, self.n_slot, self.max_waiting, self.budget = model, n_slot, max_waiting, budget
        # On CPUs the products of attention are faster in float32, and these are free of rounding.
        wide = torch.promote_types(dtype, torch.float32) if model.device.type == "cpu" else dtype
        room = _whole(config.context, KEYS)
        n_row = _whole(n_slot, least_rows(dtype))
        self.cache = SlotCache(
            config.n_layer, n_row, config.n_kv_head, room, config.d_head, wide, model.device
        )
        self.statistics = Statistics()
        self._read_tokens = TokenPass(model, self.cache)
        self._rows: list[Row] = []
        # A request that is out of the queue, but may not have its rows yet.
        self._admitted: Request | None = None
        self._kept = [Kept()] * n_slot
        self._clock = itertools.count(1)
        self._waiting: deque[Request] = deque()
        self._lock = threading.Lock()

    @property
    def n_running(self) -> int:
        """Samples that hold a slot."""
        return len(self._rows)

    @property
    def n_waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._rows or self._waiting)

    def submit(self, request: Request) -> Request:
        """Let `request` run as soon as there is room, and return it.

        Raises UserError for a prompt that is empty, too long or of unknown tokens and for more
        samples than slots, and QueueFull when too many wait.
        """
        check_prompts([request.prompt], self.model.context)
        last = self.model.config.vocab_size - 1
        check(
            min(request.prompt) >= 0 and max(request.prompt) <= last,
            f"The prompt has a token that is none of the model's, which go from 0 to {last}.",
        )
        check(
            all(token <= last for token, _ in request.sampling.logit_bias),
            f"logit_bias has a token that is none of the model's, which go from 0 to {last}.",
        )
        check(
            0 < request.n <= self.n_slot,
            f"n is {request.n}; write a number from 1 to {self.n_slot}.",
        )
        with self._lock:
            if len(self._waiting) >= self.max_waiting:
                raise QueueFull(
                    f"{self.max_waiting} requests are waiting already; try again later."
                )
            self._waiting.append(request)
        return request

    def fail(self, error: Exception) -> None:
        """End all running and waiting requests with `error`."""
        with self._lock:
            waiting = list(self._waiting)
            self._waiting.clear()
        for request in waiting:
            self._emit(request, error)
        self.rebuild(error)

    def rebuild(self, error: Exception) -> None:
        """Start over with an empty cache, after a step that failed in the middle.

        Running requests end with `error`. Waiting requests stay in the queue.
        """
        running = [*(row.request for row in self._rows), self._admitted]
        requests = {id(request): request for request in running if request is not None}
        for row in self._rows:
            row.phase = Phase.ENDED
        self._rows.clear()
        self._admitted = None
        self._kept = [Kept()] * self.n_slot
        for request in requests.values():
            self._emit(request, error)
        self.cache.clear()  # the last, because it may fail where memory is short

    def run(self) -> None:
        """Step until nothing is left to do."""
        while self.has_work:
            self.step()

    @torch.no_grad()
    def step(self) -> None:
        """Give every decoding row its next token, and read more of the prompts, within the
        budget."""
        self.statistics.steps += 1
        self._drop()
        self._admit()
        if decoding := [row for row in self._rows if row.phase is Phase.DECODING]:
            self._advance(decoding, self._decode(decoding))
        n_chunks = max(1, (self.budget - len(decoding)) // CHUNK)
        while n_chunks > 0 and (unread := self._next_to_read(n_chunks)):
            n_chunks -= len(unread)
            self._read_chunks(unread)

    # Who runs, and where.

    def _drop(self) -> None:
        """End the requests that were aborted and those that are late.

        Nothing else in a step reads `aborted`, so a client that leaves in the middle of a step
        changes nothing in it.
        """
        now = time.monotonic()
        with self._lock:
            late = [
                r
                for r in self._waiting
                if r.aborted or (r.deadline is not None and now > r.deadline)
            ]
            for request in late:
                self._waiting.remove(request)
        running = {id(row.request): row.request for row in self._rows}
        late += [
            r
            for r in running.values()
            if r.aborted or (r.deadline is not None and now > r.deadline)
        ]
        for request in late:
            self.statistics.aborted += 1
            self._release_all(request)
            if not request.aborted:
                error = DeadlinePassed(
                    "The request was not done within its time; ask for less, or later."
                )
                self._emit(request, error)

    def _admit(self) -> None:
        """Give slots to those who wait, in their order, while there are enough."""
        while True:
            with self._lock:
                if not self._waiting or self._waiting[0].n > self.n_slot - len(self._rows):
                    return
                request = self._admitted = self._waiting.popleft()
            room = min(request.sampling.max_tokens, self.model.context - len(request.prompt))
            for sample, generator in enumerate(row_generators(request.sampling.seed, request.n)):
                cached = self._take_slot(request, reuse=sample == 0 and not request.prompt_logprobs)
                slot, arrival = len(self._rows), next(self._clock)
                phase = Phase.READING if sample == 0 else Phase.WAITING
                row = Row(
                    request,
                    sample,
                    slot,
                    room,
                    generator,
                    list(request.prompt),
                    arrival,
                    phase,
                    cached,
                    cached,
                )
                self._rows.append(row)
                self.statistics.cached_tokens += cached
            self._admitted = None

    def _take_slot(self, request: Request, reuse: bool) -> int:
        """Empty the first slot behind the running ones, put there what is remembered of the prompt,
        and return how many tokens that is. What the slot held moves to the one that was left alone
        the longest."""
        slot = len(self._rows)
        held = [*(row.remembered() for row in self._rows), *self._kept[slot:]]
        shared = [n_shared_tokens(kept, request, CHUNK) if reuse else 0 for kept in held]
        source = max(range(self.n_slot), key=lambda i: shared[i])
        free = range(slot, self.n_slot)
        if source in free and shared[source] == len(held[source].prompt) // CHUNK * CHUNK > 0:
            victim = source  # the prompt goes on where this one ended
        else:
            victim = min(free, key=lambda i: (i == source and shared[source] > 0, held[i].since))
        if victim != slot:
            self.cache.swap(slot, victim, max(len(held[slot].prompt), len(held[victim].prompt)))
            self._kept[victim] = held[slot]
            source = {slot: victim, victim: slot}.get(source, source)
        n_shared = max(shared)
        if n_shared and source != slot:
            self.cache.copy(source, slot, n_shared)
        self._kept[slot] = Kept()
        return n_shared

    def _release(self, row: Row) -> None:
        """Take the row out, and move the last running one into its place."""
        row.phase = Phase.ENDED
        last = self._rows.pop()
        self._kept[last.slot] = row.remembered(next(self._clock))
        if last is not row:
            self.cache.swap(row.slot, last.slot, max(row.computed, last.computed))
            self._rows[row.slot] = last
            last.slot, row.slot = row.slot, last.slot

    def _release_all(self, request: Request) -> list[Row]:
        """Release the rows of `request` and return them."""
        rows = [row for row in self._rows if row.request is request]
        for row in rows:
            self._release(row)
        return rows

    # What they compute.

    def _next_to_read(self, most: int) -> list[Row]:
        """Return the row that waits the longest for its prompt to be read, and up to `most` - 1 in
        the slots behind it that stand at the same place of theirs, so that one pass can read all;
        none if every prompt is read."""
        unread = [row for row in self._rows if row.phase is Phase.READING]
        if not unread:
            return []
        first = min(unread, key=lambda row: row.arrival)
        behind = itertools.takewhile(
            lambda row: row.phase is Phase.READING and row.computed == first.computed,
            self._rows[first.slot + 1 : first.slot + most],
        )
        return [first, *behind]

    def _read_chunks(self, rows: list[Row]) -> None:
        """Read the next chunk of the prompts of `rows`, which stand side by side at the same place
        of theirs; after the last one, draw the first token of each sample."""
        start, n_key = rows[0].computed, rows[0].computed + CHUNK
        chunks = [row.request.prompt[start:n_key] for row in rows]
        # A short chunk is filled up with a token of its own: a masked key that is not a number
        # still spoils a row.
        filled = [chunk + chunk[-1:] * (CHUNK - len(chunk)) for chunk in chunks]
        tokens = torch.tensor(filled, device=self.model.device)
        state = self.cache.rows(rows[0].slot, [start] * len(rows), [True] * len(rows), CHUNK, n_key)
        hidden = self.model.hidden_step(tokens, state)
        for row, chunk in zip(rows, chunks, strict=True):
            self.statistics.prompt_tokens += len(chunk)
            row.computed += len(chunk)
        for i, (row, chunk) in enumerate(zip(rows, chunks, strict=True)):
            if row.request.prompt_logprobs:
                self._tell_prompt(row, start, self.model.logits(hidden[i : i + 1])[0])
            if row.computed == row.n_prompt:
                self._begin(row, hidden[i, len(chunk) - 1])

    def _begin(self, row: Row, last: Float[Tensor, " d_model"]) -> None:
        """Draw the first token of each sample of a prompt that is read; `last` is what the head
        reads at its end."""
        samples = [other for other in self._rows if other.request is row.request]
        for sample in samples:
            if sample is not row:
                self.cache.copy(row.slot, sample.slot, row.n_prompt)
                sample.computed = row.n_prompt
            sample.phase = Phase.DECODING
        self._emit(row.request, Read(row.cached, row.logprobs, row.tops))
        samples = [sample for sample in samples if sample.phase is Phase.DECODING]
        if not samples:
            return
        # The head reads as many rows as in a step of decoding, never one alone.
        logits = self.model.logits(last.expand(self._bucket(1), 1, -1))[:1, 0]
        self._advance(samples, logits.expand(len(samples), -1))

    def _tell_prompt(self, row: Row, start: int, logits: Float[Tensor, "chunk vocab"]) -> None:
        """Note how probable the tokens after those of the chunk were."""
        following = row.request.prompt[start + 1 : start + 1 + CHUNK]
        logprobs = log_softmax(logits[: len(following)])
        chosen = logprobs.gather(-1, torch.tensor(following, device=logprobs.device)[:, None])[:, 0]
        row.logprobs.extend(chosen.tolist())
        row.tops.extend(likeliest(logprobs, [row.request.logprobs or 0] * len(following)))

    def _decode(self, rows: list[Row]) -> Float[Tensor, "rows vocab"]:
        """Return the logits after the last token of each row, which is read in one pass for all."""
        by_slot = {row.slot: row for row in rows}
        slots = range(self._bucket(max(by_slot) + 1))
        starts = [by_slot[slot].computed if slot in by_slot else 0 for slot in slots]
        tokens = [[by_slot[slot].tokens[-1] if slot in by_slot else 0] for slot in slots]
        state = self.cache.rows(
            0, starts, [slot in by_slot for slot in slots], 1, _whole(max(starts) + 1, KEYS)
        )
        logits = self._read_tokens(torch.tensor(tokens, device=self.model.device), state)
        for row in rows:
            row.computed += 1
        return logits if len(rows) == len(slots) else logits[[row.slot for row in rows]]

    def compile(self) -> float:
        """Compile the pass of decoding, and use it from now on if it is faster; see
        `TokenPass.compile`."""
        return self._read_tokens.compile(min(2 * KEYS, self.cache.room - 1))

    def _bucket(self, n_rows: int) -> int:
        """The least power of two that holds so many rows, or all slots."""
        return max(
            self._read_tokens.least_rows, min(1 << (n_rows - 1).bit_length(), self.cache.n_slot)
        )

    # What they say.

    def _advance(self, rows: list[Row], logits: Float[Tensor, "rows vocab"]) -> None:
        """Draw the next token of each row, tell it, and release the rows that end with it."""
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits
        finite = logits.isfinite().all(1)
        if not bool(finite.all()):
            rows, logits = self._only_finite(rows, logits, finite.tolist())
            if not rows:
                return
        tokens, drawn = draw_tokens(rows, self._constrained(rows, logits))
        wanted = [i for i, row in enumerate(rows) if row.request.logprobs is not None]
        told: dict[int, tuple[float, list[tuple[int, float]]]] = {}
        if wanted:
            logprobs, chosen = (
                log_softmax(logits[wanted]),
                torch.tensor([[tokens[i]] for i in wanted]),
            )
            own = logprobs.gather(-1, chosen.to(logprobs.device))[:, 0].tolist()
            tops = likeliest(logprobs, [rows[i].request.logprobs or 0 for i in wanted])
            told = {i: (logprob, top) for i, logprob, top in zip(wanted, own, tops, strict=True)}
        self.statistics.generated_tokens += len(rows)
        for index, row in enumerate(rows):
            logprob, top = told.get(index, (None, []))
            self._tell(row, Token(row.sample, tokens[index], logprob, drawn[index], top, None))

    def _only_finite(
        self, rows: list[Row], logits: Float[Tensor, "rows vocab"], finite: list[bool]
    ) -> tuple[list[Row], Float[Tensor, "fewer vocab"]]:
        """End the requests with infinite or undefined logits, which diverged weights give, and
        return the others."""
        broken = {
            id(row.request): row.request for row, good in zip(rows, finite, strict=True) if not good
        }
        kept = [i for i, row in enumerate(rows) if id(row.request) not in broken]
        for request in broken.values():
            message = (
                "The model's output is no number: its weights have diverged; serve another "
                "checkpoint."
            )
            for row in self._end(request, UserError(message)):
                # The next row in this slot must not find keys that are not numbers behind its own.
                self._kept[row.slot] = Kept()
                self.cache.clear_slot(row.slot)
        return [rows[i] for i in kept], logits[kept]

    def _constrained(
        self, rows: list[Row], logits: Float[Tensor, "rows vocab"]
    ) -> Float[Tensor, "rows vocab"]:
        """Return the logits as the constraints of the rows leave them; one that fails ends its
        request."""
        if all(row.constraint is None for row in rows):
            return logits
        allowed = logits.clone()
        for index, row in enumerate(rows):
            if row.phase is not Phase.ENDED:
                try:
                    allowed[index] = row.constrained(logits[index])
                # It is the request's code, which must not end the others.
                except Exception as error:
                    self._end(row.request, error)
        return allowed

    def _end(self, request: Request, error: Exception) -> list[Row]:
        """End a running request with `error` and return its rows, which are released. Other
        requests continue."""
        rows = self._release_all(request)
        self._emit(request, error)
        return rows

    def _emit(self, request: Request, event: Event) -> None:
        """Emit `event` to the owner of the request. If that fails, the request ends and the others
        continue."""
        try:
            request.emit(event)
        except Exception:
            logging.getLogger("seq2chat").exception(
                "A request ended because it could not take an event."
            )
            self._release_all(request)

    def _tell(self, row: Row, token: Token) -> None:
        """Tell a token that was drawn for the row, and whether it is the last."""
        request = row.request
        if row.phase is Phase.ENDED:  # another sample of the request failed in this step
            return
        row.tokens.append(token.id)
        if row.before is not None:
            row.before.add(token.id)
        try:
            if row.constraint is not None:
                row.constraint.accept(token.id)
            stops = token.id in request.end_tokens or (
                request.stop is not None and request.stop(token)
            )
        except Exception as error:  # as in `_constrained`
            self._end(request, error)
            return
        if stops:
            token = replace(token, finish="stop")
        elif len(row.tokens) - row.n_prompt >= row.room:
            token = replace(token, finish="length")
        if token.finish is not None:
            self._release(row)
        self._emit(request, token)


def _whole(n: int, size: int) -> int:
    """Return the least multiple of `size` that is not below `n`."""
    return -(-n // size) * size
