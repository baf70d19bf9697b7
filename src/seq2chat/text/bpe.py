"""Byte pair encoding, a readable reference implementation of `byte_bpe.py`.

The algorithm is Sennrich, Haddow and Birch 2016 (algorithm 1) on bytes instead of characters, as in
GPT-2: start with the 256 bytes, count the adjacent pairs, make the most frequent pair a new token,
and repeat. Encoding replays the merges in the order of learning.

A token is an integer. 0..255 are the bytes in GPT-2's order (printable ones first), and merge
number `i` makes token `256 + i`. The functions take text that is already split into pieces (words
with their leading space, single digits, ...), and no merge crosses from one piece to the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

Pair = tuple[int, int]


def byte_alphabet() -> dict[int, str]:
    """Return GPT-2's printable character for each byte: the byte's own if it is printable in
    Latin-1, else one from 256 up."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable}
    return alphabet | {byte: chr(256 + i) for i, byte in enumerate(others)}


TOKEN_TO_BYTE = list(byte_alphabet())
BYTE_TO_TOKEN = {byte: token for token, byte in enumerate(TOKEN_TO_BYTE)}


def train(pieces: Iterable[str], n_merges: int, min_count: int = 2) -> list[Pair]:
    """Return up to `n_merges` merges in the order learned.

    Training stops early when no pair occurs `min_count` times. Among equally frequent pairs the one
    with the smaller token numbers is merged.
    """
    counts = Counter(pieces)
    words = {piece: _to_tokens(piece) for piece in counts}
    merges: list[Pair] = []
    while len(merges) < n_merges:
        pairs: Counter[Pair] = Counter()
        for piece, word in words.items():
            for pair in pairwise(word):
                pairs[pair] += counts[piece]
        best = max(pairs, key=lambda pair: (pairs[pair], -pair[0], -pair[1]), default=None)
        if best is None or pairs[best] < min_count:
            break
        new = 256 + len(merges)
        merges.append(best)
        words = {piece: merge(word, best, new) for piece, word in words.items()}
    return merges


def merge(word: Sequence[int], pair: Pair, new: int) -> list[int]:
    """Return `word` with each occurrence of `pair`, from left to right, replaced by the token
    `new`."""
    merged: list[int] = []
    i = 0
    while i < len(word):
        if tuple(word[i : i + 2]) == pair:
            merged.append(new)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged


def encode(pieces: Iterable[str], merges: Sequence[Pair]) -> list[int]:
    """Return the tokens of all pieces.

    In each piece, the pair that was learned first is merged until no learned pair is left.
    """
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    tokens: list[int] = []
    for piece in pieces:
        word = _to_tokens(piece)
        while known := [pair for pair in pairwise(word) if pair in ranks]:
            first = min(known, key=ranks.__getitem__)
            word = merge(word, first, 256 + ranks[first])
        tokens += word
    return tokens


def decode(tokens: Iterable[int], merges: Sequence[Pair]) -> bytes:
    """Return the bytes of `tokens`."""
    vocabulary = [bytes([byte]) for byte in TOKEN_TO_BYTE]
    for left, right in merges:
        vocabulary.append(vocabulary[left] + vocabulary[right])
    return b"".join(vocabulary[token] for token in tokens)


def _to_tokens(piece: str) -> list[int]:
    return [BYTE_TO_TOKEN[byte] for byte in piece.encode()]
