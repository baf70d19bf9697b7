"""Text as it arrives: whole characters only, and nothing from a stop string on."""

from collections.abc import Sequence

from seq2chat.text.byte_bpe import ByteBPE

LONGEST_CHARACTER = 4  # bytes of UTF-8, and a token has one at least


class TextStream:
    """Turns the ids of one completion into text that may be shown at once.

    Text that could still become one of the `stop` strings is held back. `text` is all that was
    shown so far, and `stopped` says that a stop string was met; it and what follows are never
    shown. The bytes with which `before`, the ids that the completion goes on from, begins a
    character are part of it.
    """

    def __init__(
        self, tokenizer: ByteBPE, stop: Sequence[str] = (), before: Sequence[int] = ()
    ) -> None:
        self._decoder = tokenizer.stream_decoder()
        for token_id in before[-LONGEST_CHARACTER:]:
            self._decoder.feed(token_id)
        self._stop = [s for s in stop if s]
        self._held = ""
        self.text = ""
        self.stopped = False

    def feed(self, token_id: int) -> str:
        """Return the text that `token_id` makes safe to show, which may be empty."""
        return self._release(self._decoder.feed(token_id))

    def flush(self) -> str:
        """Return what was held back, at the end of the completion."""
        shown = self._release(self._decoder.flush())
        if self.stopped:
            return shown
        rest, self._held = self._held, ""
        self.text += rest
        return shown + rest

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        met = [i for s in self._stop if (i := self._held.find(s)) >= 0]
        self.stopped = bool(met)
        safe = min(met) if met else len(self._held) - self._suspicious()
        shown, self._held = self._held[:safe], self._held[safe:]
        self.text += shown
        return shown

    def _suspicious(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = max((len(s) - 1 for s in self._stop), default=0)
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next(
            (n for n in lengths if any(s.startswith(self._held[-n:]) for s in self._stop)), 0
        )
