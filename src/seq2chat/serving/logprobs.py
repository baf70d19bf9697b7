"""Tokens and their log probabilities in OpenAI's form."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seq2chat.text.text_tokenizer import TextTokenizer

MIN_LOGPROB = -9999.0  # JSON has no number for the logarithm of 0


class TokenNames:
    """The names of a tokenizer's tokens, each computed once."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._control = set(tokenizer.control.values())
        self._entries: dict[int, dict[str, Any]] = {}
        self._names: dict[int, str] = {}
        # The lowest id per byte string.
        self._lowest: dict[bytes, int] = {}
        for token_id in range(tokenizer.vocab_size):
            self._lowest.setdefault(tokenizer.token_bytes(token_id), token_id)

    def entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        """Return an entry of a chat's log probabilities.

        A control token has a name but no bytes.
        """
        entry = self._entries.get(token_id)
        if entry is None:
            raw = self._tokenizer.token_bytes(token_id)
            entry = {
                "token": raw.decode("utf-8", "replace"),
                "token_id": token_id,
                "bytes": [] if token_id in self._control else list(raw),
            }
            self._entries[token_id] = entry
        return {**entry, "logprob": max(logprob, MIN_LOGPROB)}

    def name(self, token_id: int) -> str:
        r"""Return the unique key of a token in a completion's log probabilities.

        It is the text of the token if possible. Part of a character becomes `bytes:\xe4`, as in
        OpenAI's API. A token without bytes, or with the bytes of another one, becomes `token:7`.
        """
        name = self._names.get(token_id)
        if name is None:
            name = self._names[token_id] = self._make_name(token_id)
        return name

    def _make_name(self, token_id: int) -> str:
        raw = self._tokenizer.token_bytes(token_id)
        if not raw or self._lowest[raw] != token_id:
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
    """A token of a prompt or an answer with its log probability.

    `top` lists the most likely (id, log probability) pairs in its place. `text` is the text that it
    added.
    """

    id: int
    logprob: float | None
    top: Sequence[tuple[int, float]]
    text: str


def completion_logprobs(
    names: TokenNames, tokens: Sequence[ScoredToken], offset: int
) -> dict[str, Any]:
    """Return OpenAI's four lists. Offsets in the text are counted from `offset`.

    A token is always one of its own `top_logprobs`.
    """
    token_names: list[str] = []
    offsets: list[int] = []
    logprobs: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    for token in tokens:
        name = names.name(token.id)
        token_names.append(name)
        offsets.append(offset)
        offset += len(token.text)
        if token.logprob is None:
            logprobs.append(None)
            tops.append(None)
            continue
        own = max(token.logprob, MIN_LOGPROB)
        top = {names.name(other): max(logprob, MIN_LOGPROB) for other, logprob in token.top}
        logprobs.append(own)
        tops.append(top | {name: own})
    return {
        "tokens": token_names,
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": offsets,
    }
