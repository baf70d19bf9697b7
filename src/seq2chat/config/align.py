"""The options of each alignment method, one dataclass per method."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

from seq2chat.config.errors import check

Start = Annotated[str, "run or model folder to start from; also the reference policy"]
Examples = Annotated[
    int,
    "number of demonstrations, ranked prompts or prompts; 0 is 10,000 of the world, or all of a "
    "file",
]
Strict = Annotated[
    bool, "refuse bad lines and examples longer than the context instead of leaving them out"
]
LoraRank = Annotated[int, "train adapters of this rank instead of the matrices; 0 trains all"]
LoraAlpha = Annotated[
    float, "adapters are multiplied by this and divided by their rank; 0 is twice the rank"
]
Reward = Annotated[str, "run of a reward model, oracle, or FILE.py:FUNCTION"]
MaxTokens = Annotated[int, "maximum number of tokens of a sampled answer"]
MissingEos = Annotated[
    float,
    "an answer that does not end scores minus this; 0 is derived to be lower than bad answers",
]
Ptx = Annotated[float, "weight γ of the pretraining gradient in each step"]
PtxBatch = Annotated[int, "windows of pretraining text per update"]
PtxCorpus = Annotated[str, "text of the pretraining gradient"]
Beta = Annotated[float, "weight of the KL divergence from the reference policy"]
Episodes = Annotated[int, "answers per iteration"]
InnerEpochs = Annotated[int, "passes over the answers of an iteration"]
Temperature = Annotated[float, "divides the logits, in rollouts and in training alike"]
Clip = Annotated[float, "maximum distance of the probability ratio from 1"]


@dataclass(frozen=True)
class SFTConfig:
    """Options of supervised fine-tuning."""

    method: ClassVar[str] = "sft"

    start: Start = ""
    examples: Examples = 0
    reward: Annotated[
        str,
        "chooses among checkpoints: run of a reward model, oracle, or FILE.py:FUNCTION",
    ] = ""
    missing_eos: MissingEos = 0.0
    max_tokens: MaxTokens = 32
    ptx: Ptx = 0.0
    ptx_batch: PtxBatch = 8
    ptx_corpus: PtxCorpus = ""
    rehearse: Annotated[
        int,
        "general requests whose answers by the starting model are learned as well, so that it "
        "forgets less",
    ] = 0
    lora_rank: LoraRank = 0
    lora_alpha: LoraAlpha = 0.0
    strict: Strict = False

    def __post_init__(self) -> None:
        _check_lora(self)
        _check_positive(self, "max_tokens", "ptx_batch")
        _check_not_negative(self, "examples", "ptx", "rehearse", "lora_rank", "lora_alpha")
        _check_ptx(self.ptx, self.ptx_corpus)


@dataclass(frozen=True)
class RewardModelingConfig:
    """Options of training a reward model."""

    method: ClassVar[str] = "reward"

    start: Start = ""
    examples: Examples = 0
    strict: Strict = False

    def __post_init__(self) -> None:
        _check_not_negative(self, "examples")


@dataclass(frozen=True)
class DPOConfig:
    """Options of direct preference optimization."""

    method: ClassVar[str] = "dpo"

    start: Start = ""
    examples: Examples = 0
    beta: Beta = 0.1
    max_tokens: MaxTokens = 32
    lora_rank: LoraRank = 0
    lora_alpha: LoraAlpha = 0.0
    strict: Strict = False

    def __post_init__(self) -> None:
        _check_lora(self)
        _check_positive(self, "max_tokens")
        _check_not_negative(self, "examples", "beta", "lora_rank", "lora_alpha")


@dataclass(frozen=True)
class PPOConfig:
    """Options of proximal policy optimization."""

    method: ClassVar[str] = "ppo"

    start: Start = ""
    reward: Reward = ""
    examples: Examples = 0
    beta: Beta = 0.02
    kl_target: Annotated[
        float, "target KL in nats per answer that beta is adapted to; 0 keeps beta fixed"
    ] = 0.0
    ptx: Ptx = 0.0
    ptx_batch: PtxBatch = 8
    ptx_corpus: PtxCorpus = ""
    episodes: Episodes = 128
    inner_epochs: InnerEpochs = 1
    max_tokens: MaxTokens = 32
    temperature: Temperature = 1.0
    clip: Clip = 0.2
    value_clip: Annotated[
        float,
        "maximum distance of values from the rollout's; 0 is 2 standard deviations of the scores",
    ] = 0.0
    value_lr: Annotated[
        float, "learning rates of the value function, as multiples of the policy's"
    ] = 1.0
    gae_lambda: Annotated[float, "λ of generalized advantage estimation"] = 0.95
    missing_eos: MissingEos = 0.0
    ema: Annotated[
        float, "decay of the weight average that is kept as the result; 0 keeps the last weights"
    ] = 0.0
    lora_rank: LoraRank = 0
    lora_alpha: LoraAlpha = 0.0
    strict: Strict = False

    @property
    def n_prompts(self) -> int:
        """The number of prompts per iteration."""
        return self.episodes

    def __post_init__(self) -> None:
        _check_lora(self)
        _check_positive(self, "episodes", "inner_epochs", "max_tokens", "ptx_batch", "temperature")
        _check_positive(self, "value_lr")
        _check_not_negative(
            self,
            "examples",
            "beta",
            "kl_target",
            "ptx",
            "clip",
            "value_clip",
            "lora_rank",
            "lora_alpha",
        )
        for name in ("gae_lambda", "ema"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"align.{name} is {value}; write a number in [0, 1].")
        _check_ptx(self.ptx, self.ptx_corpus)


@dataclass(frozen=True)
class GRPOConfig:
    """Options of group relative policy optimization."""

    method: ClassVar[str] = "grpo"

    start: Start = ""
    reward: Reward = ""
    examples: Examples = 0
    beta: Beta = 0.0
    episodes: Episodes = 128
    group: Annotated[int, "answers per prompt"] = 8
    inner_epochs: InnerEpochs = 1
    max_tokens: MaxTokens = 32
    temperature: Temperature = 1.0
    clip: Clip = 0.2
    missing_eos: MissingEos = 0.0
    lora_rank: LoraRank = 0
    lora_alpha: LoraAlpha = 0.0
    strict: Strict = False

    @property
    def n_prompts(self) -> int:
        """The number of prompts per iteration, each with a group of answers."""
        return self.episodes // self.group

    def __post_init__(self) -> None:
        _check_lora(self)
        _check_positive(self, "episodes", "group", "inner_epochs", "max_tokens", "temperature")
        _check_not_negative(self, "examples", "beta", "clip", "lora_rank", "lora_alpha")
        check(
            self.episodes % self.group == 0,
            f"align.episodes is {self.episodes} and align.group {self.group}; write a multiple of "
            "the group.",
        )
        check(self.group > 1, "align.group is 1; grpo compares answers, so write 2 or more.")


@runtime_checkable
class RolloutOptions(Protocol):
    """The options of methods that score answers of the policy."""

    reward: str
    examples: int
    strict: bool
    max_tokens: int
    temperature: float
    missing_eos: float
    episodes: int

    @property
    def n_prompts(self) -> int: ...


AlignConfig = SFTConfig | RewardModelingConfig | DPOConfig | PPOConfig | GRPOConfig


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        check(value > 0, f"align.{name} is {value}; write a positive number.")


def _check_not_negative(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        check(value >= 0, f"align.{name} is {value}; write 0 or more.")


def _check_ptx(ptx: float, corpus: str) -> None:
    check(
        bool(ptx) == bool(corpus),
        "align.ptx and align.ptx_corpus belong together: a weight, and the text of the pretraining "
        "gradient.",
    )


def _check_lora(config: Any) -> None:
    check(
        config.lora_rank > 0 or config.lora_alpha == 0,
        f"align.lora_alpha is {config.lora_alpha} without align.lora_rank; write a rank, too.",
    )


def lora_alpha(align: Any) -> float:
    """Return the number α by which adapters are multiplied, and divided by their rank."""
    return align.lora_alpha or 2.0 * align.lora_rank


def field_defaults(config: type) -> dict[str, Any]:
    """Return the default of each option of a config class."""
    return {f.name: f.default for f in dataclasses.fields(config)}
