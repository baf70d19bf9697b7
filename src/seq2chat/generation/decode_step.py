"""One decoding step of a GPT on a CPU, in C++: one more token per row in one pass over the weights.

`decode_step.cpp` contains the computation, and `library` compiles it once per machine. `GPT.step`
is its plain twin.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p, pointer
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TypeGuard, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seq2chat.generation.blocks import find_blocks
from seq2chat.models.gpt import GPT, Block, is_local
from seq2chat.nn.block import Linear, SwiGLU
from seq2chat.nn.int8 import Int8Linear
from seq2chat.nn.position import rotary
from seq2chat.text.named import cache_folder

T = TypeVar("T")

SOURCE = Path(__file__).with_suffix(".cpp")
HEADER = SOURCE.with_name("few_rows.h")
COMPILERS = "c++", "g++", "clang++"
FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
BLOCKS8, BLOCKS4 = 3, 4
MAX_ROWS = 16  # up to which it is faster than the libraries' products
MAX_THREADS = 16  # more wait for each other longer than they compute


class NoCompiler(RuntimeError):
    """Raised if the C++ code can't be compiled on this machine."""


class _Matrix(Structure):
    _fields_ = (
        ("data", c_void_p),
        ("scale", c_void_p),
        ("lowest", c_void_p),
        ("bias", c_void_p),
        ("n_out", c_int64),
        ("n_in", c_int64),
        ("format", c_int32),
    )


