"""Strict conversion of TOML tables to frozen dataclasses, and of tables to TOML."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from seq2chat.config.errors import UserError, check


def build(section: Any, table: str, keys: dict[str, Any], source: str) -> Any:
    """Return an instance of the dataclass `section` with these `keys`.

    Raises UserError for the first unknown key, and for the first value of a wrong type.
    """
    names = {f.name for f in dataclasses.fields(section)}
    hints = {name: hint for name, hint in get_type_hints(section).items() if name in names}
    for key, value in keys.items():
        if key not in hints:
            hint = (
                did_you_mean(key, list(hints), prefix=f"{table}.")
                or f" [{table}] knows {', '.join(hints)}."
            )
            raise UserError(f"Unknown option {table}.{key} in {source}.{hint}")
        if hints[key] is float and type(value) is int:
            keys = keys | {key: float(value)}
        elif get_origin(hints[key]) is Literal:
            choices = get_args(hints[key])
            check(
                value in choices,
                f"{table}.{key} is {value!r} in {source}; write one of {', '.join(choices)}.",
            )
        elif type(value) is float and not math.isfinite(value):
            raise UserError(f"{table}.{key} is {value} in {source}; write a finite number.")
        elif type(value) is not hints[key]:
            raise UserError(
                f"{table}.{key} is {value!r} in {source}; write a value of type "
                f"{hints[key].__name__}."
            )
    return section(**keys)


def did_you_mean(word: str, known: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {prefix}{near[0]}?" if near else ""


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of the TOML file at `path`. Raises UserError if it can't be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}.") from error


def to_toml(tables: dict[str, dict[str, Any]]) -> str:
    """Return TOML for tables of strings, numbers and booleans."""
    lines = []
    for table, keys in tables.items():
        lines += [
            f"[{table}]",
            *(f"{key} = {_toml_value(value)}" for key, value in keys.items()),
            "",
        ]
    return "\n".join(lines)


def _toml_value(value: str | bool | int | float) -> str:
    if isinstance(value, str):
        # A JSON string is a TOML basic string.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)
