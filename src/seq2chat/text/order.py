"""Pseudo-random orders as pure functions of a key: nothing is stored, nothing is replayed."""

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np

FEISTEL_ROUNDS = 6


def epoch_key(fingerprint: str, seed: int, epoch: int) -> bytes:
    """Return 32 bytes that stand for one epoch of one run over one text."""
    return hashlib.sha256(f"{fingerprint} {seed} {epoch}".encode()).digest()


def permute(i: int, n: int, key: bytes) -> int:
    """Return the place of `i` in a pseudo-random permutation of range(n), computed without a table.

    A Feistel network permutes the next larger power of four, whatever its round function, and a
    result outside range(n) is sent through again until it falls inside: cycle walking (Black and
    Rogaway 2002, section 3).
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    rounds = round_keys(key)
    while True:
        left, right = i >> half, i & mask
        for round_key in rounds:
            left, right = right, left ^ (mix(right ^ round_key) & mask)
        i = left << half | right
        if i < n:
            return i


@lru_cache(maxsize=8)
def round_keys(key: bytes) -> list[int]:
    """Return one 64-bit number for each round of the Feistel network."""
    digest = hashlib.shake_256(key).digest(8 * FEISTEL_ROUNDS)
    return [int.from_bytes(digest[8 * r : 8 * r + 8], "big") for r in range(FEISTEL_ROUNDS)]


def mix(x: Any) -> Any:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014), which spreads every bit of x, an
    int or an array of uint64, over all 64."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31


def shuffled(n: int, key: bytes) -> np.ndarray:
    """Return a permutation of range(n) that is a function of 8 bytes: the order of the hashes of 0
    .. n - 1."""
    spread = np.arange(n, dtype=np.uint64) * 0x9E3779B97F4A7C15 + np.frombuffer(key, np.uint64)
    return np.argsort(mix(spread), kind="stable")
