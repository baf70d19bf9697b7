"""All options of a run except model and alignment method, one dataclass per table."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from seq2chat.config.budget import Budget
from seq2chat.config.errors import check


@dataclass(frozen=True)
class DataConfig:
    corpus: Annotated[
        str,
        "named corpus, file of text, JSON, CSV or Parquet, folder, or hf:NAME; a mixture is "
        "a.txt:0.7, b.txt:0.3; translation: table of two columns",
    ] = "pydocs"
    source: Annotated[str, "translation: file of sentences to translate, one per line"] = ""
    target: Annotated[str, "translation: file of their translations, one per line"] = ""
    val_fraction: Annotated[
        float,
        "share of the text held out for validation; alignment: share of the prompts, at most 500",
    ] = 0.1
    field: Annotated[
        str, "field of the text in files of rows (JSON, CSV, Parquet) and hf: data"
    ] = "text"
    max_characters: Annotated[
        int, "train on a sample of this many characters, spread over the text; 0 is all"
    ] = 0
    document_mask: Annotated[bool, "keep attention inside each packed document"] = False
    mask_share: Annotated[float, "BERT: share of the tokens to predict in training"] = 0.15

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
            "data.source and data.target belong together: a file of sentences, and a file of their "
            "translations.",
        )


MAX_VOCABULARY = 1_000_000  # the largest published vocabularies have about 260,000 tokens


@dataclass(frozen=True)
class TokenizerConfig:
    vocab_size: Annotated[
        int, "bytes, merges and control tokens together; 260 is the plain byte tokenizer"
    ] = 4096
    path: Annotated[str, "folder with a tokenizer.json to use instead of training one"] = ""
    lowercase: Annotated[Literal["auto", "on", "off"], "BERT: lowercase text; auto is on"] = "auto"
    strip_accents: Annotated[
        Literal["auto", "on", "off"],
        "BERT: strip accents; auto is on for lowercase text in scripts without vowel marks",
    ] = "auto"

    def __post_init__(self) -> None:
        check(
            self.vocab_size <= MAX_VOCABULARY,
            f"tokenizer.vocab_size is {self.vocab_size}; write at most {MAX_VOCABULARY:,}.",
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
    clip: Annotated[float, "maximum global gradient norm; 0 is no clipping"] = 1.0

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
        "warmup-stable-decay (linear), cosine, or 1/√step (2017)",
    ] = "wsd"
    warmup: Annotated[float, "share of the run with a rising rate"] = 0.02
    decay: Annotated[float, "share of the run with a falling rate (wsd only)"] = 0.6
    floor: Annotated[float, "learning rate at the end, as a share of the peak"] = 0.0

    def __post_init__(self) -> None:
        for name in ("warmup", "decay", "floor"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"schedule.{name} is {value}; write a share between 0 and 1.")
        check(
            self.shape != "noam" or self.warmup > 0,
            "schedule.warmup is 0, but noam starts to fall at the end of its warmup; write a share "
            "above 0.",
        )
        check(
            self.shape != "wsd" or self.warmup + self.decay <= 1,
            f"schedule.warmup {self.warmup} and schedule.decay {self.decay} together exceed the "
            "whole run.",
        )


@dataclass(frozen=True)
class TrainConfig:
    budget: Annotated[
        str, 'length of the run: "10m", "90s", "2h", "500 steps", "3 epochs", "20M tokens"'
    ] = "10m"
    batch_size: Annotated[
        int, "sequences per forward pass; on average, if their lengths differ"
    ] = 16
    accumulation: Annotated[int, "forward passes per optimizer step"] = 1
    label_smoothing: Annotated[
        float, "translation: share of the label spread over all tokens (2015)"
    ] = 0.0
    start: Annotated[str, "run or model folder to start from: its weights, shape and tokenizer"] = (
        ""
    )
    init: Annotated[
        Literal["random", "induction"],
        "initial weights: random, or with heads that look up earlier tokens (tied modern GPT)",
    ] = "random"
    seed: Annotated[int, "seed of weights, data order and dropout"] = 1337
    device: Annotated[
        str, "cpu, cuda, cuda:1 or mps; auto: a CUDA GPU if there is one, else the CPU"
    ] = "auto"
    precision: Annotated[
        Literal["auto", "bf16", "fp32"], "auto: bf16 if a short benchmark shows that it is faster"
    ] = "auto"
    gradient_checkpointing: Annotated[
        bool, "GPT: recompute blocks in the backward pass, for less memory and a third more time"
    ] = False
    compile: Annotated[
        Literal["auto", "on", "off"], "auto: torch.compile if it pays within the budget"
    ] = "auto"
    evals: Annotated[int, "validations per run, the last one at its end"] = 10
    eval_tokens: Annotated[int, "tokens per validation, spread over the split; 0 is all"] = 20_000
    final_eval_tokens: Annotated[int, "tokens of the last validation"] = 1_000_000
    checkpoints: Annotated[int, "checkpoints per run, the last one at its end"] = 5
    keep: Annotated[int, "number of newest checkpoints kept on disk"] = 2
    samples: Annotated[int, "samples per run"] = 5
    prompt: Annotated[str, "prompt of the samples"] = ""

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
class ParallelConfig:
    """Sizes of the four dimensions of parallel training. Their product is the number of processes.

    One process has size 1 in all of them.
    """

    data: Annotated[int, "copies of the model, each for its part of the batch"] = 1
    shard: Annotated[
        int, "processes that divide parameters and optimizer state; 0 is all that are left"
    ] = 0
    tensor: Annotated[int, "GPT: processes that divide each matrix"] = 1
    pipeline: Annotated[int, "GPT: processes that divide the layers"] = 1
    micro_batches: Annotated[
        int, "parts of a forward pass in a pipeline; 0 is twice the pipeline's size"
    ] = 0

    def __post_init__(self) -> None:
        for name in ("data", "tensor", "pipeline"):
            check(
                getattr(self, name) > 0,
                f"parallel.{name} is {getattr(self, name)}; write a positive number.",
            )
        for name in ("shard", "micro_batches"):
            check(
                getattr(self, name) >= 0,
                f"parallel.{name} is {getattr(self, name)}; write 0 or more.",
            )

    def sizes(self, world: int) -> dict[str, int]:
        """Return the size of each dimension for `world` processes.

        Raises UserError if their product is another number.
        """
        others = self.data * self.tensor * self.pipeline
        shard = self.shard or max(1, world // others)
        sizes = {"data": self.data, "shard": shard, "tensor": self.tensor}
        sizes["pipeline"] = self.pipeline
        product = others * shard
        text = " × ".join(f"{name} {size}" for name, size in sizes.items())
        check(
            product == world,
            f"[parallel] {text} needs {product} processes, and this run has {world}; change a size,"
            f" or start {product} processes.",
        )
        return sizes


@dataclass(frozen=True)
class ExpectConfig:
    """The results that a recipe's author measured, which `seq2chat train` prints for comparison."""

    val_loss_per_character: Annotated[
        float, "nats per character on the whole validation split; 0 is unknown"
    ] = 0.0
    val_loss: Annotated[float, "nats per token on the whole validation split; 0 is unknown"] = 0.0
    machine: Annotated[str, "the machine of the measurement"] = ""
