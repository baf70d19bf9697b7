"""Continuous batching: many requests share one model, and each gets the tokens it would get alone.

A step of the engine admits waiting requests, gives every decoding sequence its next token in one
pass over the weights, and reads a few chunks of the prompts that are still unread. A long prompt
therefore never stalls the others (Yu et al. 2022, Orca; Agrawal et al. 2023, Sarathi).

Prompts are read in chunks of one size at fixed positions, and on CPUs the kernels here never let
one row change another row's bits. So the keys and values of a prompt are bit-identical, no matter
if it is read at once, between other prompts, or found in the cache. On a GPU they agree up to
rounding.
"""

import itertools
import logging
import time
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.config import UserError, check
from seq2chat.generation.decode import check_prompts
from seq2chat.generation.prefix_cache import PrefixCache
from seq2chat.generation.request import DeadlinePassed, Event, PromptRead, Request
from seq2chat.generation.request_queue import RequestQueue
from seq2chat.generation.sampling import row_generators
from seq2chat.generation.sequence import Phase, Sequence, draw_tokens, scored_tokens
from seq2chat.generation.token_pass import KEY_MULTIPLE, TokenPass, batch_multiple, round_up
from seq2chat.generation.tokens import Token, finish_reason, room_left
from seq2chat.models.gpt import GPT
from seq2chat.nn.slots import SlotCache

DIVERGED = "The model's output is not finite: its weights have diverged; serve another checkpoint."
CHUNK = 32  # tokens of a prompt that one pass reads


