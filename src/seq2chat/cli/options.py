"""Every option of a `Recipe` as a flag."""

import dataclasses
from typing import Annotated, Any, get_args, get_type_hints

from cyclopts import Parameter

from seq2chat.config import GPT3, AlignConfig, ModelConfig, Recipe

# Cyclopts takes a class of make_dataclass for a builtin unless it has a module.
_MODULE = {"__module__": __name__}


def _described(section: type) -> list[tuple[str, Any, str]]:
    """Return name, type and help of each field of `section`; the help ends with the default."""
    hints = get_type_hints(section, include_extras=True)
    described = []
    for f in dataclasses.fields(section):
        kind, text = get_args(hints[f.name])
        default = str(f.default).lower() if kind is bool else f.default
        described.append((f.name, kind, f"{text} [default: {default}]" if default != "" else text))
    return described


def _flags(section: type, table: str) -> type:
    """Return a dataclass like `section` in which None means "not given", so that flags can override
    a recipe."""
    fields = [
        (name, Annotated[kind | None, Parameter(help=text)], None)
        for name, kind, text in _described(section)
    ]
    return dataclasses.make_dataclass(
        f"{table.title()}Flags", fields, frozen=True, namespace=_MODULE
    )


def _union_flags(union: Any, table: str, key: str, default: str) -> type:
    """Return flags for the options of all members of a union, such as the shapes of all model
    families. `key` selects the member; making the recipe checks which options it has."""
    members = get_args(union)
    kinds: dict[str, Any] = {}
    # For each flag: its help texts, and the members with that text.
    texts: dict[str, dict[str, list[str]]] = {}
    for config in members:
        for name, kind, text in _described(config):
            kinds[name] = kinds.get(name, kind) | kind if kinds.get(name, kind) != kind else kind
            texts.setdefault(name, {}).setdefault(text, []).append(getattr(config, key))
    names = "|".join(getattr(config, key) for config in members)
    fields: list[tuple[str, Any, None]] = [
        (key, Annotated[str | None, Parameter(help=f"{names}{default}")], None)
    ]
    for name, kind in kinds.items():
        text = "; ".join(f"{text} [{', '.join(owners)}]" for text, owners in texts[name].items())
        fields.append((name, Annotated[kind | None, Parameter(help=text)], None))
    return dataclasses.make_dataclass(
        f"{table.title()}Flags", fields, frozen=True, namespace=_MODULE
    )


def _table_flags(name: str, section: Any) -> type:
    match name:
        case "model":
            return _union_flags(ModelConfig, name, "family", " (gpt)")
        case "align":
            return _union_flags(AlignConfig, name, "method", "")
    return _flags(section, name)


_TABLES = {
    name: _table_flags(name, section)
    for name, section in get_type_hints(Recipe).items()
    if name != "expect"
}
_PRESET = Annotated[
    str | None,
    Parameter(name="--model.preset", group="model", help=f"shape of a GPT-3: {', '.join(GPT3)}"),
]

RecipeFlags = dataclasses.make_dataclass(
    "RecipeFlags",
    [(name, Annotated[flags, Parameter(group=name)], flags()) for name, flags in _TABLES.items()]
    + [("preset", _PRESET, None)],
    frozen=True,
    namespace=_MODULE,
)
"""One nested dataclass per table of the recipe, for example `--optim.matrix-lr 0.01`."""


def given(flags: Any) -> dict[str, dict[str, Any]]:
    """Return the tables of the flags that were given."""
    tables = {
        name: {k: v for k, v in vars(getattr(flags, name)).items() if v is not None}
        for name in _TABLES
    }
    if flags.preset is not None:
        tables["model"]["preset"] = flags.preset
    return {name: table for name, table in tables.items() if table}
