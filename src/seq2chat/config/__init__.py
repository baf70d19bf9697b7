"""Every option of a run as frozen dataclasses, and their strict exchange with TOML.

A run is described by one `Recipe`. It is read from a recipe that ships with the package, from a
`config.toml` of an earlier run, or from flags; unknown keys and wrong types are errors that name
the key and the nearest valid one. This module loads no torch, so that the command line can print
every option at once.
"""

from seq2chat.config.errors import UserError, check
from seq2chat.config.recipe import (
    AlignConfig,
    Budget,
    DataConfig,
    ExpectConfig,
    OptimConfig,
    Recipe,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
    recipe_names,
    recipe_tables,
)
from seq2chat.config.shapes import (
    GPT3,
    BERTConfig,
    GPTConfig,
    ModelConfig,
    RewardConfig,
    Seq2SeqConfig,
    TransformerConfig,
)
from seq2chat.config.toml import build, read_toml, to_toml

__all__ = [
    "GPT3",
    "AlignConfig",
    "BERTConfig",
    "Budget",
    "DataConfig",
    "ExpectConfig",
    "GPTConfig",
    "ModelConfig",
    "OptimConfig",
    "Recipe",
    "RewardConfig",
    "ScheduleConfig",
    "Seq2SeqConfig",
    "TokenizerConfig",
    "TrainConfig",
    "TransformerConfig",
    "UserError",
    "build",
    "check",
    "read_toml",
    "recipe_names",
    "recipe_tables",
    "to_toml",
]
