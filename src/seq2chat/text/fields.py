"""Fields of a row or a message by name, and the keys that change the training."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from seq2chat.config import UserError, check
from seq2chat.text.rows import Row


def is_blank(value: Any) -> bool:
    """Return True for None and for text without a visible character."""
    return value is None or (isinstance(value, str) and not value.strip())


def is_empty(value: Any) -> bool:
    """Return True for a blank, false or empty value, also if it is written as text, for example
    "[]"."""
    if is_blank(value) or not value:
        return True
    return isinstance(value, str) and value.strip() in ("[]", "{}", "null")


def as_flag(value: Any) -> bool | None:
    """Return True for 1 and true, False for 0 and false, and None for other values.

    The value may also be written as text, for example "1.0".
    """
    text = str(value).strip().lower()
    if text in ("1", "1.0", "true"):
        return True
    return False if text in ("0", "0.0", "false") else None


def as_number(value: Any) -> float | None:
    """Return a number below 1e15, which may be written as text, and None for other values."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < 1e15 else None


def lower_names(values: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Return the names of the values that are not None, by their lower case.

    Raises UserError for two names that differ only in case and have different values.
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


# Keys that change the training


class Meaning(NamedTuple):
    """The meaning of a key that changes the training: the reason to reject it, and a predicate for
    values without an effect."""

    reason: str
    is_neutral: Callable[[Any], bool]


TOOLS = ("tools", "tool_calls", "functions", "function_call")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
LEARNED = ("weight", "train", "training", "loss")
"""Keys that mark a message as trained on or not: OpenAI's, two of axolotl's, and ms-swift's."""

_NO_TOOLS = Meaning("and tools are not supported; remove the tools and their turns.", is_empty)
_NO_MEDIA = Meaning("and only text is supported; remove such rows.", is_empty)
_NO_WEIGHTS = Meaning(
    "which is not supported; write 1 or remove the key.",
    lambda value: is_blank(value) or as_flag(value) is True,
)
_NO_SPANS = Meaning("and training on parts of a message is unsupported; remove the key.", is_empty)
_NO_SCORES = Meaning(
    "which rates the answer and is not used; keep the rows with good answers and remove or rename "
    "the key.",
    is_blank,
)
_NO_PREFERENCES = Meaning(
    "which marks the better answer and is not used here; remove or rename the key.", is_blank
)

UNSUPPORTED: Mapping[str, Meaning] = {
    **dict.fromkeys(TOOLS, _NO_TOOLS),
    **dict.fromkeys(MEDIA, _NO_MEDIA),
    **dict.fromkeys((*LEARNED, "sample_weight", "loss_weight", "loss_scale"), _NO_WEIGHTS),
    **dict.fromkeys(("train_detail", "training_detail"), _NO_SPANS),
}
"""Keys rejected in every row and message, unless a reader uses them."""

SCORES: Mapping[str, Meaning] = dict.fromkeys(
    ("score", "scores", "reward", "rewards", "rating", "ratings"), _NO_SCORES
)
"""Keys rejected next to answers, unless a reader uses them."""

PREFERENCES: Mapping[str, Meaning] = {
    **SCORES,
    **dict.fromkeys(("winner", "preference", "ranks"), _NO_PREFERENCES),
    "margin": Meaning("which is not supported; remove the key.", is_blank),
}
"""Keys rejected next to several answers to one prompt, unless a reader uses them."""


def check_keys(values: Mapping[str, Any], meanings: Mapping[str, Meaning], where: str) -> None:
    """Raise UserError naming the first of the lower-case keys that changes the training."""
    for name, value in values.items():
        meaning = meanings.get(name)
        if meaning is not None and not meaning.is_neutral(value):
            shown_value = f" {value!r}" if isinstance(value, str | int | float) else ""
            raise UserError(f'{where} has "{name}"{shown_value}, {meaning.reason}')


# Rows


class Fields:
    """The fields of a row by name in any case, and a record of the fields that were used.

    A field that is None counts as absent.
    """

    def __init__(self, row: Row) -> None:
        self.row = row
        self.where = row.where
        self.names = lower_names(row.fields, row.where)
        self.used: set[str] = set()
        self.inner_unused: dict[str, Any] = {}
        """Unused keys inside the fields by their path, for example `messages.name`, each with a
        value."""

    def get(self, *names: str) -> Any:
        """Return the first of these fields that is not blank, else the first that is present, else
        None."""
        present = [name for name in names if name in self.names]
        filled = [name for name in present if not is_blank(self.row.fields[self.names[name]])]
        for name in filled or present:
            self.used.add(name)
            return self.row.fields[self.names[name]]
        return None

    def has(self, *names: str) -> bool:
        """Return True if one of these fields is present and not blank."""
        return any(
            not is_blank(self.row.fields[self.names[name]]) for name in names if name in self.names
        )

    def unused(self) -> list[str]:
        """Return the names of the fields that were never used and are not blank."""
        names = [self.names[name] for name in self._unused() if self.has(name)]
        return names + sorted(self.inner_unused)

    def check_unused(self, meanings: Mapping[str, Meaning]) -> None:
        """Raise UserError for an unused key of the row, or inside its fields, that changes the
        training."""
        outer = {name: self.row.fields[self.names[name]] for name in self._unused()}
        check_keys(outer, meanings, self.where)
        inner = {path.partition(".")[2]: value for path, value in self.inner_unused.items()}
        check_keys(inner, meanings, self.where)
        self.used.update(meanings.keys() & self.names.keys())

    def columns(self, wanted: Collection[str] | None) -> dict[str, Any]:
        """Return the fields named in `wanted`, or with None all unused fields, unchanged."""
        if wanted is None:
            wanted = [self.names[name] for name in self._unused()]
        self.used.update(name.lower() for name in wanted)
        return {name: self.row.fields[name] for name in wanted if name in self.row.fields}

    def _unused(self) -> list[str]:
        return [name for name in self.names if name not in self.used]
