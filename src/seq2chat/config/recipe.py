"""Recipe: all there is to say about a training run."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from seq2chat.config.errors import UserError, check
from seq2chat.config.shapes import GPT3, GPTConfig, ModelConfig
from seq2chat.config.toml import build, did_you_mean, read_toml, to_toml


@dataclass(frozen=True)
class DataConfig:
    corpus: Annotated[
        str,
        "named corpus, file of text, JSON, CSV or Parquet, folder, or hf:NAME; translation: table "
        "of two columns",
    ] = "pydocs"
    source: Annotated[str, "translation: file of sentences to translate, one a line"] = ""
    target: Annotated[str, "translation: file of their translations, line by line"] = ""
    val_fraction: Annotated[
        float, "share of the text held out for validation; alignment: of the prompts, at most 500"
    ] = 0.1
    field: Annotated[
        str, "field of the text in files of rows (JSON, CSV, Parquet) and hf: data"
    ] = "text"
    max_characters: Annotated[
        int, "train on a sample of so many characters, spread over the text; 0 takes all"
    ] = 0
    document_mask: Annotated[bool, "keep attention inside each packed document"] = False
    mask_share: Annotated[float, "BERT: share of the tokens to be guessed in training"] = 0.15

    def __post_init__(self) -> None:
        for name in ("val_fraction", "mask_share"):
            value = getattr(self, name)
            check(0 < value < 1, f"data.{name} is {value}; write a number between 0 and 1.")
        check(
            self.max_characters >= 0,
            f"data.max_characters is {self.max_characters}; write 0 or more.",
        )
        check(
            bool(self.source) == bool(self.target),
            "data.source and data.target belong together: one file of sentences, one of their "
            "translations.",
        )


MOST_TOKENS = 1_000_000  # of a vocabulary; the largest published ones have about 260,000


@dataclass(frozen=True)
class TokenizerConfig:
    vocab_size: Annotated[
        int, "bytes, merges and control tokens together; 260 is the plain byte tokenizer"
    ] = 4096
    path: Annotated[str, "use the tokenizer.json in this folder instead of training one"] = ""
    lowercase: Annotated[Literal["auto", "on", "off"], "BERT: fold case; auto does"] = "auto"
    strip_accents: Annotated[
        Literal["auto", "on", "off"],
        "BERT: drop accents; auto does where case is folded and marks spell no vowels",
    ] = "auto"

    def __post_init__(self) -> None:
        check(
            self.vocab_size <= MOST_TOKENS,
            f"tokenizer.vocab_size is {self.vocab_size}; write at most {MOST_TOKENS:,}.",
        )


@dataclass(frozen=True)
class OptimConfig:
    matrices: Annotated[Literal["muon", "adamw"], "optimizer of the blocks' matrices"] = "muon"
    matrix_lr: Annotated[
        float, "peak learning rate of the matrices; 0 is 0.02 (muon) or 0.002 (adamw)"
    ] = 0.0
    embedding_lr: Annotated[float, "peak learning rate of embeddings and positions"] = 0.02
    head_lr: Annotated[float, "peak learning rate of an untied output head"] = 0.004
    vector_lr: Annotated[float, "peak learning rate of norms and biases"] = 0.004
    momentum: Annotated[float, "Muon's momentum"] = 0.95
    beta1: Annotated[float, "AdamW's decay of the first moment"] = 0.9
    beta2: Annotated[float, "AdamW's decay of the second moment"] = 0.95
    epsilon: Annotated[float, "AdamW's epsilon"] = 1e-8
    weight_decay: Annotated[float, "decoupled weight decay of the matrices"] = 0.1
    clip: Annotated[float, "clip the global gradient norm to this; 0 does not clip"] = 1.0

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if f.name != "matrices":
                check(
                    getattr(self, f.name) >= 0,
                    f"optim.{f.name} is {getattr(self, f.name)}; write 0 or more.",
                )
        if not self.matrix_lr:
            object.__setattr__(self, "matrix_lr", 0.02 if self.matrices == "muon" else 0.002)


@dataclass(frozen=True)
class ScheduleConfig:
    shape: Annotated[
        Literal["wsd", "cosine", "noam"],
        "warmup-stable-decay (linear decay), cosine, or falling as 1/√step (2017)",
    ] = "wsd"
    warmup: Annotated[float, "share of the run spent rising to the peak"] = 0.02
    decay: Annotated[float, "share of the run spent falling (wsd only)"] = 0.6
    floor: Annotated[float, "learning rate at the end, as a share of the peak"] = 0.0

    def __post_init__(self) -> None:
        for name in ("warmup", "decay", "floor"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"schedule.{name} is {value}; write a share between 0 and 1.")
        check(
            self.shape != "noam" or self.warmup > 0,
            "schedule.warmup is 0, and noam falls from the end of its warmup on; write a share "
            "above 0.",
        )
        check(
            self.shape != "wsd" or self.warmup + self.decay <= 1,
            f"schedule.warmup {self.warmup} and schedule.decay {self.decay} are more than the whole"
            " run together.",
        )


@dataclass(frozen=True)
class TrainConfig:
    budget: Annotated[
        str, 'length of the run: "10m", "90s", "2h", "500 steps", "3 epochs", "20M tokens"'
    ] = "10m"
    batch_size: Annotated[
        int, "sequences in one forward pass; on average, where their lengths differ"
    ] = 16
    accumulation: Annotated[int, "forward passes in one optimizer step"] = 1
    label_smoothing: Annotated[
        float, "translation: share of the label spread over all tokens (2015)"
    ] = 0.0
    start: Annotated[
        str, "run or model folder whose weights, shape and tokenizer to begin with"
    ] = ""
    seed: Annotated[int, "seed of weights, data order and dropout"] = 1337
    precision: Annotated[
        Literal["auto", "bf16", "fp32"], "auto: bf16 where a short probe says it is faster"
    ] = "auto"
    compile: Annotated[
        Literal["auto", "on", "off"], "auto: torch.compile where it pays within the budget"
    ] = "auto"
    evals: Annotated[int, "validations in the run, the last one at its end"] = 10
    eval_tokens: Annotated[int, "tokens of each validation, spread over the split; 0 takes all"] = (
        20_000
    )
    final_eval_tokens: Annotated[int, "the same for the last validation"] = 1_000_000
    checkpoints: Annotated[int, "checkpoints in the run, the last one at its end"] = 5
    keep: Annotated[int, "newest checkpoints kept on disk"] = 2
    samples: Annotated[int, "texts sampled in the run"] = 5
    prompt: Annotated[str, "start of the sampled texts"] = ""

    def __post_init__(self) -> None:
        Budget.parse(self.budget)
        check(
            abs(self.seed) < 2**63,
            f"train.seed is {self.seed}; write a number of at most 18 digits.",
        )
        for name in ("batch_size", "accumulation", "evals", "checkpoints", "keep"):
            check(
                getattr(self, name) > 0,
                f"train.{name} is {getattr(self, name)}; write a positive number.",
            )
        for name in ("eval_tokens", "final_eval_tokens", "samples"):
            check(
                getattr(self, name) >= 0, f"train.{name} is {getattr(self, name)}; write 0 or more."
            )
        check(
            0 <= self.label_smoothing < 1,
            f"train.label_smoothing is {self.label_smoothing}; write a share below 1.",
        )


@dataclass(frozen=True)
class AlignConfig:
    """From a language model to a chat: which stage, from where, and its options."""

    method: Annotated[
        Literal["", "sft", "reward", "dpo", "ppo", "grpo"],
        "stage of alignment; none is pretraining",
    ] = ""
    start: Annotated[
        str, "run or model folder to start from; also the reference of dpo, ppo and grpo"
    ] = ""
    reward: Annotated[
        str, "run of a reward model, oracle, or FILE.py:FUNCTION; sft keeps what it likes best"
    ] = ""
    examples: Annotated[
        int,
        "number of demonstrations, ranked prompts or prompts; 0 is 10,000 of the world, and all of "
        "a file",
    ] = 0
    beta: Annotated[
        float, "weight of the KL divergence from the start; -1 is 0.02 (ppo), 0.1 (dpo), 0 (grpo)"
    ] = -1.0
    kl_target: Annotated[
        float, "ppo: nats an answer that beta is adapted to; 0 keeps beta fixed"
    ] = 0.0
    ptx: Annotated[float, "sft, ppo: weight γ of the pretraining gradient in each step"] = 0.0
    ptx_batch: Annotated[int, "sft, ppo: windows of pretraining text in each update"] = 8
    ptx_corpus: Annotated[str, "sft, ppo: text of the pretraining gradient"] = ""
    episodes: Annotated[int, "ppo, grpo: answers in one iteration"] = 128
    group: Annotated[int, "grpo: answers to each prompt"] = 8
    inner_epochs: Annotated[int, "ppo, grpo: passes over the answers of an iteration"] = 1
    max_tokens: Annotated[int, "most tokens of a sampled answer"] = 32
    temperature: Annotated[
        float, "ppo, grpo: divides the logits, in rollouts and in training alike"
    ] = 1.0
    clip: Annotated[float, "ppo, grpo: ratios may leave 1 by this much"] = 0.2
    value_clip: Annotated[
        float,
        "ppo: values may leave those of the rollout by this much; 0 is 2 deviations of the judge's "
        "scores",
    ] = 0.0
    gae_lambda: Annotated[float, "ppo: λ of the generalised advantage estimate"] = 0.95
    missing_eos: Annotated[
        float,
        "sft, ppo, grpo: an answer that does not end scores minus this; 0 is below what the judge "
        "gives bad ones",
    ] = 0.0
    ema: Annotated[
        float,
        "ppo: decay of the average of the weights that is kept as the result; 0 keeps the last",
    ] = 0.0
    lora_rank: Annotated[
        int, "train adapters of this rank instead of the matrices; 0 trains all"
    ] = 0
    strict: Annotated[
        bool, "refuse bad lines and data longer than the context instead of leaving them out"
    ] = False

    def __post_init__(self) -> None:
        for name in ("episodes", "group", "inner_epochs", "max_tokens", "ptx_batch"):
            check(
                getattr(self, name) > 0,
                f"align.{name} is {getattr(self, name)}; write a positive number.",
            )
        for name in ("examples", "kl_target", "ptx", "clip", "value_clip", "lora_rank"):
            check(
                getattr(self, name) >= 0, f"align.{name} is {getattr(self, name)}; write 0 or more."
            )
        for name in ("gae_lambda", "ema"):
            check(
                0 <= getattr(self, name) <= 1,
                f"align.{name} is {getattr(self, name)}; write a number in [0, 1].",
            )
        check(
            bool(self.ptx) == bool(self.ptx_corpus),
            "align.ptx and align.ptx_corpus belong together: a weight, and the text of the "
            "pretraining gradient.",
        )
        check(
            self.temperature > 0,
            f"align.temperature is {self.temperature}; write a positive number.",
        )
        check(
            self.episodes % self.group == 0 or self.method != "grpo",
            f"align.episodes is {self.episodes} and align.group {self.group}; write a multiple of "
            "the group.",
        )
        check(
            self.group > 1 or self.method != "grpo",
            "align.group is 1; grpo compares answers, so write 2 or more.",
        )
        if self.beta == -1:
            object.__setattr__(self, "beta", {"ppo": 0.02, "dpo": 0.1}.get(self.method, 0.0))
        check(self.beta >= 0, f"align.beta is {self.beta}; write 0 or more.")
        default = {f.name: f.default for f in dataclasses.fields(self)} | {"beta": 0.0}
        for name, methods in _ONLY_FOR_METHOD.items():
            check(
                self.method in methods or getattr(self, name) == default[name],
                f"align.{name} is for {' and '.join(methods)}; "
                + (
                    f"{self.method} has no use for it."
                    if self.method
                    else "without align.method it has no use."
                ),
            )


_RL, _ALL = ("ppo", "grpo"), ("sft", "reward", "dpo", "ppo", "grpo")
_ONLY_FOR_METHOD = {
    **dict.fromkeys(("start", "examples", "lora_rank", "strict"), _ALL),
    **dict.fromkeys(("episodes", "inner_epochs", "temperature", "clip"), _RL),
    **dict.fromkeys(("reward", "missing_eos"), ("sft", *_RL)),
    "max_tokens": ("sft", "dpo", *_RL),
    **dict.fromkeys(("kl_target", "value_clip", "gae_lambda", "ema"), ("ppo",)),
    **dict.fromkeys(("ptx", "ptx_batch", "ptx_corpus"), ("sft", "ppo")),
    "group": ("grpo",),
    "beta": ("dpo", "ppo", "grpo"),
}


@dataclass(frozen=True)
class ExpectConfig:
    """What a recipe's author measured; `seq2chat train` prints it beside what you get."""

    val_loss_per_character: Annotated[
        float, "nats per character on the whole validation split; 0 is not stated"
    ] = 0.0
    val_loss: Annotated[float, "nats per token on the whole validation split; 0 is not stated"] = (
        0.0
    )
    machine: Annotated[str, "where it was measured"] = ""


