"""Every option of a run as frozen dataclasses, and their strict exchange with TOML.

A run is described by one `Recipe`. It is read from a recipe that ships with the package, from a `config.toml` of an
earlier run, or from flags; unknown keys and wrong types are errors that name the key and the nearest valid one.
This module loads no torch, so that the command line can print every option at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints


class UserError(ValueError):
    """A mistake of the user's: what is wrong, where, and what to write instead. The CLI prints it and exits with 2."""


def check(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)


@dataclass(frozen=True)
class DataConfig:
    corpus: Annotated[str, "named corpus, .txt, .jsonl[.gz], folder, or hf:NAME"] = "pydocs"
    source: Annotated[str, "translation: file of sentences to translate, one a line"] = ""
    target: Annotated[str, "translation: file of their translations, line by line"] = ""
    val_fraction: Annotated[float, "share of the text held out for validation"] = 0.1
    field: Annotated[str, "key of the text in .jsonl files and hf: data"] = "text"
    document_mask: Annotated[bool, "keep attention inside each packed document"] = False
    mask_share: Annotated[float, "BERT: share of the tokens to be guessed in training"] = 0.15

    def __post_init__(self) -> None:
        for name in ("val_fraction", "mask_share"):
            value = getattr(self, name)
            check(0 < value < 1, f"data.{name} is {value}; write a number between 0 and 1.")
        check(
            bool(self.source) == bool(self.target),
            "data.source and data.target belong together: one file of sentences, one of their translations.",
        )


