"""The tokens of a vocabulary as OpenAI's log probabilities write them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seq2chat.text.byte_bpe import ByteBPE

LEAST = -9999.0  # JSON has no number for the logarithm of 0


class TokenNames:
    """The names of the tokens of `tokenizer`, each made once."""

    def __init__(self, tokenizer: ByteBPE) -> None:
        self._tokenizer = tokenizer
        self._control = set(tokenizer.control.values())
        self._entries: dict[int, dict[str, Any]] = {}
        self._names: dict[int, str] = {}
        self._first: dict[bytes, int] = {}
        """The lowest id with these bytes."""
        for token_id in range(tokenizer.vocab_size):
            self._first.setdefault(tokenizer.token_bytes(token_id), token_id)

    def entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        """Return an entry of a chat's log probabilities; a control token has a name but no
        bytes."""
        entry = self._entries.get(token_id)
        if entry is None:
            raw = self._tokenizer.token_bytes(token_id)
            shown = [] if token_id in self._control else list(raw)
            entry = {"token": raw.decode("utf-8", "replace"), "token_id": token_id, "bytes": shown}
            self._entries[token_id] = entry
        return {**entry, "logprob": max(logprob, LEAST)}

    def name(self, token_id: int) -> str:
        r"""Return the key of a token in a completion's log probabilities, which no other token has.

        It is the text of the token. A part of a character is `bytes:\xe4`, as OpenAI writes it, and
        a token without bytes, or with those of another, `token:7`.
        """
        name = self._names.get(token_id)
        if name is None:
            name = self._names[token_id] = self._make_name(token_id)
        return name

    def _make_name(self, token_id: int) -> str:
        raw = self._tokenizer.token_bytes(token_id)
        if not raw or self._first[raw] != token_id:
            return f"token:{token_id}"
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = ""
        if text and not text.startswith(("bytes:", "token:")):
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


@dataclass(frozen=True)
class ScoredToken:
    """A token of a prompt or an answer, its log probability, the likeliest (id, log probability) in
    its place, and the text that came with it.
    """

    id: int
    logprob: float | None
    top: list[tuple[int, float]]
    text: str


def completion_logprobs(
    names: TokenNames, tokens: Sequence[ScoredToken], offset: int
) -> dict[str, Any]:
    """Return OpenAI's four lists, with places in the text counted from `offset`. A token is always
    among its own `top_logprobs`.
    """
    written: list[str] = []
    offsets: list[int] = []
    logprobs: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    for token in tokens:
        name = names.name(token.id)
        written.append(name)
        offsets.append(offset)
        offset += len(token.text)
        if token.logprob is None:
            logprobs.append(None)
            tops.append(None)
            continue
        own = max(token.logprob, LEAST)
        likely = {names.name(other): max(logprob, LEAST) for other, logprob in token.top}
        logprobs.append(own)
        tops.append(likely | {name: own})
    return {
        "tokens": written,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": offsets,
    }