# What only some families have a use for; with another it would be ignored, so it is refused.
_ONLY_FOR = {
    ("data", "source"): ("seq2seq", "transformer"),
    ("data", "max_characters"): ("gpt", "bert"),
    ("data", "document_mask"): ("gpt",),
    ("tokenizer", "lowercase"): ("bert",),
    ("tokenizer", "strip_accents"): ("bert",),
    ("data", "mask_share"): ("bert",),
    ("train", "label_smoothing"): ("seq2seq", "transformer"),
    ("train", "prompt"): ("gpt",),
}


@dataclass(frozen=True)
class Recipe:
    """All there is to say about a training run: `config.toml` of a run folder is one, complete and
    re-runnable."""

    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=GPTConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    expect: ExpectConfig = field(default_factory=ExpectConfig)

    def __post_init__(self) -> None:
        family = self.model.family
        for (table, key), families in _ONLY_FOR.items():
            section = getattr(self, table)
            default = next(f.default for f in dataclasses.fields(section) if f.name == key)
            check(
                family in families or getattr(section, key) == default,
                f"{table}.{key} is for a {' or a '.join(families)}; a {family} has no use for it, "
                "so leave it out.",
            )
        size = self.tokenizer.vocab_size
        check(
            # How many its WordPiece needs, the text says.
            self.tokenizer.path != "" or size >= 260 or family == "bert",
            f"tokenizer.vocab_size is {size}; 260 is the least (256 bytes and 4 control tokens).",
        )

    @classmethod
    def from_tables(cls, *layers: dict[str, Any], source: str = "the recipe") -> Recipe:
        """Recipe of the merged `layers`, the later ones winning. Raises `UserError` for an unknown
        or ill-typed key."""
        merged: dict[str, dict[str, Any]] = {}
        for layer in layers:
            for table, keys in layer.items():
                if not isinstance(keys, dict):
                    raise UserError(
                        f"Unknown option {table} in {source}. Options stand in a table such as "
                        "[train]."
                    )
                preset = _preset(keys["preset"]) if table == "model" and "preset" in keys else {}
                merged.setdefault(table, {}).update(
                    preset | {k: v for k, v in keys.items() if k != "preset"}
                )
        sections = {f.name: f.default_factory for f in dataclasses.fields(cls)}
        if "model" in merged:
            sections["model"] = _family(merged["model"].pop("family", "gpt"), source)
        for table in merged:
            if table not in sections:
                raise UserError(
                    f"Unknown table [{table}] in {source}.{did_you_mean(table, list(sections))}"
                )
        recipe = cls(**{t: build(sections[t], t, keys, source) for t, keys in merged.items()})
        for changes in layers[1:]:
            _refuse_unused(recipe, changes)
        return recipe

    @classmethod
    def load(cls, path: Path, changes: dict[str, dict[str, Any]] | None = None) -> Recipe:
        """Recipe in the TOML file at `path`, `changes` laid over it.

        Raises `UserError` when the file is missing, is not TOML, or holds an unknown key.
        """
        return cls.from_tables(read_toml(path), changes or {}, source=str(path))

    def save(self, path: Path) -> None:
        """Write it to `path`, whole or not at all."""
        temporary = path.with_name(f".{path.name}.tmp")
        tables = dataclasses.asdict(self)
        tables["model"] = {"family": self.model.family} | tables["model"]
        temporary.write_text(to_toml(tables), encoding="utf-8")
        temporary.replace(path)


