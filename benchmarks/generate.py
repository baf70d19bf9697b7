"""Generation by the engine beside `generate` of transformers, and llama.cpp where it is installed:
the same weights.

    python benchmarks/generate.py [1M 10M 124M]

GPT-2 shapes with random weights, prompts of 128 tokens, 128 new ones, greedy, one request and 16 at
once; medians of interleaved rounds, each side in the number format that is faster for it, and ours
with weights of 8 bits besides. The first greedy tokens are compared first. llama.cpp is asked
through `pip install llama-cpp-python gguf`, in float16, one request.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peers import machine, peak_memory

from seq2chat.config import GPTConfig
from seq2chat.generation.engine import Engine
from seq2chat.generation.request import Request
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.generation.tokens import Token
from seq2chat.models.folder import n_parameters, save_model
from seq2chat.models.gpt import GPT
from seq2chat.serving.served_model import quantize

SHAPES = {
    "1M": GPTConfig("gpt2", vocab_size=4096, context=256, n_layer=4, n_head=4, d_model=128),
    "10M": GPTConfig("gpt2", vocab_size=4096, context=256, n_layer=6, n_head=6, d_model=384),
    "124M": GPTConfig("gpt2", vocab_size=50257, context=1024, n_layer=12, n_head=12, d_model=768),
}
PROMPT, NEW, MANY = 128, 128, 16


def run(
    engine: Engine, prompts: list[list[int]], new: int
) -> tuple[list[list[int]], float, float, float]:
    """Return the tokens of each prompt, the seconds of all, to the first token, and the median
    between two of one."""
    tokens: list[list[int]] = [[] for _ in prompts]
    times: list[list[float]] = [[] for _ in prompts]

    def emit(index: int, event: object) -> None:
        if isinstance(event, Token):
            tokens[index].append(event.id)
            times[index].append(time.perf_counter())

    began = time.perf_counter()
    for i, prompt in enumerate(prompts):
        engine.submit(
            Request(
                prompt, SamplingConfig(new, 0.0), lambda event, i=i: emit(i, event), salt=str(began)
            )
        )
    engine.run()
    gaps = [after - before for row in times for before, after in pairwise(row)]
    return (
        tokens,
        time.perf_counter() - began,
        times[0][0] - began,
        statistics.median(gaps or [0.0]),
    )


def compare(name: str, rounds: int) -> dict[str, Any]:
    """Tokens a second of all sides, new tokens over the whole time, prompt included."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config, chance = SHAPES[name], random.Random(0)
    model = GPT(config).eval()
    prompts = [[chance.randrange(config.vocab_size) for _ in range(PROMPT)] for _ in range(MANY)]
    with TemporaryDirectory() as folder:
        save_model(model, folder, pad_token_id=0)
        theirs = {
            str(dtype).removeprefix("torch."): (
                AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
            )
            for dtype in (torch.float32, torch.bfloat16)
        }
        ids = torch.tensor(prompts)
        options = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            same = theirs["float32"].generate(ids, max_new_tokens=8, min_new_tokens=8, **options)[
                :, PROMPT:
            ]
        assert same.tolist() == run(Engine(model, MANY), prompts, 8)[0], "other tokens"
        llama = _llama(Path(folder), config, model)
    engines = {}
    for kind in ("float32", "bfloat16", "int8"):
        own = GPT(config).eval()
        own.load_state_dict(model.state_dict())
        own.to(torch.float32 if kind == "float32" else torch.bfloat16)
        if kind == "int8":
            quantize(own)
        engines[kind] = Engine(own, MANY)
        engines[kind].compile()

    @torch.inference_mode()
    def peer(kind: str, n: int) -> float:
        options = {
            "do_sample": False,
            "pad_token_id": 0,
            "attention_mask": torch.ones_like(ids[:n]),
        }
        began = time.perf_counter()
        theirs[kind].generate(ids[:n], max_new_tokens=NEW, min_new_tokens=NEW, **options)
        return time.perf_counter() - began

    result: dict[str, Any] = {"parameters": n_parameters(config)}
    for n in (1, MANY):
        sides: dict[str, Callable[[], float]] = {}
        for kind in engines:
            sides[f"ours {kind}"] = lambda kind=kind, n=n: run(engines[kind], prompts[:n], NEW)[1]
        for kind in theirs:
            sides[f"transformers {kind}"] = lambda kind=kind, n=n: peer(kind, n)
        if llama is not None and n == 1:
            sides["llama.cpp"] = lambda: llama(prompts[0])
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, measure in sides.items():
                seconds[side].append(measure())
        rates = {
            side: round(n * NEW / statistics.median(values)) for side, values in seconds.items()
        }
        best = max(theirs, key=lambda kind: rates[f"ours {kind}"])
        _, _, first, between = run(engines[best], prompts[:n], NEW)
        result[f"{n} at once"] = rates | {
            "ratio": round(
                rates[f"ours {best}"] / max(rates[f"transformers {kind}"] for kind in theirs), 2
            ),
            "ms_to_first_token": round(1e3 * first, 1),
            "ms_between_tokens": round(1e3 * between, 2),
        }
        if n == 1:
            weights = result["parameters"] * (4 if best == "float32" else 2)
            result["share_of_bandwidth"] = round(weights / between / bandwidth(), 2)
    return result


def bandwidth() -> float:
    """Bytes a second that this machine reads from memory: the sum of 1 GB, the best of several."""
    block, best = torch.ones(1 << 28), float("inf")
    for _ in range(5):
        began = time.perf_counter()
        block.sum()
        best = min(best, time.perf_counter() - began)
    return block.nbytes / best


def _llama(folder: Path, config: GPTConfig, model: GPT) -> Callable[[list[int]], float] | None:
    """Return what times llama.cpp on one prompt, or None where it is not installed."""
    try:
        from gguf import GGUFWriter
        from llama_cpp import Llama
    except ImportError:
        return None
    file = folder / "model.gguf"
    writer = GGUFWriter(file, "gpt2")
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    writer.add_token_merges(["t 0"])
    state = {key: value.detach() for key, value in model.state_dict().items()}

    def add(name: str, tensor: torch.Tensor) -> None:
        writer.add_tensor(
            name, tensor.to(torch.float16 if tensor.ndim > 1 else torch.float32).numpy()
        )

    add("token_embd.weight", state["embed_tokens.weight"])
    add("position_embd.weight", state["embed_positions.weight"])
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for kind in ("weight", "bias"):
        add(f"output_norm.{kind}", state[f"norm.{kind}"])
        for i in range(config.n_layer):
            parts = [state[f"layers.{i}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            add(f"blk.{i}.attn_qkv.{kind}", torch.cat(parts))
            for ours, theirs in names.items():
                add(f"blk.{i}.{theirs}.{kind}", state[f"layers.{i}.{ours}.{kind}"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    peer = Llama(str(file), n_ctx=config.context, n_threads=torch.get_num_threads(), verbose=False)

    def measure(prompt: list[int]) -> float:
        peer.reset()
        began = time.perf_counter()
        for count, _ in enumerate(peer.generate(prompt, temp=0.0), 1):
            if count == NEW:
                break
        return time.perf_counter() - began

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for name in options.shapes:
        line = {
            "benchmark": "generate",
            "machine": machine(),
            "shape": name,
            "prompt": PROMPT,
            "new_tokens": NEW,
        }
        print(
            json.dumps(line | compare(name, options.rounds) | {"peak_memory": peak_memory()}),
            flush=True,
        )


if __name__ == "__main__":
    main()
