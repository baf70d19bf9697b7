"""Pseudo-random permutations as pure functions of a key, so that no state needs to be saved."""

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np

FEISTEL_ROUNDS = 6


def epoch_key(fingerprint: str, seed: int, epoch: int) -> bytes:
    """Return the 32-byte key of one epoch of a run over a text."""
    return hashlib.sha256(f"{fingerprint} {seed} {epoch}".encode()).digest()


def permute(i: int, n: int, key: bytes) -> int:
    """Return the position of `i` in a pseudo-random permutation of range(n), without a table.

    A Feistel network permutes the numbers below the next larger power of four, for any round
    function. A result outside range(n) goes through the network again until it falls inside, which
    is called cycle walking (Black and Rogaway 2002, section 3).

    >>> sorted(permute(i, 5, b"any key") for i in range(5))
    [0, 1, 2, 3, 4]
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    rounds = round_keys(key)
    while True:
        left = i >> half
        right = i & mask
        for round_key in rounds:
            left, right = right, left ^ (mix(right ^ round_key) & mask)
        i = left << half | right
        if i < n:
            return i


@lru_cache(maxsize=8)
def round_keys(key: bytes) -> list[int]:
    """Return one 64-bit number per round of the Feistel network."""
    digest = hashlib.shake_256(key).digest(8 * FEISTEL_ROUNDS)
    return [int.from_bytes(digest[8 * r : 8 * r + 8], "big") for r in range(FEISTEL_ROUNDS)]


def mix(x: Any) -> Any:
    """Return the finalizer of splitmix64 (Steele, Lea and Flood 2014) applied to `x`, an int or an
    array of uint64.

    Every bit of `x` affects all 64 bits of the result.
    """
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31


def shuffled(n: int, key: bytes) -> np.ndarray:
    """Return a permutation of range(n), int64 of shape `(n,)`, as a function of an 8-byte key.

    It sorts the numbers by their hashes.
    """
    spread = np.arange(n, dtype=np.uint64) * 0x9E3779B97F4A7C15 + np.frombuffer(key, np.uint64)
    return np.argsort(mix(spread), kind="stable")
