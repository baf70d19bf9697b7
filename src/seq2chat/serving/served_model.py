"""A model that is served: its name, its weights in a fast number format, and its engine."""

import hashlib
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from seq2chat.config import UserError, check
from seq2chat.device import pick_device, pick_precision
from seq2chat.generation.blocks import has_blocks
from seq2chat.generation.decode_step import MAX_ROWS
from seq2chat.generation.engine import Engine
from seq2chat.generation.request import ContextExceeded
from seq2chat.models.bert import BERT
from seq2chat.models.folder import COMMAND, Model, n_parameters
from seq2chat.models.gpt import GPT
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.nn.int8 import Int8Linear, quantized
from seq2chat.serving.logprobs import TokenNames
from seq2chat.text.chat import default_instructions, end_tokens
from seq2chat.text.text_tokenizer import TextTokenizer
from seq2chat.text.tokenizers import Tokenizer
from seq2chat.training.checkpoint import load_checkpoint
from seq2chat.training.run_folder import finished_stages

# Number of parameters below which the products are so small that bfloat16 only adds overhead.
MIN_BF16_PARAMETERS = 4_000_000

MAX_CONTEXT = 32_768  # for an RNN, which has no limit of its own

FINGERPRINT_NUMBERS = 1024  # about as many of each tensor are hashed

# Number of bytes that Unicode's composition (NFC) can reduce to one, for example in the three
# letters of a Korean syllable.
NFC_BYTES = 3


@dataclass
class ServedModel:
    """One model under its name. `engine` is None for a family that cannot continue texts.

    `world` is True if the model was trained on the built-in world, whose questions it can answer.
    """

    id: str
    module: Model
    tokenizer: Tokenizer
    engine: Engine | None
    obstacle: str = ""  # why it answers more slowly than it could
    created: int = field(default_factory=lambda: int(time.time()))
    world: bool = False

    @property
    def family(self) -> str:
        return self.module.config.family

    @property
    def context(self) -> int:
        """Maximum number of tokens per text."""
        return min(self.module.context, MAX_CONTEXT)

    @cached_property
    def _n_parameters(self) -> int:
        """Number of parameters of the saved model, before any quantization."""
        return n_parameters(self.module.config)

    @cached_property
    def _max_bytes(self) -> int | None:
        """Upper bound in bytes on a text that fits the context.

        None for tokenizers with a token for unknown words, or with steps that shorten a text.
        """
        if not isinstance(self.tokenizer, TextTokenizer) or self.tokenizer.codec.shrinks:
            return None
        lengths = [
            len(self.tokenizer.token_bytes(token_id))
            for token_id in range(self.tokenizer.vocab_size)
        ]
        return NFC_BYTES * self.context * max(lengths)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the architecture and of numbers from every tensor, which training changes."""
        digest = hashlib.blake2b(repr(self.module.config).encode(), digest_size=16)
        for name, tensor in self.module.state_dict().items():
            numbers = tensor.detach().flatten()
            numbers = numbers[:: max(1, len(numbers) // FINGERPRINT_NUMBERS)].cpu().contiguous()
            digest.update(name.encode() + numbers.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def token_names(self) -> TokenNames:
        """The names of the tokens in log probabilities."""
        assert isinstance(self.tokenizer, TextTokenizer)
        return TokenNames(self.tokenizer)

    def check_size(self, *texts: str) -> None:
        """Raise ContextExceeded for texts that cannot fit one context.

        This is cheap, while encoding a long text takes a while.
        """
        n_bytes = sum(len(text.encode(errors="surrogatepass")) for text in texts)
        if self._max_bytes is not None and n_bytes > self._max_bytes:
            raise ContextExceeded(
                f"The text has {sum(map(len, texts)):,} characters, more than a context of "
                f"{self.context} tokens holds; shorten it."
            )

    @property
    def can_chat(self) -> bool:
        """True if the model was trained to chat."""
        return (
            self.engine is not None
            and isinstance(self.tokenizer, TextTokenizer)
            and bool(self.tokenizer.chat_template)
        )

    @property
    def end_tokens(self) -> list[int]:
        """The tokens that end a text, or an answer if the model can chat."""
        assert isinstance(self.tokenizer, TextTokenizer)
        if self.can_chat:
            return end_tokens(self.tokenizer)
        return [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]

    @cached_property
    def instructions(self) -> str:
        """The instructions that the model's template writes on its own, or ""."""
        if not self.can_chat or not isinstance(self.tokenizer, TextTokenizer):
            return ""
        return default_instructions(self.tokenizer)

    def card(self) -> dict[str, object]:
        """Return the model's entry in `/v1/models`."""
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "seq2chat",
            "context": self.context,
            "parameters": self._n_parameters,
            "family": self.family,
            "chat": self.can_chat,
            "instructions": self.instructions,
            "vocab_size": self.tokenizer.vocab_size,
            "world": self.world,
        }


