"""The length of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from seq2chat.config.errors import UserError

_SECONDS = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
}


@dataclass(frozen=True)
class Budget:
    """The length of a run: an amount of seconds, steps, tokens or epochs."""

    amount: float
    unit: Literal["seconds", "steps", "tokens", "epochs"]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Return the budget for a text such as "10m", "2h", "500 steps", "3 epochs" or "20M
        tokens". Raises UserError for any other text.

        >>> Budget.parse("10m")
        Budget(amount=600.0, unit='seconds')
        >>> Budget.parse("20M tokens")
        Budget(amount=20000000.0, unit='tokens')
        """
        match = re.fullmatch(r"\s*(\d[\d_]*(?:\.\d+)?)\s*([kMGB]?)\s*([a-z]+)\s*", text)
        if match and float(match[1]) > 0:
            amount = float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}[match[2]]
            word = match[3]
            singular = word.removesuffix("s") if len(word) > 2 else word
            if singular in _SECONDS:
                return cls(amount * _SECONDS[singular], "seconds")
            for unit in ("steps", "tokens", "epochs"):
                if word in (unit, unit[:-1]):
                    return cls(amount, unit)
        raise UserError(
            f'The budget {text!r} is not a length; write "10m", "9 steps", "3 epochs" or "20M'
            ' tokens".'
        )