@dataclass
class Statistics:
    """Counts since the engine was created."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    aborted: int = 0
    steps: int = 0


class Engine:
    """Runs requests on one GPT, up to `n_slot` samples at a time.

    Further requests wait, at most `max_waiting` of them. `budget` is the number of tokens that one
    step reads and generates together. A step always reads at least one chunk of a prompt.

    `submit` and `Request.abort` may be called from any thread, `step` from one thread only.
    """

    def __init__(
        self, model: GPT, n_slot: int = 16, max_waiting: int = 256, budget: int = 128
    ) -> None:
        check(n_slot > 0, f"The engine has {n_slot} slots; give it at least one.")
        config = model.eval().config
        dtype = next(model.parameters()).dtype
        self.model = model
        self.n_slot = n_slot
        self.budget = budget
        # On CPUs the products of attention are faster in float32, where those of bfloat16 numbers
        # are exact.
        on_cpu = model.device.type == "cpu"
        self.cache = SlotCache(
            n_layer=config.n_layer,
            n_slot=round_up(n_slot, batch_multiple(model)),
            n_kv_head=config.n_kv_head,
            room=round_up(config.context, KEY_MULTIPLE),
            d_head=config.d_head,
            dtype=torch.promote_types(dtype, torch.float32) if on_cpu else dtype,
            device=model.device,
        )
        self.slots = PrefixCache(self.cache, n_slot, CHUNK)
        self.statistics = Statistics()
        self._token_pass = TokenPass(model, self.cache)
        self.queue = RequestQueue(max_waiting)
        # A request that has left the queue, but may not have all its sequences yet.
        self._admitted: Request | None = None
        self._arrivals = itertools.count(1)

    @property
    def n_running(self) -> int:
        """Number of samples that hold a slot."""
        return len(self.slots.running)

    @property
    def n_waiting(self) -> int:
        """Number of requests that wait for a slot."""
        return len(self.queue)

    @property
    def has_work(self) -> bool:
        """True if a request runs or waits."""
        return bool(self.slots.running or self.queue)

    def submit(self, request: Request) -> Request:
        """Queue `request`, and return it.

        Raises UserError for a prompt that is empty, too long or has unknown tokens, and for more
        samples than slots. Raises QueueFull when too many requests wait.
        """
        check_prompts([request.prompt], self.model.context)
        last = self.model.config.vocab_size - 1
        check(
            min(request.prompt) >= 0 and max(request.prompt) <= last,
            f"The prompt has a token that is not in the vocabulary; write ids from 0 to {last}.",
        )
        check(
            all(token <= last for token, _ in request.sampling.logit_bias),
            f"logit_bias has a token that is not in the vocabulary; write ids from 0 to {last}.",
        )
        check(
            0 < request.n <= self.n_slot,
            f"n is {request.n}; write a number from 1 to {self.n_slot}.",
        )
        self.queue.put(request)
        return request

    def fail(self, error: Exception) -> None:
        """End all running and waiting requests with `error`."""
        for request in self.queue.take_all():
            self._emit(request, error)
        self.rebuild(error)

    def rebuild(self, error: Exception) -> None:
        """Start over with an empty cache, after a step that failed in the middle.

        Running requests end with `error`. Waiting requests stay in the queue.
        """
        requests = {id(sequence.request): sequence.request for sequence in self.slots.running}
        if self._admitted is not None:
            requests[id(self._admitted)] = self._admitted
            self._admitted = None
        self.slots.forget_all()
        for request in requests.values():
            self._emit(request, error)
        self.cache.clear()  # last, because it may fail when memory is short

    def run(self) -> None:
        """Step until no request is left."""
        while self.has_work:
            self.step()

    @torch.no_grad()
    def step(self) -> None:
        """Give every decoding sequence its next token, then read prompts within the budget."""
        self.statistics.steps += 1
        self._end_aborted_and_late()
        self._admit()
        decoding = [seq for seq in self.slots.running if seq.phase is Phase.DECODING]
        if decoding:
            self._advance(decoding, self._decode(decoding))
        n_chunks = max(1, (self.budget - len(decoding)) // CHUNK)
        while n_chunks > 0:
            unread = self._next_to_read(n_chunks)
            if not unread:
                break
            n_chunks -= len(unread)
            self._read_chunks(unread)

    def compile(self, dtype: torch.dtype | None = None) -> None:
        """Use a faster decoding pass if there is one; see `TokenPass.compile`."""
        self._token_pass.compile(dtype)

    # Admission.

    def _end_aborted_and_late(self) -> None:
        """End the requests that were aborted and those past their deadline.

        No other part of a step reads `aborted`, so a client that leaves during a step changes
        nothing in it.
        """
        now = time.monotonic()
        ended = self.queue.take_ended(now)
        running = {id(sequence.request): sequence.request for sequence in self.slots.running}
        ended += [r for r in running.values() if r.aborted or r.is_late(now)]
        for request in ended:
            self.statistics.aborted += 1
            self.slots.release_all(request)
            if not request.aborted:
                self._emit(request, DeadlinePassed())

    def _admit(self) -> None:
        """Give slots to waiting requests, in their order, while there are enough."""
        while True:
            request = self._admitted = self.queue.take(self.slots.n_free)
            if request is None:
                return
            room = room_left(len(request.prompt), request.sampling.max_tokens, self.model.context)
            for sample, generator in enumerate(row_generators(request.sampling.seed, request.n)):
                # The first sample reads the prompt for all. Prompt scores need every token read.
                is_first = sample == 0
                n_cached = self.slots.reserve(
                    request, reuse=is_first and not request.prompt_logprobs
                )
                sequence = Sequence(
                    request=request,
                    sample=sample,
                    slot=len(self.slots.running),
                    room=room,
                    generator=generator,
                    arrival=next(self._arrivals),
                    phase=Phase.READING if is_first else Phase.WAITING,
                    n_cached=n_cached,
                )
                self.slots.running.append(sequence)
                self.statistics.cached_tokens += n_cached

    # Passes over the weights.

    def _next_to_read(self, n_max: int) -> list[Sequence]:
        """Return the sequences whose prompts are read next, none if every prompt is read.

        The first has waited longest. Up to `n_max` - 1 follow: sequences in the next slots that
        are at the same position of their prompt, so that one pass can read them all.
        """
        unread = [seq for seq in self.slots.running if seq.phase is Phase.READING]
        if not unread:
            return []
        first = min(unread, key=lambda sequence: sequence.arrival)
        neighbors = itertools.takewhile(
            lambda seq: seq.phase is Phase.READING and seq.n_computed == first.n_computed,
            self.slots.running[first.slot + 1 : first.slot + n_max],
        )
        return [first, *neighbors]

    def _read_chunks(self, sequences: list[Sequence]) -> None:
        """Read the next chunk of each prompt. After the last chunk, draw the first tokens.

        The sequences hold adjacent slots and are at the same position of their prompts.
        """
        start = sequences[0].n_computed
        n_key = start + CHUNK
        chunks = [sequence.request.prompt[start:n_key] for sequence in sequences]
        # Short chunks are padded with their own last token: if the keys of a fixed pad token were
        # NaN, they would spoil the row even where they are masked.
        padded = [chunk + chunk[-1:] * (CHUNK - len(chunk)) for chunk in chunks]
        tokens = torch.tensor(padded, device=self.model.device)
        n_rows = len(sequences)
        state = self.cache.rows(sequences[0].slot, [start] * n_rows, [True] * n_rows, CHUNK, n_key)
        hidden = self.model.hidden_step(tokens, state)
        for sequence, chunk in zip(sequences, chunks, strict=True):
            self.statistics.prompt_tokens += len(chunk)
            sequence.n_computed += len(chunk)
        for i, (sequence, chunk) in enumerate(zip(sequences, chunks, strict=True)):
            if sequence.request.prompt_logprobs:
                sequence.score_prompt(start, self.model.logits(hidden[i : i + 1])[0, : len(chunk)])
            if sequence.n_computed == sequence.n_prompt:
                self._begin(sequence, hidden[i, len(chunk) - 1])

    def _begin(self, sequence: Sequence, hidden: Float[Tensor, " d_model"]) -> None:
        """Start all samples of a request whose prompt is read, and draw their first tokens.

        `hidden` is the input of the output head at the prompt's last token.
        """
        request = sequence.request
        samples = [other for other in self.slots.running if other.request is request]
        for sample in samples:
            if sample is not sequence:
                self.cache.copy(sequence.slot, sample.slot, sequence.n_prompt)
                sample.n_computed = sequence.n_prompt
            sample.phase = Phase.DECODING
        self._emit(request, PromptRead(sequence.n_cached, sequence.logprobs, sequence.tops))
        samples = [sample for sample in samples if sample.phase is Phase.DECODING]
        if not samples:
            return
        # The head reads as many rows as in a decoding pass. A single row could be computed by
        # another kernel, with other bits.
        logits = self.model.logits(hidden.expand(self._token_pass.n_rows(1), 1, -1))[:1, 0]
        self._advance(samples, logits.expand(len(samples), -1))

    def _decode(self, sequences: list[Sequence]) -> Float[Tensor, "sequences vocab"]:
        """Read the last token of each sequence in one pass, and return the logits after it."""
        logits = self._token_pass(
            tokens=[sequence.tokens[-1] for sequence in sequences],
            slots=[sequence.slot for sequence in sequences],
            places=[sequence.n_computed for sequence in sequences],
        )
        for sequence in sequences:
            sequence.n_computed += 1
        return logits

    # Tokens and events.

    def _advance(self, sequences: list[Sequence], logits: Float[Tensor, "sequences vocab"]) -> None:
        """Draw and emit the next token of each sequence, and release those that end with it."""
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits
        is_finite = logits.isfinite().all(1)
        if not bool(is_finite.all()):
            sequences, logits = self._only_finite(sequences, logits, is_finite.tolist())
            if not sequences:
                return
        ids = draw_tokens(sequences, self._constrained(sequences, logits))
        tokens = scored_tokens(sequences, ids, logits)
        self.statistics.generated_tokens += len(sequences)
        for sequence, token in zip(sequences, tokens, strict=True):
            self._append(sequence, token)

    def _only_finite(
        self,
        sequences: list[Sequence],
        logits: Float[Tensor, "sequences vocab"],
        is_finite: list[bool],
    ) -> tuple[list[Sequence], Float[Tensor, "fewer vocab"]]:
        """End the requests with NaN or infinite logits, and return the other sequences' logits.

        Diverged weights give such logits.
        """
        bad = [seq.request for seq, good in zip(sequences, is_finite, strict=True) if not good]
        broken = {id(request): request for request in bad}
        kept = [i for i, seq in enumerate(sequences) if id(seq.request) not in broken]
        for request in broken.values():
            for sequence in self._end(request, UserError(DIVERGED)):
                # Even masked, these keys would spoil the next sequence in this slot.
                self.slots.wipe(sequence.slot)
        return [sequences[i] for i in kept], logits[kept]

    def _constrained(
        self, sequences: list[Sequence], logits: Float[Tensor, "sequences vocab"]
    ) -> Float[Tensor, "sequences vocab"]:
        """Return the logits with the biases of all constraints. One that fails ends its request."""
        if all(sequence.constraint is None for sequence in sequences):
            return logits
        biased = logits.clone()
        for index, sequence in enumerate(sequences):
            if sequence.phase is Phase.ENDED:
                continue
            try:
                biased[index] = sequence.constrained(logits[index])
            except Exception as error:  # the request's own code, which must not end the others
                self._end(sequence.request, error)
        return biased

    def _append(self, sequence: Sequence, token: Token) -> None:
        """Append a drawn token to its sequence, emit it, and release the sequence if it ends."""
        request = sequence.request
        if sequence.phase is Phase.ENDED:  # another sample of the request failed in this step
            return
        sequence.append(token.id)
        is_end = token.id in request.end_tokens
        try:
            if sequence.constraint is not None:
                sequence.constraint.accept(token.id)
            if request.on_token is not None and not is_end:
                text, is_end = request.on_token(token)
                token = replace(token, text=text)
        except Exception as error:  # as in `_constrained`
            self._end(request, error)
            return
        finish = finish_reason(is_end, sequence.n_generated, sequence.room)
        if finish is not None:
            token = replace(token, finish=finish)
            self.slots.release(sequence)
        self._emit(request, token)

    def _end(self, request: Request, error: Exception) -> list[Sequence]:
        """End a running request with `error`, and return its sequences. Other requests continue."""
        sequences = self.slots.release_all(request)
        self._emit(request, error)
        return sequences

    def _emit(self, request: Request, event: Event) -> None:
        """Call the request's `emit`. If that fails, the request ends and the others continue."""
        try:
            request.emit(event)
        except Exception:
            logging.getLogger("seq2chat").exception(
                "A request ended because its callback for events failed."
            )
            self.slots.release_all(request)