def _refuse_unused(recipe: Recipe, changes: dict[str, dict[str, Any]]) -> None:
    """Raise UserError for an option among `changes` that the recipe, as the others make it, has no
    use for."""
    for (table, name), (is_used, reason) in _USED_IF.items():
        if name in changes.get(table, {}):
            value = getattr(getattr(recipe, table), name)
            check(is_used(recipe), f"{table}.{name} is {value}, but {reason}, so leave it out.")


# What has a use only beside some other option. A recipe's own file may hold it, as `config.toml`
# holds every option.
_USED_IF: dict[tuple[str, str], tuple[Callable[[Recipe], bool], str]] = {
    ("model", "rope_theta"): (
        lambda r: getattr(r.model, "layout", "") != "gpt2",
        "the gpt2 layout has learned positions",
    ),
    ("model", "tie_embeddings"): (
        lambda r: getattr(r.model, "layout", "") != "gpt2",
        "the gpt2 layout has no other head",
    ),
    ("optim", "momentum"): (lambda r: r.optim.matrices == "muon", 'optim.matrices is not "muon"'),
    ("optim", "head_lr"): (
        lambda r: r.align.method != "" or not getattr(r.model, "tie_embeddings", False),
        "the head is the embedding, whose rate is optim.embedding_lr",
    ),
    ("schedule", "decay"): (lambda r: r.schedule.shape == "wsd", 'schedule.shape is not "wsd"'),
    ("data", "max_characters"): (
        lambda r: r.align.method == "",
        "alignment reads all of its examples",
    ),
    ("train", "start"): (lambda r: r.align.method == "", "alignment begins with align.start"),
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
    """Names of the recipes that ship with the package."""
    folder = resources.files("seq2chat") / "recipes"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def recipe_tables(name: str) -> dict[str, Any]:
    """Tables of the shipped recipe `name`."""
    return tomllib.loads(
        (resources.files("seq2chat") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    )


@dataclass(frozen=True)
class Budget:
    """Length of a run: an amount of seconds, steps, tokens or epochs."""

    amount: float
    unit: Literal["seconds", "steps", "tokens", "epochs"]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Budget written as "10m", "2h", "500 steps", "3 epochs" or "20M tokens". Raises
        `UserError` otherwise."""
        match = re.fullmatch(r"\s*(\d[\d_]*(?:\.\d+)?)\s*([kMGB]?)\s*([a-z]+)\s*", text)
        if match and float(match[1]) > 0:
            amount, word = (
                float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}[match[2]],
                match[3],
            )
            singular = word.removesuffix("s") if len(word) > 2 else word
            if singular in _SECONDS:
                return cls(amount * _SECONDS[singular], "seconds")
            for unit in ("steps", "tokens", "epochs"):
                if word in (unit, unit[:-1]):
                    return cls(amount, unit)
        raise UserError(
            f'The budget {text!r} is not a length; write "10m", "9 steps", "3 epochs" or "20M'
            ' tokens".'
        )


_SECONDS = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
}