@dataclass(frozen=True)
class TokenizerConfig:
    vocab_size: Annotated[int, "bytes, merges and control tokens together; 260 is the plain byte tokenizer"] = 4096
    path: Annotated[str, "use the tokenizer.json in this folder instead of training one"] = ""

    def __post_init__(self) -> None:
        check(
            self.path != "" or self.vocab_size >= 260,
            f"tokenizer.vocab_size is {self.vocab_size}; 260 is the least (256 bytes and 4 control tokens).",
        )


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a GPT. A zero stands for "derive it", and is replaced when the object is made."""

    family: ClassVar[str] = "gpt"

    layout: Annotated[Literal["gpt2", "modern"], "gpt2: GPT-2's and GPT-3's blocks; modern: Qwen3's"] = "modern"
    vocab_size: Annotated[int, "rows of the embedding; 0 takes the tokenizer's size"] = 0
    context: Annotated[int, "positions seen at once"] = 256
    n_layer: Annotated[int, "number of blocks"] = 6
    n_head: Annotated[int, "number of attention heads"] = 6
    n_kv_head: Annotated[int, "heads of keys and values; 0 is n_head"] = 0
    d_model: Annotated[int, "width of the residual stream"] = 384
    d_head: Annotated[int, "width of a head; 0 is d_model / n_head"] = 0
    d_ff: Annotated[int, "width inside the feed-forward; 0 is 4 (gpt2) or 8/3 (modern) times d_model"] = 0
    dropout: Annotated[float, "dropout on embeddings and on what each block adds"] = 0.0
    tie_embeddings: Annotated[bool, "share the embedding with the output head (always so in gpt2)"] = False
    window: Annotated[int, "gpt2 only: every second layer sees this many last positions; 0 is dense"] = 0
    rope_theta: Annotated[float, "modern only: base of the rotary angles"] = 10000.0
    norm_eps: Annotated[float, "epsilon of the norms; 0 is 1e-5 (gpt2) or 1e-6 (modern)"] = 0.0

    def __post_init__(self) -> None:
        gpt2 = self.layout == "gpt2"
        for name in ("context", "n_layer", "n_head", "d_model"):
            check(getattr(self, name) > 0, f"model.{name} is {getattr(self, name)}; write a positive number.")
        for name in ("vocab_size", "n_kv_head", "d_head", "d_ff", "window", "rope_theta", "norm_eps"):
            check(getattr(self, name) >= 0, f"model.{name} is {getattr(self, name)}; write 0 or more.")
        check(0 <= self.dropout < 1, f"model.dropout is {self.dropout}; write a number in [0, 1).")
        check(
            self.d_head > 0 or self.d_model % self.n_head == 0,
            f"model.d_model {self.d_model} is not a multiple of model.n_head {self.n_head}; change one or give d_head.",
        )
        self._derive("d_head", self.d_model // self.n_head)
        self._derive("n_kv_head", self.n_head)
        self._derive("d_ff", 4 * self.d_model if gpt2 else -(-8 * self.d_model // 3 // 64) * 64)
        self._derive("norm_eps", 1e-5 if gpt2 else 1e-6)
        check(
            self.n_head % self.n_kv_head == 0,
            f"model.n_head {self.n_head} is not a multiple of model.n_kv_head {self.n_kv_head}.",
        )
        if gpt2:
            object.__setattr__(self, "tie_embeddings", True)
            check(
                self.n_kv_head == self.n_head and self.d_head * self.n_head == self.d_model,
                "model.n_kv_head and model.d_head belong to the modern layout; leave them out for gpt2.",
            )
        else:
            check(self.window == 0, 'model.window belongs to the gpt2 layout; write model.layout = "gpt2" with it.')
            check(self.d_head % 2 == 0, f"model.d_head is {self.d_head}; rotary positions need an even number.")

    def _derive(self, name: str, value: Any) -> None:
        if not getattr(self, name):
            object.__setattr__(self, name, value)


def _gpt3(n_layer: int, d_model: int, n_head: int) -> GPTConfig:
    return GPTConfig("gpt2", vocab_size=50257, context=2048, n_layer=n_layer, n_head=n_head, d_model=d_model)


@dataclass(frozen=True)
class Seq2SeqConfig:
    """Shape of an RNN encoder–decoder."""

    family: ClassVar[str] = "seq2seq"

    vocab_size: Annotated[int, "rows of the embedding; 0 takes the tokenizer's size"] = 0
    attention: Annotated[
        Literal["fixed", "additive"], "what the decoder sees of the source: its last state, or Bahdanau's attention"
    ] = "additive"
    cell: Annotated[Literal["gru", "lstm"], "recurrent cell"] = "gru"
    n_layer: Annotated[int, "recurrent layers of encoder and decoder each"] = 1
    d_embed: Annotated[int, "width of the embeddings"] = 256
    d_model: Annotated[int, "width of a hidden state"] = 512
    bidirectional: Annotated[bool, "encoder reads the source in both directions"] = True
    reverse_source: Annotated[bool, "feed the source last word first (Sutskever et al. 2014)"] = False
    dropout: Annotated[float, "dropout on embeddings, between layers and before the output"] = 0.3
    tie_embeddings: Annotated[bool, "one matrix embeds source and target and makes the logits"] = True

    def __post_init__(self) -> None:
        _check_shape(self, positive=("n_layer", "d_embed", "d_model"))


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of an encoder–decoder Transformer. A zero stands for "derive it"."""

    family: ClassVar[str] = "transformer"

    vocab_size: Annotated[int, "rows of the embedding; 0 takes the tokenizer's size"] = 0
    context: Annotated[int, "most tokens of a source or a target"] = 256
    n_layer: Annotated[int, "blocks of encoder and decoder each"] = 3
    n_head: Annotated[int, "number of attention heads"] = 4
    d_model: Annotated[int, "width of the residual stream"] = 256
    d_ff: Annotated[int, "width inside the feed-forward; 0 is 4 times d_model"] = 0
    dropout: Annotated[float, "dropout on embeddings and on what each branch adds"] = 0.1
    positions: Annotated[Literal["sinusoidal", "learned"], "how the place of a token is told"] = "sinusoidal"
    norm: Annotated[Literal["pre", "post"], "norm before each branch, or after its addition (2017)"] = "pre"
    activation: Annotated[Literal["relu", "gelu"], "inside the feed-forward"] = "relu"
    tie_embeddings: Annotated[bool, "one matrix embeds source and target and makes the logits"] = True
    norm_eps: Annotated[float, "epsilon of the norms"] = 1e-5

    def __post_init__(self) -> None:
        _check_shape(self, positive=("context", "n_layer", "n_head", "d_model"))
        if not self.d_ff:
            object.__setattr__(self, "d_ff", 4 * self.d_model)


