"""Every key of a `Recipe` as a flag."""

import dataclasses
from typing import Annotated, Any, get_args, get_type_hints

from cyclopts import Parameter

from seq2chat.config import GPT3, ModelConfig, Recipe

# Cyclopts takes a class of make_dataclass for a builtin unless told its module.
_MODULE = {"__module__": __name__}


def _described(section: type) -> list[tuple[str, Any, str]]:
    """Name, type and help with the default of each field of `section`."""
    hints, described = get_type_hints(section, include_extras=True), []
    for f in dataclasses.fields(section):
        kind, text = get_args(hints[f.name])
        default = str(f.default).lower() if kind is bool else f.default
        described.append((f.name, kind, f"{text} [default: {default}]" if default != "" else text))
    return described


def _flags(section: type, table: str) -> type:
    """A dataclass like `section` in which None means "not given", so that given flags can be laid
    over a recipe."""
    fields = [
        (name, Annotated[kind | None, Parameter(help=text)], None)
        for name, kind, text in _described(section)
    ]
    return dataclasses.make_dataclass(
        f"{table.title()}Flags", fields, frozen=True, namespace=_MODULE
    )


def _model_flags() -> type:
    """Flags for the shapes of all families together; which of them a family knows is told when the
    recipe is made."""
    kinds: dict[str, Any] = {}
    # For each flag: what it says, and of which families.
    texts: dict[str, dict[str, list[str]]] = {}
    for config in get_args(ModelConfig):
        for name, kind, text in _described(config):
            kinds[name] = kinds.get(name, kind) | kind if kinds.get(name, kind) != kind else kind
            texts.setdefault(name, {}).setdefault(text, []).append(config.family)
    families = "|".join(config.family for config in get_args(ModelConfig))
    fields: list[tuple[str, Any, None]] = [
        ("family", Annotated[str | None, Parameter(help=f"{families} (gpt)")], None)
    ]
    for name, kind in kinds.items():
        shown = "; ".join(f"{text} [{', '.join(whose)}]" for text, whose in texts[name].items())
        fields.append((name, Annotated[kind | None, Parameter(help=shown)], None))
    return dataclasses.make_dataclass("ModelFlags", fields, frozen=True, namespace=_MODULE)


_TABLES = {
    name: _model_flags() if name == "model" else _flags(section, name)
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
"""One nested dataclass a table of the recipe: `--optim.matrix-lr 0.01` and so on."""


def given(flags: Any) -> dict[str, dict[str, Any]]:
    """Tables of the flags that were given."""
    tables = {
        name: {k: v for k, v in vars(getattr(flags, name)).items() if v is not None}
        for name in _TABLES
    }
    if flags.preset is not None:
        tables["model"]["preset"] = flags.preset
    return {name: table for name, table in tables.items() if table}
