"""Mixtures of texts: their shares, and which text each sample comes from.

A mixture is written as `wiki.txt:0.7, code/:0.3`.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from math import lcm
from pathlib import Path

import numpy as np

from seq2chat.config import check
from seq2chat.text.files import exists

EXAMPLE = "a.txt:0.7, b.txt:0.3"
MOST_SAMPLES = 100_000  # after which the order repeats


def mixture(name: str) -> list[tuple[str, Fraction]]:
    """Return the texts of a mixture with their shares, which sum to 1, or an empty list for the
    name of a single text.

    Raises UserError for a text without a weight, or for weights that are 0 or have too many digits.
    """
    items = [item.strip() for item in name.split(",")]
    matches = [re.fullmatch(r"(.+):(\d+(?:\.\d+)?)", item) for item in items]
    if len(items) == 1 or not any(matches) or exists(Path(name)):
        return []
    for item, match in zip(items, matches, strict=True):
        check(
            match is not None,
            f"{item!r} has no weight in the mixture {name}; write each text with its weight, as in "
            f"{EXAMPLE}.",
        )
    weights = [(match[1], Fraction(match[2])) for match in matches if match is not None]
    for text, weight in weights:
        check(weight > 0, f"The weight of {text} in the mixture {name} is 0; leave it out.")
    names = [text for text, _ in weights]
    check(len(set(names)) == len(names), f"The mixture {name} names a text twice; name it once.")
    total = sum(weight for _, weight in weights)
    shares = [(text, weight / total) for text, weight in weights]
    check(
        lcm(*(share.denominator for _, share in shares)) <= MOST_SAMPLES,
        f"The weights of the mixture {name} have too many digits; write at most four, as in "
        f"{EXAMPLE}.",
    )
    return shares


def map_names(name: str, function: Callable[[str], str]) -> str:
    """Return `function(name)`, or a mixture with the function applied to the name of each text."""
    if not mixture(name):
        return function(name)
    items = (item.strip().rpartition(":") for item in name.split(","))
    return ", ".join(f"{function(text)}:{weight}" for text, _, weight in items)


def schedule(shares: list[Fraction]) -> np.ndarray:
    """Return which text each sample of a period comes from, int64 of shape `(n_samples,)`.

    After any number of samples, the number from each text differs from its exact share by at most
    1 - 1 / (2m - 2) for m texts, and a period has exactly its shares (Tijdeman 1980, The chairman
    assignment problem). Always taking the text with the largest deficit is off by more than one
    sample for some mixtures of six texts.
    """
    n_samples = lcm(*(share.denominator for share in shares))
    per_period = [int(share * n_samples) for share in shares]
    scale = 2 * len(shares) - 2
    counts = [0] * len(shares)
    order = np.zeros(n_samples, np.int64)
    for k in range(1, n_samples + 1):
        # Of the texts that may have another sample, the one that must have it first. Deficits are
        # in units of 1 / n_samples.
        deficits = [own * k - n * n_samples for own, n in zip(per_period, counts, strict=True)]
        deadlines = [
            ((scale - 1) * n_samples - scale * deficit) / (scale * own)
            if scale * deficit >= n_samples
            else np.inf
            for deficit, own in zip(deficits, per_period, strict=True)
        ]
        text = int(np.argmin(deadlines))
        counts[text] += 1
        order[k - 1] = text
    return order