@dataclass(frozen=True)
class BERTConfig:
    """Shape of a BERT. A zero stands for "derive it"."""

    family: ClassVar[str] = "bert"

    vocab_size: Annotated[int, "rows of the embedding; 0 takes the tokenizer's size"] = 0
    context: Annotated[int, "positions seen at once"] = 128
    n_layer: Annotated[int, "number of blocks"] = 4
    n_head: Annotated[int, "number of attention heads"] = 4
    d_model: Annotated[int, "width of the residual stream"] = 256
    d_ff: Annotated[int, "width inside the feed-forward; 0 is 4 times d_model"] = 0
    dropout: Annotated[float, "dropout on embeddings and on what each branch adds"] = 0.1
    masked_lm: Annotated[bool, "has the head that guesses tokens; sentence encoders come without"] = True
    next_sentence: Annotated[bool, "also learn whether the second segment follows the first"] = False
    norm_eps: Annotated[float, "epsilon of the norms"] = 1e-12

    def __post_init__(self) -> None:
        _check_shape(self, positive=("context", "n_layer", "n_head", "d_model"))
        if not self.d_ff:
            object.__setattr__(self, "d_ff", 4 * self.d_model)


ModelConfig = GPTConfig | Seq2SeqConfig | TransformerConfig | BERTConfig


def _check_shape(config: Any, positive: tuple[str, ...]) -> None:
    for name in positive:
        check(getattr(config, name) > 0, f"model.{name} is {getattr(config, name)}; write a positive number.")
    for name in {"vocab_size", "d_ff", "norm_eps"} & {f.name for f in dataclasses.fields(config)}:
        check(getattr(config, name) >= 0, f"model.{name} is {getattr(config, name)}; write 0 or more.")
    check(0 <= config.dropout < 1, f"model.dropout is {config.dropout}; write a number in [0, 1).")
    heads = getattr(config, "n_head", 1)
    check(
        config.d_model % heads == 0,
        f"model.d_model {config.d_model} is not a multiple of model.n_head {heads}; change one.",
    )


# Brown et al. 2020, table 2.1. Two of its rows contradict themselves (24 heads of 128 are not 2048; width 5140 is not
# 40 heads of 128): the preset keeps the head size of 128 and takes 16 heads for XL and width 5120 for 13B.
GPT3 = {
    "gpt3-small": _gpt3(12, 768, 12),
    "gpt3-medium": _gpt3(24, 1024, 16),
    "gpt3-large": _gpt3(24, 1536, 16),
    "gpt3-xl": _gpt3(24, 2048, 16),
    "gpt3-2.7b": _gpt3(32, 2560, 32),
    "gpt3-6.7b": _gpt3(32, 4096, 32),
    "gpt3-13b": _gpt3(40, 5120, 40),
    "gpt3-175b": _gpt3(96, 12288, 96),
}


@dataclass(frozen=True)
class OptimConfig:
    matrices: Annotated[Literal["muon", "adamw"], "optimizer of the blocks' matrices"] = "muon"
    matrix_lr: Annotated[float, "peak learning rate of the matrices; 0 is 0.02 (muon) or 0.002 (adamw)"] = 0.0
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
                check(getattr(self, f.name) >= 0, f"optim.{f.name} is {getattr(self, f.name)}; write 0 or more.")
        if not self.matrix_lr:
            object.__setattr__(self, "matrix_lr", 0.02 if self.matrices == "muon" else 0.002)


@dataclass(frozen=True)
class ScheduleConfig:
    shape: Annotated[
        Literal["wsd", "cosine", "noam"], "warmup-stable-decay (linear decay), cosine, or falling as 1/√step (2017)"
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
            "schedule.warmup is 0, and noam falls from the end of its warmup on; write a share above 0.",
        )
        check(
            self.shape != "wsd" or self.warmup + self.decay <= 1,
            f"schedule.warmup {self.warmup} and schedule.decay {self.decay} are more than the whole run together.",
        )


