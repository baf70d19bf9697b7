"""Text of a completion while it is generated: whole characters, up to a stop string."""

from collections.abc import Sequence

from seq2chat.text.text_tokenizer import TextTokenizer

MAX_CHARACTER = 4  # bytes in UTF-8, so at most as many tokens


class TextStream:
    """A converter from the ids of one completion to text that can be displayed at once.

    Text that may still become one of the `stop` strings is held back. `text` is the text released
    so far, and `stopped` is True once a stop string was met. The stop string and the text after it
    are never released. `before` holds the ids before the completion. If they end within a
    character, their bytes are part of the first character of the completion.
    """

    def __init__(
        self, tokenizer: TextTokenizer, stop: Sequence[str] = (), before: Sequence[int] = ()
    ) -> None:
        # A control token begins a text anew.
        is_within_text = len(before) > 0 and before[-1] not in tokenizer.control.values()
        self._decoder = tokenizer.stream_decoder("text" if is_within_text else "nothing")
        for token_id in before[-MAX_CHARACTER:] if is_within_text else ():
            self._decoder.feed(token_id)
        self._stop = [s for s in stop if s]
        self._held = ""
        self.text = ""
        self.stopped = False

    def feed(self, token_id: int) -> str:
        """Return the text that is safe to display after `token_id`, which may be empty."""
        return self._release(self._decoder.feed(token_id))

    def flush(self) -> str:
        """Return the text that was held back, at the end of the completion."""
        released = self._release(self._decoder.flush())
        if self.stopped:
            return released
        rest = self._held
        self._held = ""
        self.text += rest
        return released + rest

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        positions = [self._held.find(stop) for stop in self._stop]
        positions = [position for position in positions if position >= 0]
        self.stopped = bool(positions)
        safe = min(positions) if positions else len(self._held) - self._n_suspicious()
        released = self._held[:safe]
        self._held = self._held[safe:]
        self.text += released
        return released

    def _n_suspicious(self) -> int:
        """Return the length of the longest end of the held text that a stop string starts with."""
        longest = max((len(s) - 1 for s in self._stop), default=0)
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next(
            (n for n in lengths if any(s.startswith(self._held[-n:]) for s in self._stop)), 0
        )
