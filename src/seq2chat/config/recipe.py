"""A recipe: the complete description of a training run."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from seq2chat.config.align import AlignConfig, field_defaults
from seq2chat.config.errors import UserError, check
from seq2chat.config.options import (
    DataConfig,
    ExpectConfig,
    OptimConfig,
    ParallelConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)
from seq2chat.config.shapes import GPT3, GPTConfig, ModelConfig, Objective
from seq2chat.config.toml import build, did_you_mean, read_toml, to_toml

# Options that only some objectives use. With another one they would be ignored, so they are
# refused.
_OBJECTIVES: dict[tuple[str, str], tuple[Objective, ...]] = {
    ("data", "source"): ("translation",),
    ("data", "max_characters"): ("next token", "masked tokens"),
    ("data", "document_mask"): ("next token",),
    ("tokenizer", "lowercase"): ("masked tokens",),
    ("tokenizer", "strip_accents"): ("masked tokens",),
    ("data", "mask_share"): ("masked tokens",),
    ("train", "label_smoothing"): ("translation",),
    ("train", "prompt"): ("next token",),
    ("train", "init"): ("next token",),
    ("train", "gradient_checkpointing"): ("next token", "score"),
}


@dataclass(frozen=True)
class Recipe:
    """The complete description of a training run; `config.toml` of a run folder holds one.

    `align` is None for pretraining.
    """

    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=GPTConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    align: AlignConfig | None = None
    expect: ExpectConfig = field(default_factory=ExpectConfig)

    def __post_init__(self) -> None:
        family = self.model.family
        for (table, key), objectives in _OBJECTIVES.items():
            section = getattr(self, table)
            default = field_defaults(type(section))[key]
            families = [c.family for c in get_args(ModelConfig) if c.objective in objectives]
            check(
                family in families or getattr(section, key) == default,
                f"{table}.{key} is for a {' or a '.join(families)}; a {family} has no use for it, "
                "so leave it out.",
            )
        size = self.tokenizer.vocab_size
        check(
            # The minimum of a WordPiece depends on the text, and is checked there.
            self.tokenizer.path != "" or size >= 260 or self.model.objective == "masked tokens",
            f"tokenizer.vocab_size is {size}; write at least 260 (256 bytes and 4 control tokens).",
        )

    @property
    def method(self) -> str:
        """The alignment method, or an empty string for pretraining."""
        return "" if self.align is None else self.align.method

    @classmethod
    def from_tables(cls, *layers: dict[str, Any], source: str = "the recipe") -> Recipe:
        """Return the recipe of the merged `layers`; later ones win.

        Raises UserError for unknown keys, values of a wrong type, and options in all but the first
        layer that the recipe does not use.
        """
        merged = _merge(layers, source)
        model = merged.pop("model", {})
        align = merged.pop("align", {})
        sections = {f.name: f.default_factory for f in dataclasses.fields(cls)}
        for table in merged:
            if table not in sections:
                raise UserError(
                    f"Unknown table [{table}] in {source}.{did_you_mean(table, list(sections))}"
                )
        family = _family(model.pop("family", "gpt"), source)
        built = {table: build(sections[table], table, merged[table], source) for table in merged}
        built["model"] = build(family, "model", model, source)
        built["align"] = _build_align(align, source)
        recipe = cls(**built)
        for changes in layers[1:]:
            _refuse_unused(recipe, changes)
        return recipe

    @classmethod
    def load(cls, path: Path, changes: dict[str, dict[str, Any]] | None = None) -> Recipe:
        """Return the recipe in the TOML file at `path`, overridden by `changes`.

        Raises UserError if the file is missing, is not TOML, or holds an unknown key.
        """
        return cls.from_tables(read_toml(path), changes or {}, source=str(path))

    def with_options(self, table: str, **options: Any) -> Recipe:
        """Return the recipe with these options of `table` replaced."""
        section = dataclasses.replace(getattr(self, table), **options)
        return dataclasses.replace(self, **{table: section})

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return all options as the tables of a TOML file."""
        tables = {
            f.name: dataclasses.asdict(getattr(self, f.name))
            for f in dataclasses.fields(self)
            if getattr(self, f.name) is not None
        }
        tables["model"] = {"family": self.model.family} | tables["model"]
        if self.align is not None:
            tables["align"] = {"method": self.align.method} | tables["align"]
        return tables

    def save(self, path: Path) -> None:
        """Write the recipe to `path` atomically."""
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(to_toml(self.tables()), encoding="utf-8")
        temporary.replace(path)


