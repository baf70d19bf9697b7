"""Every option of a `Recipe` as a flag."""

import dataclasses
from collections.abc import Collection, Sequence
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


# Options that alignment has no use for.
PRETRAINING_ONLY = {
    "data": {"source", "target", "max_characters", "document_mask", "mask_share"},
    "train": {"start", "init", "prompt", "label_smoothing"},
}


def _flags(section: type, table: str, hidden: Collection[str] = ()) -> type:
    """Return a dataclass like `section` in which None means "not given", so that flags can override
    a recipe."""
    fields = [
        (name, Annotated[kind | None, Parameter(help=text, show=name not in hidden)], None)
        for name, kind, text in _described(section)
    ]
    return dataclasses.make_dataclass(
        f"{table.title()}Flags", fields, frozen=True, namespace=_MODULE
    )


def _union_flags(
    members: Sequence[Any], table: str, key: str, default: str, shown: Collection[str]
) -> type:
    """Return flags for the options of all `members` of a union, such as the shapes of all model
    families. `key` selects the member; making the recipe checks which options it has.

    Help shows the options of the members in `shown`, and options that are in it by name.
    """
    kinds: dict[str, Any] = {}
    # For each flag: its help texts, and the members with that text.
    texts: dict[str, dict[str, list[str]]] = {}
    for config in members:
        for name, kind, text in _described(config):
            kinds[name] = kinds.get(name, kind) | kind if kinds.get(name, kind) != kind else kind
            texts.setdefault(name, {}).setdefault(text, []).append(getattr(config, key))
    names = "|".join(getattr(config, key) for config in members)
    parameter = Parameter(help=f"{names}{default}", show=len(shown) == len(members))
    fields: list[tuple[str, Any, None]] = [(key, Annotated[str | None, parameter], None)]
    for name, kind in kinds.items():
        text = "; ".join(f"{text} [{', '.join(owners)}]" for text, owners in texts[name].items())
        own = [text for text, owners in texts[name].items() if set(owners) & set(shown)]
        parameter = Parameter(
            help=own[0] if len(shown) == 1 and own else text, show=bool(own) or name in shown
        )
        fields.append((name, Annotated[kind | None, parameter], None))
    return dataclasses.make_dataclass(
        f"{table.title()}Flags", fields, frozen=True, namespace=_MODULE
    )


_TABLES = {name: section for name, section in get_type_hints(Recipe).items() if name != "expect"}


def recipe_flags(method: str) -> type:
    """Return a dataclass with one nested dataclass per table of the recipe, whose fields are flags,
    for example `--optim.matrix-lr 0.01`.

    Every flag is accepted, and making the recipe checks which options it has. Help shows those of
    the alignment `method`, or of pretraining if that is empty.
    """
    preset = Parameter(
        name="--model.preset",
        group="model",
        help=f"shape of a GPT-3: {', '.join(GPT3)}",
        show=method == "",
    )
    fields: list[tuple[str, Any, Any]] = []
    for name, section in _TABLES.items():
        match name:
            case "model":
                # An aligned model has the shape and the tokenizer of its start, but own dropout.
                members = [c for c in get_args(ModelConfig) if c.objective != "score"]
                shown = ["dropout"] if method else [c.family for c in members]
                flags = _union_flags(members, name, "family", " (gpt)", shown)
            case "align":
                flags = _union_flags(get_args(AlignConfig), name, "method", "", [method])
            case _:
                all_names = [f.name for f in dataclasses.fields(section)]
                unused = all_names if name == "tokenizer" else PRETRAINING_ONLY.get(name, ())
                flags = _flags(section, name, unused if method else ())
        fields.append((name, Annotated[flags, Parameter(group=name)], flags()))
    fields.append(("preset", Annotated[str | None, preset], None))
    return dataclasses.make_dataclass("RecipeFlags", fields, frozen=True, namespace=_MODULE)


def given(flags: Any) -> dict[str, dict[str, Any]]:
    """Return the tables of the flags that were given."""
    tables = {
        name: {k: v for k, v in vars(getattr(flags, name)).items() if v is not None}
        for name in _TABLES
    }
    if flags.preset is not None:
        tables["model"]["preset"] = flags.preset
    return {name: table for name, table in tables.items() if table}