@dataclass(frozen=True)
class TrainConfig:
    budget: Annotated[str, 'length of the run: "10m", "90s", "2h", "500 steps", "3 epochs", "20M tokens"'] = "10m"
    batch_size: Annotated[int, "sequences in one forward pass; on average, where their lengths differ"] = 16
    accumulation: Annotated[int, "forward passes in one optimizer step"] = 1
    label_smoothing: Annotated[float, "translation: share of the label spread over all tokens (2015)"] = 0.0
    seed: Annotated[int, "seed of weights, data order and dropout"] = 1337
    precision: Annotated[Literal["auto", "bf16", "fp32"], "auto: bf16 where a short probe says it is faster"] = "auto"
    compile: Annotated[Literal["auto", "on", "off"], "auto: torch.compile where it pays within the budget"] = "auto"
    evals: Annotated[int, "validations in the run, the last one at its end"] = 10
    eval_tokens: Annotated[int, "validation tokens of the ones before the last; 0 takes all"] = 20_000
    checkpoints: Annotated[int, "checkpoints in the run, the last one at its end"] = 5
    keep: Annotated[int, "newest checkpoints kept on disk"] = 2
    samples: Annotated[int, "texts sampled in the run"] = 5
    prompt: Annotated[str, "start of the sampled texts"] = ""

    def __post_init__(self) -> None:
        Budget.parse(self.budget)
        for name in ("batch_size", "accumulation", "evals", "checkpoints", "keep"):
            check(getattr(self, name) > 0, f"train.{name} is {getattr(self, name)}; write a positive number.")
        for name in ("eval_tokens", "samples"):
            check(getattr(self, name) >= 0, f"train.{name} is {getattr(self, name)}; write 0 or more.")
        check(
            0 <= self.label_smoothing < 1,
            f"train.label_smoothing is {self.label_smoothing}; write a share below 1.",
        )


@dataclass(frozen=True)
class ExpectConfig:
    """What a recipe's author measured; `seq2chat train` prints it beside what you get."""

    val_loss_per_character: Annotated[float, "nats per character on the whole validation split; 0 is not stated"] = 0.0
    val_loss: Annotated[float, "nats per token on the whole validation split; 0 is not stated"] = 0.0
    machine: Annotated[str, "where it was measured"] = ""


# What only some families have a use for; with another it would be ignored, so it is refused.
_ONLY_FOR = {
    ("data", "source"): ("seq2seq", "transformer"),
    ("data", "document_mask"): ("gpt",),
    ("data", "mask_share"): ("bert",),
    ("train", "label_smoothing"): ("seq2seq", "transformer"),
    ("train", "prompt"): ("gpt",),
}


@dataclass(frozen=True)
class Recipe:
    """All there is to say about a training run: `config.toml` of a run folder is one, complete and re-runnable."""

    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=GPTConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    expect: ExpectConfig = field(default_factory=ExpectConfig)

    def __post_init__(self) -> None:
        family = self.model.family
        for (table, key), families in _ONLY_FOR.items():
            section = getattr(self, table)
            default = next(f.default for f in dataclasses.fields(section) if f.name == key)
            check(
                family in families or getattr(section, key) == default,
                f"{table}.{key} is for a {' or a '.join(families)}; a {family} has no use for it, so leave it out.",
            )

    @classmethod
    def from_tables(cls, *layers: dict[str, Any], source: str = "the recipe") -> Recipe:
        """Recipe of the merged `layers`, the later ones winning. Raises `UserError` for an unknown or ill-typed key."""
        merged: dict[str, dict[str, Any]] = {}
        for layer in layers:
            for table, keys in layer.items():
                if not isinstance(keys, dict):
                    raise UserError(f"Unknown option {table} in {source}. Options stand in a table such as [train].")
                preset = _preset(keys["preset"]) if table == "model" and "preset" in keys else {}
                merged.setdefault(table, {}).update(preset | {k: v for k, v in keys.items() if k != "preset"})
        sections = {f.name: f.default_factory for f in dataclasses.fields(cls)}
        if "model" in merged:
            sections["model"] = _family(merged["model"].pop("family", "gpt"), source)
        for table in merged:
            if table not in sections:
                raise UserError(f"Unknown table [{table}] in {source}.{_did_you_mean(table, list(sections))}")
        return cls(**{t: build(sections[t], t, keys, source) for t, keys in merged.items()})

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