def _merge(layers: Iterable[dict[str, Any]], source: str) -> dict[str, dict[str, Any]]:
    """Return the merged tables, with a preset replaced by its options."""
    merged: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for table, keys in layer.items():
            if not isinstance(keys, dict):
                raise UserError(
                    f"Unknown option {table} in {source}. Options belong in a table such as "
                    "[train]."
                )
            options = dict(keys)
            if table == "model" and "preset" in options:
                options = _preset(options.pop("preset")) | options
            merged.setdefault(table, {}).update(options)
    return merged


def _build_align(keys: dict[str, Any], source: str) -> AlignConfig | None:
    """Return the options of `align.method`, or None without one.

    An option of another method is refused, unless it has its default value and so requests
    nothing: a `config.toml` of version 0.1 lists the options of all methods.
    """
    methods: dict[str, Any] = {config.method: config for config in get_args(AlignConfig)}
    method = keys.get("method", "")
    check(
        method in ("", *methods),
        f"align.method is {method!r} in {source}; write one of {', '.join(methods)}.",
    )
    known = field_defaults(methods[method]) if method else {}
    own = {key: value for key, value in keys.items() if key in known}
    for key, value in keys.items():
        if key == "method" or key in known:
            continue
        owners = [name for name, config in methods.items() if key in field_defaults(config)]
        if not owners:
            names = dict.fromkeys(name for m in methods.values() for name in field_defaults(m))
            hint = did_you_mean(key, list(names), prefix="align.")
            known_names = f" [align] knows {', '.join(known or names)}."
            raise UserError(f"Unknown option align.{key} in {source}.{hint or known_names}")
        check(
            any(value == field_defaults(methods[owner])[key] for owner in owners),
            f"align.{key} is for {' and '.join(owners)}; "
            + (f"{method} has no use for it." if method else "without align.method it has no use."),
        )
    return build(methods[method], "align", own, source) if method else None


def _refuse_unused(recipe: Recipe, changes: dict[str, dict[str, Any]]) -> None:
    """Raise UserError for an option among `changes` that has no effect in `recipe`."""
    for (table, name), (is_used, reason) in _USED_IF.items():
        if name in changes.get(table, {}):
            value = getattr(getattr(recipe, table), name)
            check(is_used(recipe), f"{table}.{name} is {value}, but {reason}, so leave it out.")


# Options that are used only together with another one. The file of a recipe may contain them, as
# `config.toml` contains every option.
_USED_IF: dict[tuple[str, str], tuple[Callable[[Recipe], bool], str]] = {
    ("model", "rope_theta"): (
        lambda recipe: getattr(recipe.model, "layout", "") != "gpt2",
        "the gpt2 layout has learned positions",
    ),
    ("model", "tie_embeddings"): (
        lambda recipe: getattr(recipe.model, "layout", "") != "gpt2",
        "the gpt2 layout always ties them",
    ),
    ("optim", "momentum"): (
        lambda recipe: recipe.optim.matrices == "muon",
        'optim.matrices is not "muon"',
    ),
    ("optim", "head_lr"): (
        lambda recipe: (
            recipe.align is not None or not getattr(recipe.model, "tie_embeddings", False)
        ),
        "the head is the embedding, whose rate is optim.embedding_lr",
    ),
    ("schedule", "decay"): (
        lambda recipe: recipe.schedule.shape == "wsd",
        'schedule.shape is not "wsd"',
    ),
    ("data", "max_characters"): (
        lambda recipe: recipe.align is None,
        "alignment reads all of its examples",
    ),
    ("train", "start"): (
        lambda recipe: recipe.align is None,
        "alignment starts from align.start",
    ),
    ("train", "init"): (
        lambda recipe: recipe.align is None and recipe.train.start == "",
        "the weights are those of the starting model",
    ),
}


def _preset(name: str) -> dict[str, Any]:
    if name not in GPT3:
        raise UserError(
            f"Unknown model.preset {name!r}.{did_you_mean(name, list(GPT3))} There are "
            f"{', '.join(GPT3)}."
        )
    return dataclasses.asdict(GPT3[name]) | {"vocab_size": 0}  # the vocabulary is the tokenizer's


def _family(name: Any, source: str) -> type[ModelConfig]:
    families = {config.family: config for config in get_args(ModelConfig)}
    check(
        name in families,
        f"model.family is {name!r} in {source}; write one of {', '.join(families)}.",
    )
    return families[name]


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    folder = resources.files("seq2chat") / "recipes"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def recipe_tables(name: str) -> dict[str, Any]:
    """Return the tables of the shipped recipe `name`."""
    return tomllib.loads(
        (resources.files("seq2chat") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    )
