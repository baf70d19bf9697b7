"""The slots of the engine's cache: running sequences first, then the prompts of finished ones.

Row i of a pass over the weights is slot i of the cache, so running sequences occupy the first slots
without a gap. The slots after them keep the prompts of finished sequences. A new request that
begins like one of them copies its keys and values instead of computing them again.
"""

import itertools
from dataclasses import dataclass, field

from seq2chat.generation.request import Request
from seq2chat.generation.sequence import Phase, Sequence
from seq2chat.nn.slots import SlotCache


@dataclass(frozen=True)
class CachedPrompt:
    """The prompt whose keys and values a slot holds, and when its sequence was released.

    Its salt must be the request's for a reuse.
    """

    tokens: list[int] = field(default_factory=list)
    salt: str = ""
    released: int = 0

    def n_shared(self, request: Request, chunk: int) -> int:
        """Return the length of the common prefix in whole chunks.

        At least one token of the request is left to read, because its logits are needed.
        """
        if self.salt != request.salt:
            return 0
        limit = min(len(self.tokens), len(request.prompt) - 1) // chunk * chunk
        for first in range(0, limit, chunk):
            if self.tokens[first : first + chunk] != request.prompt[first : first + chunk]:
                return first
        return max(limit, 0)


class PrefixCache:
    """Assigns the `n_slot` slots of `cache` to sequences, and reuses prompts in chunks of `chunk`.

    `running` lists the sequences that hold a slot: `running[i].slot == i`.
    """

    def __init__(self, cache: SlotCache, n_slot: int, chunk: int) -> None:
        self.cache = cache
        self.n_slot = n_slot
        self.chunk = chunk
        self.running: list[Sequence] = []
        # By slot. A running sequence has its own prompt instead of an entry.
        self._prompts = [CachedPrompt()] * n_slot
        self._clock = itertools.count(1)

    @property
    def n_free(self) -> int:
        return self.n_slot - len(self.running)

    def reserve(self, request: Request, reuse: bool) -> int:
        """Empty the first free slot, copy the cached part of the prompt there, return its length.

        The previous content of the slot moves to the free slot that was released first. With
        `reuse` False nothing is looked up.
        """
        slot = len(self.running)
        prompts = [_prompt_of(sequence) for sequence in self.running] + self._prompts[slot:]
        shared = [prompt.n_shared(request, self.chunk) if reuse else 0 for prompt in prompts]
        source = max(range(self.n_slot), key=lambda i: shared[i])
        free = range(slot, self.n_slot)
        n_whole = len(prompts[source].tokens) // self.chunk * self.chunk
        if source in free and shared[source] == n_whole > 0:
            # The request continues this prompt where it ends, so the prompt need not be kept.
            victim = source
        else:
            # The source is overwritten only if it is the last free slot.
            victim = min(
                free, key=lambda i: (i == source and shared[source] > 0, prompts[i].released)
            )
        if victim != slot:
            n_tokens = max(len(prompts[slot].tokens), len(prompts[victim].tokens))
            self.cache.swap(slot, victim, n_tokens)
            self._prompts[victim] = prompts[slot]
            source = {slot: victim, victim: slot}.get(source, source)
        n_shared = max(shared)
        if n_shared and source != slot:
            self.cache.copy(source, slot, n_shared)
        self._prompts[slot] = CachedPrompt()
        return n_shared

    def release(self, sequence: Sequence) -> None:
        """End the sequence, and move the last running one into its slot. Its prompt is kept."""
        sequence.phase = Phase.ENDED
        last = self.running.pop()
        self._prompts[last.slot] = _prompt_of(sequence, next(self._clock))
        if last is not sequence:
            self.cache.swap(sequence.slot, last.slot, max(sequence.n_computed, last.n_computed))
            self.running[sequence.slot] = last
            last.slot, sequence.slot = sequence.slot, last.slot

    def release_all(self, request: Request) -> list[Sequence]:
        """Release the sequences of `request` and return them."""
        sequences = [sequence for sequence in self.running if sequence.request is request]
        for sequence in sequences:
            self.release(sequence)
        return sequences

    def wipe(self, slot: int) -> None:
        """Forget the prompt of a free slot, and set its keys and values to zero."""
        self._prompts[slot] = CachedPrompt()
        self.cache.clear_slot(slot)

    def forget_all(self) -> None:
        """End all sequences and forget all prompts. Keys and values stay as they are."""
        for sequence in self.running:
            sequence.phase = Phase.ENDED
        self.running.clear()
        self._prompts = [CachedPrompt()] * self.n_slot


def _prompt_of(sequence: Sequence, released: int = 0) -> CachedPrompt:
    """Return the part of the sequence's prompt that has keys and values."""
    n_read = min(sequence.n_computed, sequence.n_prompt)
    return CachedPrompt(sequence.request.prompt[:n_read], sequence.request.salt, released)