def _preset(name: str) -> dict[str, Any]:
    if name not in GPT3:
        raise UserError(f"Unknown model.preset {name!r}.{_did_you_mean(name, list(GPT3))} There are {', '.join(GPT3)}.")
    return dataclasses.asdict(GPT3[name]) | {"vocab_size": 0}  # the vocabulary is the tokenizer's


def _family(name: Any, source: str) -> type[ModelConfig]:
    families = {config.family: config for config in get_args(ModelConfig)}
    check(name in families, f"model.family is {name!r} in {source}; write one of {', '.join(families)}.")
    return families[name]


def build(section: Any, table: str, keys: dict[str, Any], source: str) -> Any:
    """Return the dataclass `section` with these `keys`; UserError names what is unknown or ill-typed in `table`."""
    names = {f.name for f in dataclasses.fields(section)}
    hints = {name: hint for name, hint in get_type_hints(section).items() if name in names}
    for key, value in keys.items():
        if key not in hints:
            hint = _did_you_mean(key, list(hints), prefix=f"{table}.") or f" [{table}] knows {', '.join(hints)}."
            raise UserError(f"Unknown option {table}.{key} in {source}.{hint}")
        if hints[key] is float and type(value) is int:
            keys = keys | {key: float(value)}
        elif get_origin(hints[key]) is Literal:
            choices = get_args(hints[key])
            check(value in choices, f"{table}.{key} is {value!r} in {source}; write one of {', '.join(choices)}.")
        elif type(value) is not hints[key]:
            raise UserError(f"{table}.{key} is {value!r} in {source}; write a value of type {hints[key].__name__}.")
    return section(**keys)


def _did_you_mean(word: str, known: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {prefix}{near[0]}?" if near else ""


def read_toml(path: Path) -> dict[str, Any]:
    """Tables of the TOML file at `path`. Raises `UserError` when it can't be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}.") from error


def to_toml(tables: dict[str, dict[str, Any]]) -> str:
    """TOML text of two levels: tables of strings, numbers and booleans."""
    lines = []
    for table, keys in tables.items():
        lines += [f"[{table}]", *(f"{key} = {_toml_value(value)}" for key, value in keys.items()), ""]
    return "\n".join(lines)


def _toml_value(value: str | bool | int | float) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # a JSON string is a TOML basic string
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("seq2chat") / "recipes"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def recipe_tables(name: str) -> dict[str, Any]:
    """Tables of the shipped recipe `name`."""
    return tomllib.loads((resources.files("seq2chat") / "recipes" / f"{name}.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Budget:
    """Length of a run: an amount of seconds, steps, tokens or epochs."""

    amount: float
    unit: Literal["seconds", "steps", "tokens", "epochs"]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Budget written as "10m", "2h", "500 steps", "3 epochs" or "20M tokens". Raises `UserError` otherwise."""
        match = re.fullmatch(r"\s*(\d[\d_]*(?:\.\d+)?)\s*([kMGB]?)\s*([a-z]+)\s*", text)
        if match and float(match[1]) > 0:
            amount, word = float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}[match[2]], match[3]
            singular = word.removesuffix("s") if len(word) > 2 else word
            if singular in _SECONDS:
                return cls(amount * _SECONDS[singular], "seconds")
            for unit in ("steps", "tokens", "epochs"):
                if word in (unit, unit[:-1]):
                    return cls(amount, unit)
        raise UserError(f'The budget {text!r} is not a length; write "10m", "9 steps", "3 epochs" or "20M tokens".')


_SECONDS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600}
