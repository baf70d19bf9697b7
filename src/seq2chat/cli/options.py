"""Every key of a `Recipe` as a flag."""

import dataclasses
from typing import Annotated, Any, get_args, get_type_hints

from cyclopts import Parameter

from seq2chat.config import GPT3, ModelConfig, Recipe

_MODULE = {"__module__": __name__}  # cyclopts takes a class of make_dataclass for a builtin unless told its module


def _flags(section: type, table: str) -> type:
    """A dataclass like `section` in which None means "not given", so that given flags can be laid over a recipe."""
    hints = get_type_hints(section, include_extras=True)
    fields = []
    for f in dataclasses.fields(section):
        kind, text = get_args(hints[f.name])
        default = str(f.default).lower() if kind is bool else f.default
        shown = Parameter(help=f"{text} ({default})" if f.default != "" else text)
        fields.append((f.name, Annotated[kind | None, shown], None))
    return dataclasses.make_dataclass(f"{table.title()}Flags", fields, frozen=True, namespace=_MODULE)


def _model_flags() -> type:
    """Flags for the shapes of all families together; which of them a family knows is told when the recipe is made."""
    families = get_args(ModelConfig)
    about: dict[str, tuple[Any, dict[str, str]]] = {}
    for family in families:
        hints = get_type_hints(family, include_extras=True)
        for f in dataclasses.fields(family):
            kind, text = get_args(hints[f.name])
            default = str(f.default).lower() if kind is bool else f.default
            before, texts = about.setdefault(f.name, (kind, {}))
            about[f.name] = (before | kind if before != kind else kind, texts)
            texts[family.family] = f"{text} ({default})"
    names = "|".join(family.family for family in families)
    fields: list[tuple[str, Any, None]] = [("family", Annotated[str | None, Parameter(help=f"{names} (gpt)")], None)]
    for name, (kind, texts) in about.items():
        by_text: dict[str, list[str]] = {}
        for family, text in texts.items():
            by_text.setdefault(text, []).append(family)
        shown = "; ".join(f"{text} [{', '.join(whose)}]" for text, whose in by_text.items())
        fields.append((name, Annotated[kind | None, Parameter(help=shown)], None))
    return dataclasses.make_dataclass("ModelFlags", fields, frozen=True, namespace=_MODULE)


_TABLES = {
    name: _model_flags() if name == "model" else _flags(section, name)
    for name, section in get_type_hints(Recipe).items()
    if name != "expect"
}
_PRESET = Annotated[
    str | None, Parameter(name="--model.preset", group="model", help=f"shape of a GPT-3: {', '.join(GPT3)}")
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
    tables = {name: {k: v for k, v in vars(getattr(flags, name)).items() if v is not None} for name in _TABLES}
    if flags.preset is not None:
        tables["model"]["preset"] = flags.preset
    return {name: table for name, table in tables.items() if table}
