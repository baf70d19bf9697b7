"""All options of a run as frozen dataclasses, and their strict exchange with TOML.

A run is described by one `Recipe`. It comes from a recipe that ships with the package, from the
`config.toml` of an earlier run, or from flags. Unknown keys and values of a wrong type are errors
that name the key and the closest valid one. The package imports no torch, so that the command line
can print every option at once.
"""

from seq2chat.config.align import (
    AlignConfig,
    DPOConfig,
    GRPOConfig,
    PPOConfig,
    RewardModelingConfig,
    SFTConfig,
)
from seq2chat.config.budget import Budget
from seq2chat.config.errors import Diverged, SharedError, Unreachable, UserError, check
from seq2chat.config.options import (
    DataConfig,
    ExpectConfig,
    OptimConfig,
    ParallelConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)
from seq2chat.config.recipe import Recipe, recipe_names, recipe_tables
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
    "DPOConfig",
    "DataConfig",
    "Diverged",
    "ExpectConfig",
    "GPTConfig",
    "GRPOConfig",
    "ModelConfig",
    "OptimConfig",
    "PPOConfig",
    "ParallelConfig",
    "Recipe",
    "RewardConfig",
    "RewardModelingConfig",
    "SFTConfig",
    "ScheduleConfig",
    "Seq2SeqConfig",
    "SharedError",
    "TokenizerConfig",
    "TrainConfig",
    "TransformerConfig",
    "Unreachable",
    "UserError",
    "build",
    "check",
    "read_toml",
    "recipe_names",
    "recipe_tables",
    "to_toml",
]
