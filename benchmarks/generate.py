"""Generation by the engine beside `generate` of transformers, and llama.cpp where it is installed:
the same weights.

    python benchmarks/generate.py [1M 10M 124M smollm2]

GPT-2 shapes with random weights, or a published model; prompts of 128 tokens, 128 new ones, greedy,
one request and 16 at once; medians of interleaved rounds, in each number format of each side. The
first greedy tokens are compared first. llama.cpp is asked through `pip install llama-cpp-python`,
one request: in float16, and a published model also in q8_0 and as it is published. (Through
`node-llama-cpp`, a token of the smallest shape takes 12 ms, which measures Node.)
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# As the command does, before torch is loaded: its waiting threads leave the cores to ours.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import peers
import torch
from peers import machine, peak_memory

from seq2chat.config import GPTConfig
from seq2chat.generation.engine import Engine
from seq2chat.generation.request import Request
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.generation.tokens import Token
from seq2chat.inference.load import load_gpt
from seq2chat.models.folder import n_parameters, save_model
from seq2chat.models.gguf import write_gguf
from seq2chat.models.gpt import GPT
from seq2chat.models.published import PUBLISHED, published_file
from seq2chat.serving.served_model import linear_maps, quantize
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.text_tokenizer import TextTokenizer

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
    model, tokenizer = subject(name)
    config = model.config
    chance = random.Random(0)
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
        llama = llamas(Path(folder), name, model, tokenizer)
    engines = {}
    for kind in ("float32", "bfloat16", "int8"):
        own = GPT(config).eval()
        own.load_state_dict(model.state_dict())
        # As `seq2chat serve` stores them.
        if kind == "int8":
            own.to(torch.bfloat16)
            quantize(own)
        for part in linear_maps(own) if kind == "bfloat16" else []:
            part.to(torch.bfloat16)
        engines[kind] = Engine(own, MANY)
        engines[kind].compile(torch.bfloat16 if kind == "bfloat16" else None)

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
        for kind, measure in llama.items() if n == 1 else []:
            sides[f"llama.cpp {kind}"] = lambda measure=measure: measure(prompts[0])
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, measure in sides.items():
                seconds[side].append(measure())
        rates = {
            side: round(n * NEW / statistics.median(values)) for side, values in seconds.items()
        }
        best = max(theirs, key=lambda kind: rates[f"ours {kind}"])
        spread = {
            side: [round(n * NEW / max(values)), round(n * NEW / min(values))]
            for side, values in seconds.items()
        }
        _, _, first, between = run(engines[best], prompts[:n], NEW)
        result[f"{n} at once"] = rates | {
            "ratio": round(
                rates[f"ours {best}"] / max(rates[f"transformers {kind}"] for kind in theirs), 2
            ),
            "ms_to_first_token": round(1e3 * first, 1),
            "ms_between_tokens": round(1e3 * between, 2),
            "spread": spread,
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


def subject(name: str) -> tuple[GPT, TextTokenizer]:
    """Return a published model, or one of this shape with random weights."""
    if name in PUBLISHED:
        return load_gpt(Path(name), device="cpu")
    # llama.cpp reads no vocabulary without merges.
    return GPT(SHAPES[name]).eval(), ByteBPE.train(["a b c " * 9], 264)


def llamas(
    folder: Path, name: str, model: GPT, tokenizer: TextTokenizer
) -> dict[str, Callable[[list[int]], float]]:
    """Return what times llama.cpp on one prompt, by type of file; {} if it is not installed."""
    llama_cpp = peers.llama_cpp()
    if llama_cpp is None:
        return {}
    files = {}
    for kind in ("f16", "q8_0") if name in PUBLISHED else ("f16",):
        files[kind] = folder / f"{kind}.gguf"
        write_gguf(model, tokenizer, files[kind], kind)
    if name in PUBLISHED:
        files["published"] = published_file(name)

    def timed(file: Path) -> Callable[[list[int]], float]:
        peer = llama_cpp.Llama(
            str(file), n_ctx=512, n_threads=torch.get_num_threads(), verbose=False
        )

        def measure(prompt: list[int]) -> float:
            peer.reset()
            began = time.perf_counter()
            for count, _ in enumerate(peer.generate(prompt, temp=0.0), 1):
                if count == NEW:
                    break
            return time.perf_counter() - began

        return measure

    return {kind: timed(file) for kind, file in files.items()}


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
