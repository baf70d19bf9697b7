"""The server under load: asyncio clients with the openai SDK against `seq2chat serve` on the same
machine.

    python benchmarks/serve.py [1M] [--clients 1 4 16 64] [--compile]

Each client sends one streamed request after the other: a prompt of 64 random tokens, 64 new ones.
It prints the median and the 99th percentile in milliseconds of the time to the first token and of
the gaps between tokens (of chunks, from the client's point of view).
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import openai
import torch
from generate import SHAPES
from peers import machine

from seq2chat.models.folder import n_parameters, save_model
from seq2chat.models.gpt import GPT
from seq2chat.text.byte_bpe import ByteBPE

PROMPT, NEW, REQUESTS = 64, 64, 4


async def client(sdk: openai.AsyncOpenAI, seed: int) -> tuple[list[float], list[float], int, int]:
    """Return the seconds to each first token and between tokens, the number of tokens, and of
    errors."""
    first, gaps, n_tokens, errors = [], [], 0, 0
    chance = random.Random(seed)
    for _ in range(REQUESTS):
        prompt, began, times = (
            [chance.randrange(256) for _ in range(PROMPT)],
            time.perf_counter(),
            [],
        )
        try:
            stream = await sdk.completions.create(
                model="model",
                prompt=prompt,
                max_tokens=NEW,
                temperature=1.0,
                seed=seed,
                stream=True,
                extra_body={"return_token_ids": True},
            )
            async for chunk in stream:
                times.append(time.perf_counter())
                n_tokens += len(chunk.choices[0].token_ids)
        except openai.OpenAIError:
            errors += 1
            continue
        first.append(times[0] - began)
        gaps.extend(after - before for before, after in pairwise(times))
    return first, gaps, n_tokens, errors


async def load(address: str, n_clients: int) -> dict[str, Any]:
    """Return what `n_clients` at once measure."""
    async with openai.AsyncOpenAI(
        base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300
    ) as sdk:
        await client(sdk, -1)
        began = time.perf_counter()
        found = await asyncio.gather(*(client(sdk, seed) for seed in range(n_clients)))
    seconds = time.perf_counter() - began
    first, gaps = ([value for part in found for value in part[which]] for which in (0, 1))
    return {
        "tokens_per_second": round(sum(part[2] for part in found) / seconds),
        "requests_per_second": round(n_clients * REQUESTS / seconds, 1),
        "ttft_ms": _percentiles(first),
        "itl_ms": _percentiles(gaps),
        "errors": sum(part[3] for part in found),
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    # Never beyond what was measured.
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": round(1e3 * cuts[49], 1), "p99": round(1e3 * cuts[98], 1)}


def resident(pid: int) -> int:
    """Bytes that a process holds in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def idle(address: str, n: int) -> None:
    """Open connections and leave them."""
    port = int(address.rsplit(":", 1)[1])
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(n)]
    await asyncio.sleep(1)
    for _, writer in held:
        writer.close()


def listening(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the address that the server prints. Exits with what it printed if it ends before."""
    while process.poll() is None:
        if address := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return address[0]
        time.sleep(0.05)
    sys.exit(f"The server ended before it listened: {log.read_text().strip()}")


def measure(name: str, clients: list[int], compiled: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    config = SHAPES[name]
    with TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        save_model(GPT(config), model)
        ByteBPE.train(["a"], 260).save(model)
        command = [sys.executable, "-m", "seq2chat", "serve", str(model), "--port", "0"]
        log = Path(folder) / "log.txt"  # a file, as a pipe that nobody reads is full some day
        with log.open("w") as errors:
            process = subprocess.Popen(
                [*command, *(["--compile"] if compiled else [])], stderr=errors
            )
        try:
            address = listening(process, log)
            result: dict[str, Any] = {
                "parameters": n_parameters(config),
                "memory_before": resident(process.pid),
            }
            for n in clients:
                result[f"{n} clients"] = asyncio.run(load(address, n))
            result["memory_after"] = resident(process.pid)
            connected = asyncio.run(_with_idle(address, process.pid))
            return result | {"memory_of_64_idle_connections": connected}
        finally:
            process.terminate()
            process.wait()


async def _with_idle(address: str, pid: int) -> int:
    before, task = resident(pid), asyncio.create_task(idle(address, 64))
    await asyncio.sleep(0.5)
    more = resident(pid) - before
    await task
    return more


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shapes", nargs="*", default=["1M"])
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    for name in options.shapes:
        line = {
            "benchmark": "serve",
            "machine": machine(),
            "shape": name,
            "prompt": PROMPT,
            "new_tokens": NEW,
        }
        line["compiled"] = options.compile
        print(json.dumps(line | measure(name, options.clients, options.compile)), flush=True)


if __name__ == "__main__":
    main()