class _Norm(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class _Layer(Structure):
    _fields_ = (
        *((name, _Norm) for name in ("input_norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, _Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("window", c_int64),
    )


class _Model(Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("embedding", "positions", "head")),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("norm", _Norm),
        ("layers", POINTER(_Layer)),
        *(
            (name, c_int64)
            for name in ("n_layer", "d_model", "d_ff", "n_head", "n_kv_head", "d_head")
        ),
        ("norm_eps", c_float),
        ("scale", c_float),
    )


class _Rows(Structure):
    _fields_ = (
        ("n", c_int64),
        *((name, POINTER(c_int64)) for name in ("tokens", "slots", "places", "firsts")),
        *((name, POINTER(c_void_p)) for name in ("keys", "values")),
        ("room", c_int64),
        ("logits", c_void_p),
    )


@cache
def library() -> ctypes.CDLL:
    """Return the compiled code, from the cache after the first time, which takes a few seconds.

    Raises NoCompiler without a C++ compiler that can compile it, or a cache that it can be kept in.
    """
    try:
        code = ctypes.CDLL(str(_compiled()))
    except (OSError, ValueError) as error:
        raise NoCompiler(f"the C++ code can't be kept or run: {error}") from error
    code.step_new.argtypes = [POINTER(_Model), c_int32, c_int64]
    code.step_new.restype = c_void_p
    code.step_run.argtypes = [c_void_p, POINTER(_Rows)]
    code.step_run.restype = None
    code.step_delete.argtypes = [c_void_p]
    code.step_delete.restype = None
    return code


def _compiled() -> Path:
    """Return the file with the code for this processor."""
    named = os.environ.get("CXX", "")
    compiler = shlex.split(named) or [c for c in COMPILERS if shutil.which(c)][:1]
    if not compiler:
        raise NoCompiler("there is no C++ compiler; install g++ or clang++")
    native = "-mcpu=native" if platform.machine() == "arm64" else "-march=native"
    flags = ["-O3", native, "-std=c++20", "-shared", "-fPIC", "-pthread", "-w"]
    sources = (file.read_text(encoding="utf-8") for file in (SOURCE, HEADER))
    parts = (*sources, *compiler, *flags, _processor())
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    folder = cache_folder() / "code"
    file = folder / f"decode-step-{key}.so"
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as temporary:
        made = Path(temporary) / file.name
        # Options in $CXX come last, so that -march=haswell there wins over -march=native.
        command = [compiler[0], *flags, *compiler[1:], str(SOURCE), "-o", str(made)]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True)
        except OSError as error:
            raise NoCompiler(f"{command[0]} can't be run: {error}") from error
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip()[:500]
            raise NoCompiler(f"{command[0]} failed: {reason or 'no message'}") from error
        made.replace(file)
    return file


def _processor() -> str:
    """Return the name and the instructions of this processor: code for another one may not run."""
    if sys.platform != "linux":
        return platform.processor()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return "\n".join(
        sorted({n for n in lines if n.startswith(("model name", "flags", "Features"))})
    )


def can_step(model: object) -> TypeGuard[GPT]:
    """Return True for a GPT on a CPU with weights in float32, bfloat16 or 8-bit integers."""
    if not isinstance(model, GPT) or model.device.type != "cpu":
        return False
    linears = [m for m in model.modules() if isinstance(m, nn.Linear | Int8Linear)]
    return (
        all(type(linear) in (Linear, Int8Linear) for linear in linears)
        and all(linear.weight.dtype in FORMATS for linear in linears)
        and model.embed_tokens.weight.dtype in (torch.float32, torch.bfloat16)
        and model.compute_dtype is None
    )


class DecodeStep:
    """The decoding step of `model`, for up to `MAX_ROWS` rows.

    Matrices that were published in 4 or 8 bits are packed into their blocks again, which changes no
    number. The others are rounded to `dtype` if there is one, or used where they are, and must stay
    there. A row's logits have the same bits whatever the other rows and the number of threads are.
    Raises NoCompiler as `library` does.
    """

    def __init__(self, model: GPT, dtype: torch.dtype | None = None) -> None:
        self._library = library()
        self._dtype = dtype
        self._kept: list[object] = []  # everything that the C++ code points to
        self._config = model.config
        self._description = self._describe(model)
        self._lock = Lock()  # of one call at a time
        self._start()

    def _start(self) -> None:
        n_thread = min(MAX_THREADS, torch.get_num_threads())
        self._pid = os.getpid()
        self._step = self._library.step_new(pointer(self._description), n_thread, MAX_ROWS)

    def __del__(self) -> None:
        # A forked process has none of the threads that would be joined.
        if getattr(self, "_pid", None) == os.getpid():
            self._library.step_delete(self._step)

    def __call__(
        self,
        tokens: Sequence[int],
        slots: Sequence[int],
        places: Sequence[int],
        firsts: Sequence[int],
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        room: int,
    ) -> Float[Tensor, "rows vocab"]:
        """Return the logits in float32 after the token of each row, and append it to the cache.

        `keys` and `values` hold one float32 tensor (n_slot, n_kv_head, room, d_head) per layer, of
        any shape with these numbers in this order. The token of row i is written at `places[i]` of
        slot `slots[i]`, and sees the places from `firsts[i]` on, which is position 0. Raises
        IndexError for numbers out of range.
        """
        n = len(tokens)
        config = self._config
        # Anything else would address memory outside of the tensors.
        _check_range("row", [n - 1], MAX_ROWS)
        _check_range("token", tokens, config.vocab_size)
        _check_range("slot", slots, keys[0].numel() // (config.n_kv_head * config.d_head * room))
        _check_range("place", places, room)
        _check_range("first place", firsts, room)
        positions = [place - first for place, first in zip(places, firsts, strict=True)]
        _check_range("position", positions, config.context)
        logits = torch.empty(n, config.vocab_size)
        rows = _Rows(
            n,
            *((c_int64 * n)(*numbers) for numbers in (tokens, slots, places, firsts)),
            *(
                (c_void_p * len(layers))(*(layer.data_ptr() for layer in layers))
                for layers in (keys, values)
            ),
            room,
            logits.data_ptr(),
        )
        with self._lock:
            if self._pid != os.getpid():
                self._start()
            self._library.step_run(self._step, pointer(rows))
        return logits

    def _describe(self, model: GPT) -> _Model:
        config = model.config
        layers = (_Layer * config.n_layer)(
            *(
                self._layer(cast(Block, layer), index, model)
                for index, layer in enumerate(model.layers)
            )
        )
        cosines = sines = 0
        positions = _Matrix()
        if model.embed_positions is None:
            index = torch.arange(config.context)[None]
            cosines, sines = map(self._vector, rotary(index, model.frequencies, torch.float32))
        else:
            positions = self._table(model.embed_positions)
        block = cast(Block, model.layers[0])
        return _Model(
            self._table(model.embed_tokens),
            positions,
            self._head(model),
            cosines,
            sines,
            self._norm(model.norm),
            self._keep(layers),
            config.n_layer,
            config.d_model,
            config.d_ff,
            config.n_head,
            config.n_kv_head,
            config.d_head,
            config.norm_eps,
            block.self_attn.heads.scale,
        )

    def _head(self, model: GPT) -> _Matrix:
        head = model.lm_head
        return self._linear(head) if head else self._matrix(model.head_weight)

    def _layer(self, block: Block, index: int, model: GPT) -> _Layer:
        attention = block.self_attn
        mlp = block.mlp
        return _Layer(
            self._norm(block.input_layernorm),
            self._norm(block.post_attention_layernorm),
            self._norm(attention.q_norm),
            self._norm(attention.k_norm),
            *map(
                self._linear,
                (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
            ),
            self._linear(mlp.gate_proj) if isinstance(mlp, SwiGLU) else _Matrix(),
            self._linear(mlp.up_proj),
            self._linear(mlp.down_proj),
            model.config.window if is_local(model.config, index) else 0,
        )

    def _linear(self, linear: nn.Module) -> _Matrix:
        assert isinstance(linear, Linear | Int8Linear)
        scale = linear.scale if isinstance(linear, Int8Linear) else None
        return self._matrix(linear.weight, self._vector(scale), self._vector(linear.bias))

    def _matrix(self, weight: Tensor, scale: int = 0, bias: int = 0) -> _Matrix:
        """Return a matrix to multiply by."""
        weight = weight.detach()
        blocks = find_blocks(weight)
        if blocks is not None:
            data = self._keep(blocks.data.contiguous())
            kind = BLOCKS8 if blocks.lowest is None else BLOCKS4
            scale, lowest = self._vector(blocks.scale), self._vector(blocks.lowest)
            return _Matrix(data.data_ptr(), scale, lowest, bias, *weight.shape, kind)
        if self._dtype is not None and weight.is_floating_point():
            weight = weight.to(self._dtype)
        weight = self._keep(weight.contiguous())
        return _Matrix(weight.data_ptr(), scale, 0, bias, *weight.shape, FORMATS[weight.dtype])

    def _table(self, embedding: nn.Embedding) -> _Matrix:
        """Return a matrix of rows to look up."""
        weight = self._keep(embedding.weight.detach().contiguous())
        return _Matrix(weight.data_ptr(), 0, 0, 0, *weight.shape, FORMATS[weight.dtype])

    def _norm(self, norm: nn.Module) -> _Norm:
        vectors = dict(norm.named_parameters())
        return _Norm(self._vector(vectors.get("weight")), self._vector(vectors.get("bias")))

    def _vector(self, numbers: Tensor | None) -> int:
        """Return the address of the numbers in float32, 0 without numbers."""
        if numbers is None:
            return 0
        return self._keep(numbers.detach().float().contiguous().clone()).data_ptr()

    def _keep(self, kept: T) -> T:
        self._kept.append(kept)
        return kept


def _check_range(name: str, numbers: Sequence[int], end: int) -> None:
    if min(numbers) < 0 or max(numbers) >= end:
        raise IndexError(f"A {name} of {list(numbers)} is not below {end}.")
