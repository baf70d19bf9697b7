"""Fields of a row or a message by name, and the keys that change what is learned."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from seq2chat.config import check
from seq2chat.text.rows import Row


def is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def is_empty(value: Any) -> bool:
    """Return whether the value holds nothing: blank, false, or an empty collection, also as the
    text of a cell."""
    return (
        is_blank(value)
        or not value
        or (isinstance(value, str) and value.strip() in ("[]", "{}", "null"))
    )


def as_flag(value: Any) -> bool | None:
    """Return True for 1 and true, False for 0 and false, also as the text of a cell; None for
    anything else."""
    return {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}.get(
        str(value).strip().lower()
    )


def as_number(value: Any) -> float | None:
    """Return a number below 1e15, also from the text of a cell; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < 1e15 else None


def lower_names(values: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Return the name of each value that is not None by its lower case.

    Raises UserError for two names that differ in case only and hold different values.
    """
    names: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            continue
        first = names.setdefault(str(name).lower(), name)
        check(
            values[first] == value,
            f'{where} has "{first}" and "{name}" with different values, and names may be in any'
            " case; keep one.",
        )
    return names


# Keys that change what is learned


class Meaning(NamedTuple):
    """A key that changes what is learned: why it is refused, and which of its values change
    nothing."""

    reason: str
    is_neutral: Callable[[Any], bool]


TOOLS = ("tools", "tool_calls", "functions", "function_call")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
LEARNED = ("weight", "train", "training", "loss")
"""Marks of a message that is learned or not: OpenAI's, axolotl's two and ms-swift's."""

_NO_TOOLS = Meaning("and tools are not supported; remove the tools and their turns.", is_empty)
_NO_MEDIA = Meaning("and only text is supported; remove such rows.", is_empty)
_NO_WEIGHTS = Meaning(
    "which is not supported; write 1 or remove the key.",
    lambda value: is_blank(value) or as_flag(value) is True,
)
_NO_SPANS = Meaning("and spans of a message cannot be learned alone; remove the key.", is_empty)
_NO_SCORES = Meaning(
    "which says how good an answer is and is not used; keep the rows with good answers and remove "
    "or rename the key.",
    is_blank,
)
_NO_PREFERENCES = Meaning(
    "which says which answer is better and is not used here; remove or rename the key.", is_blank
)

UNSUPPORTED: Mapping[str, Meaning] = {
    **dict.fromkeys(TOOLS, _NO_TOOLS),
    **dict.fromkeys(MEDIA, _NO_MEDIA),
    **dict.fromkeys((*LEARNED, "sample_weight", "loss_weight", "loss_scale"), _NO_WEIGHTS),
    **dict.fromkeys(("train_detail", "training_detail"), _NO_SPANS),
}
"""Keys refused in every row and message where no reader honors them."""

SCORES: Mapping[str, Meaning] = dict.fromkeys(
    ("score", "scores", "reward", "rewards", "rating", "ratings"), _NO_SCORES
)
"""Keys refused beside answers where no reader honors them."""

PREFERENCES: Mapping[str, Meaning] = {
    **SCORES,
    **dict.fromkeys(("winner", "preference", "ranks"), _NO_PREFERENCES),
    "margin": Meaning("which is not supported; remove the key.", is_blank),
}
"""Keys refused beside several answers to one prompt where no reader honors them."""


def check_keys(values: Mapping[str, Any], meanings: Mapping[str, Meaning], where: str) -> None:
    """Raise UserError naming the first key in lower case that changes what is learned."""
    for name, value in values.items():
        meaning = meanings.get(name)
        if meaning is not None and not meaning.is_neutral(value):
            shown = f" {value!r}" if isinstance(value, str | int | float) else ""
            check(False, f'{where} has "{name}"{shown}, {meaning.reason}')


# Rows


class Fields:
    """The fields of a row by name in any case; `None` counts as absent. It remembers which were
    asked for."""

    def __init__(self, row: Row) -> None:
        self.row, self.where = row, row.where
        self.names = lower_names(row.fields, row.where)
        self.used: set[str] = set()
        self.inner_unused: dict[str, Any] = {}
        """Unused keys inside the fields by their path, such as `messages.name`, each with a value
        of it."""

    def get(self, *names: str) -> Any:
        """Return the first of these fields that is not blank, else the first one there is, None
        without one."""
        present = [name for name in names if name in self.names]
        filled = [name for name in present if not is_blank(self.row.fields[self.names[name]])]
        for name in filled or present:
            self.used.add(name)
            return self.row.fields[self.names[name]]
        return None

    def has(self, *names: str) -> bool:
        """Return whether the row has one of these fields, and not as a blank cell."""
        return any(
            not is_blank(self.row.fields[self.names[name]]) for name in names if name in self.names
        )

    def unused(self) -> list[str]:
        """Return the names of the fields that were never asked for and are not blank."""
        return [self.names[name] for name in self._unused() if self.has(name)] + sorted(
            self.inner_unused
        )

    def check_unused(self, meanings: Mapping[str, Meaning]) -> None:
        """Raise UserError for a key that changes what is learned and was not asked for, of the row
        or inside it."""
        check_keys(
            {name: self.row.fields[self.names[name]] for name in self._unused()},
            meanings,
            self.where,
        )
        check_keys(
            {path.partition(".")[2]: value for path, value in self.inner_unused.items()},
            meanings,
            self.where,
        )
        self.used.update(meanings.keys() & self.names.keys())

    def columns(self, wanted: Collection[str] | None) -> dict[str, Any]:
        """Return the fields named in `wanted`, or with None all that were not asked for yet, as
        they stand."""
        if wanted is None:
            wanted = [self.names[name] for name in self._unused()]
        self.used.update(name.lower() for name in wanted)
        return {name: self.row.fields[name] for name in wanted if name in self.row.fields}

    def _unused(self) -> list[str]:
        return [name for name in self.names if name not in self.used]