def open_model(
    run: Path, name: str, n_slot: int = 16, int8: bool = False, compile: bool = False
) -> ServedModel:
    """Return the model of a run or model folder, ready to be served.

    With `int8`, the weights of a GPT's products are stored as 8-bit integers. `compile` is for
    GPUs: on a CPU, the faster decoding step is always used. Raises UserError for a reward model,
    and for `int8` with another family.
    """
    module, tokenizer = load_checkpoint(run)
    check(
        module.config.objective != "score",
        f"{run} is a reward model; serve the policy that it judges.",
    )
    check(
        isinstance(module, GPT | BERT | Seq2Seq | Transformer),
        f"{run} is a {module.config.family}, which the server can't run; use it with `seq2chat "
        f"{COMMAND[module.config.objective]} {run}`.",
    )
    check(
        not int8 or isinstance(module, GPT),
        f"{run} is a {module.config.family}; int8 is for a GPT.",
    )
    module.to(pick_device())
    engine = None
    obstacle = ""
    if isinstance(module, GPT):
        engine, obstacle = _open_engine(module, n_slot, int8, compile)
    elif isinstance(module, BERT):
        module.to(_dtype(module))
    served = ServedModel(name, module, tokenizer, engine, obstacle, world=knows_world(run))
    try:
        served.card()
    except UserError as error:  # of a broken chat template, before it fails every request
        raise UserError(f"{run} can't be served: {error}") from None
    return served


def _open_engine(module: GPT, n_slot: int, int8: bool, compile: bool) -> tuple[Engine, str]:
    """Return the engine of `module`, which is converted to its fast number format, and why its
    decoding pass is not compiled, or ""."""
    on_cpu = module.device.type == "cpu"
    if on_cpu and not int8 and has_blocks(module):
        # The blocks are found before the numbers are rounded.
        engine = Engine(module, n_slot)
        obstacle = _compile(engine)
        _convert(module, int8)
        return engine, obstacle
    _convert(module, int8)
    engine = Engine(module, n_slot)
    return engine, _compile(engine) if on_cpu or compile else ""


def _convert(module: GPT, int8: bool) -> None:
    """Convert a GPT to the number format in which it takes the least time."""
    on_cpu = module.device.type == "cpu"
    # On a CPU only the products of a GPT take less time in bfloat16.
    for part in linear_maps(module) if on_cpu and not int8 else [module]:
        part.to(_dtype(module))
    if int8:
        quantize(module)


def _dtype(module: GPT | BERT) -> torch.dtype:
    """Return the number format in which the products of `module` take the least time."""
    if module.device.type == "cpu" and _is_small(module):
        return torch.float32
    return pick_precision("auto", module.device).dtype


def _is_small(module: GPT | BERT) -> bool:
    return n_parameters(module.config) < MIN_BF16_PARAMETERS


def _compile(engine: Engine) -> str:
    """Compile the decoding pass, and return why that failed, or "".

    A pass of few rows takes the time of reading the weights, so a larger model reads them in
    bfloat16, also on a CPU that multiplies faster in float32.
    """
    if engine.model.device.type == "cpu" and engine.n_slot > MAX_ROWS:
        return (
            f"with more than {MAX_ROWS} slots, torch computes the tokens; it is faster for many "
            "answers at once and slower for few."
        )
    try:
        engine.compile(None if _is_small(engine.model) else torch.bfloat16)
    except Exception as error:  # torch raises many kinds
        return f"decoding could not be compiled ({error})."
    return ""


def knows_world(path: Path) -> bool:
    """Return True if the run at `path`, or the run of a checkpoint, was trained on the world."""
    for folder in (path, path.resolve().parent.parent):
        try:
            tables = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
            corpus = tables.get("data", {}).get("corpus", "")
        except (OSError, ValueError):
            continue
        return str(corpus).partition(":")[0] == "world"
    return False


def linear_maps(model: GPT) -> list[nn.Linear]:
    """Return the linear maps in the blocks of a model."""
    return [module for module in model.layers.modules() if isinstance(module, nn.Linear)]


def quantize(model: GPT) -> None:
    """Convert the weights of all products to 8-bit integers. A tied head gets its own copy."""
    model.lm_head = Int8Linear(model.head_weight)
    for module in list(model.layers.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, quantized(child))


def stages(folder: Path) -> list[Path]:
    """Return the finished stages of a demo's folder that can be served, the aligned one first.

    Any other folder is returned unchanged.
    """
    finished = finished_stages(folder)
    return [folder / name for name in ("ppo", "sft", "base") if name in finished] or [folder]


def names(runs: Sequence[Path]) -> list[str]:
    """Return a name for each run: its folders below `runs/`, or the name of its folder.

    For example, `runs/demo/ppo` is served as `demo-ppo`. Raises UserError if two names are equal.
    """
    run_names = []
    for run in runs:
        parts = [part for part in run.resolve().parts if part != "checkpoints"]
        first = len(parts) - parts[::-1].index("runs") if "runs" in parts[:-1] else -1
        run_names.append("-".join(parts[first:]))
    duplicate = next((name for name in run_names if run_names.count(name) > 1), None)
    check(
        duplicate is None,
        f"Two of the runs would be called {duplicate}; rename the folder of one.",
    )
    return run_names
