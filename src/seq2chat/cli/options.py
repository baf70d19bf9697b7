"""Every option of a `Recipe` as a flag, for example `--optim.matrix-lr 0.01`."""

import dataclasses
from typing import Annotated, Any, get_args, get_type_hints

from cyclopts import Parameter

from seq2chat.config import GPT3, ModelConfig, Recipe

# Without a module, cyclopts takes a class made by make_dataclass for a builtin.
_MODULE = {"__module__": __name__}


def _described(section: type) -> list[tuple[str, Any, str]]:
    """Return name, type, and help with the default for each field of `section`."""
    hints = get_type_hints(section, include_extras=True)
    described = []
    for field in dataclasses.fields(section):
        kind, text = get_args(hints[field.name])
        default = str(field.default).lower() if kind is bool else field.default
        if default != "":
            text = f"{text} [default: {default}]"
        described.append((field.name, kind, text))
    return described


def _flags(section: type, table: str) -> type:
    """Return a dataclass like `section` in which every default is None.

    None means "not given", so that the given flags can be laid over a recipe.
    """
    fields = [
        (name, Annotated[kind | None, Parameter(help=text)], None)
        for name, kind, text in _described(section)
    ]
    return dataclasses.make_dataclass(
        f"{table.title()}Flags", fields, frozen=True, namespace=_MODULE
    )


def _model_flags() -> type:
    """Return a dataclass of the flags for the shapes of all families.

    Whether a family has an option is checked when the recipe is made.
    """
    configs = get_args(ModelConfig)
    kinds: dict[str, Any] = {}
    # The families of each help text of each flag, as families may describe an option differently.
    families_of: dict[str, dict[str, list[str]]] = {}
    for config in configs:
        for name, kind, text in _described(config):
            kinds[name] = kinds[name] | kind if name in kinds else kind
            families_of.setdefault(name, {}).setdefault(text, []).append(config.family)
    families = "|".join(config.family for config in configs)
    family_help = f"{families} [default: gpt]"
    fields: list[tuple[str, Any, None]] = [
        ("family", Annotated[str | None, Parameter(help=family_help)], None)
    ]
    for name, kind in kinds.items():
        texts = [f"{', '.join(names)}: {text}" for text, names in families_of[name].items()]
        fields.append((name, Annotated[kind | None, Parameter(help="; ".join(texts))], None))
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
"""One nested dataclass per table of the recipe."""


def given(flags: Any) -> dict[str, dict[str, Any]]:
    """Return the given flags as tables of a recipe."""
    tables = {
        name: {k: v for k, v in vars(getattr(flags, name)).items() if v is not None}
        for name in _TABLES
    }
    if flags.preset is not None:
        tables["model"]["preset"] = flags.preset
    return {name: table for name, table in tables.items() if table}
