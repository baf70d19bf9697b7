"""All speed measurements of this machine, one after the other, and the page that compares machines.

    make bench BENCH="--nanogpt CLONE --nanochat CLONE"
    python benchmarks/speed.py --page

A peer is measured if its folder is given, or if it is installed (`transformers`,
`llama-cpp-python`), in the same run and in turn with ours. The lines go to
`benchmarks/results/speed-INSTRUCTIONS.jsonl`, with the instruction set of the machine as PyTorch
names it, and replace those of an earlier run. The page `docs/results/speed.md` has one column per
such file.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "results" / "speed.md"
SHAPES = ("1M", "10M", "124M", "smollm2")

Line = dict[str, Any]


def measure(options: argparse.Namespace) -> None:
    """Run the benchmarks and write their lines."""
    rounds = ["--rounds", str(options.rounds)]
    training = [
        f"--{peer}={folder}"
        for peer in ("nanogpt", "nanochat")
        if (folder := getattr(options, peer))
    ]
    commands = [
        ["train_step.py", "--steps", "8", *rounds, *training],
        ["startup.py"],
        *(["generate.py", shape, *rounds] for shape in options.shapes),
    ]
    lines = []
    for command in commands:
        print(*command, file=sys.stderr)
        done = subprocess.run(
            [sys.executable, str(HERE / command[0]), *command[1:]],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        line = json.loads(done.stdout.splitlines()[-1])
        lines.append({"date": str(date.today())} | line)
        print(json.dumps(lines[-1]), flush=True)
    name = torch.backends.cpu.get_cpu_capability().lower()
    file = RESULTS / f"speed-{name}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def training_rows(line: Line) -> dict[str, str]:
    """Return the cells of `train_step.py`, by the title of their row."""
    ours = line["tokens_per_second"]
    rows = {
        "training, tokens/s": f"{ours:,} ({spread(line['rounds']['ours'])})",
        "share of the measured peak": f"{line['peak_share']:.0%}",
        "first step after": f"{line['ready_seconds']:.0f} s",
        "peak memory": f"{line['peak_memory_mb']:,} MB",
    }
    for peer in ("nanogpt", "nanochat"):
        if f"ratio_{peer}" in line:
            theirs = line[f"{peer}_tokens_per_second"]
            memory = line[f"{peer}_peak_memory_mb"]
            rows[f"… {peer}"] = f"{theirs:,}, {memory:,} MB (ours {line[f'ratio_{peer}']} ×)"
    return rows


def startup_rows(line: Line) -> dict[str, str]:
    """Return the cells of `startup.py`."""
    return {
        "`generate`, command to first token, 10M": f"{line['first_token_seconds']} s",
        "`--help`": f"{line['help_seconds']} s",
    }


def generation_rows(line: Line) -> dict[str, str]:
    """Return the cells of `generate.py`: ours in each format, and the ratio to each peer."""
    rows = {}
    for n in (1, 16):
        rates = line[f"{n} at once"]
        ours = {kind: rates[f"ours {kind}"] for kind in ("float32", "bfloat16", "int8")}
        title = f"{line['shape']}, {n} at once, tokens/s"
        rows[title] = " · ".join(f"{kind} {rate:,}" for kind, rate in ours.items())
        # The blocks of a published file are found again in the float32 weights.
        exact = max(ours["float32"], ours["bfloat16"])
        peers = [side for side in rates["spread"] if not side.startswith("ours")]
        for side in peers:
            same = ours["int8"] if side.endswith("q8_0") else exact
            rows[f"… {side} ({n} at once, {line['shape']})"] = (
                f"{rates[side]:,} (ours {same / rates[side]:.2f} ×)"
            )
    return rows


ROWS: dict[str, Callable[[Line], dict[str, str]]] = {
    "train_step": training_rows,
    "startup": startup_rows,
    "generate": generation_rows,
}


def spread(rates: list[int]) -> str:
    """Return the lowest and the highest of the rounds."""
    return f"{min(rates):,}–{max(rates):,}"


def page() -> str:
    """Return the page in Markdown: one column per file of results."""
    columns: dict[str, dict[str, str]] = {}
    for file in sorted(RESULTS.glob("speed-*.jsonl")):
        lines = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
        cells: dict[str, str] = {}
        for line in lines:
            cells |= ROWS[line["benchmark"]](line)
        columns[f"{lines[0]['machine']} ({lines[0]['date']})"] = cells
    titles = list(dict.fromkeys(title for cells in columns.values() for title in cells))
    table = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for title in titles:
        cells = [cells.get(title, "") for cells in columns.values()]
        table.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join([INTRODUCTION, *table, ""])


INTRODUCTION = """# Speed, measured

One column per instruction set, each made by `make bench` (`benchmarks/speed.py`), which measures
the peers in the same run and in turn with ours. Figures are medians of the rounds, and the range
after training is the slowest and the fastest round.

*Training* is one step of a GPT with 6 layers of width 384, context 256, vocabulary 4096 and batch
16, optimizer included. *Generation* counts new tokens per second for 128 prompt tokens and 128
new ones, including the time of the prompt, for GPT-2 shapes with random weights and for
SmolLM2-135M. `transformers`, and llama.cpp in float16 and on the published 4-bit file, are
compared with ours without any rounding to 8 bits, and llama.cpp's q8_0 with ours in 8 bits. The
float32 weights of SmolLM2 are those of the 4-bit file, whose blocks are found again. What was
tried and did not help is in [the log](../log.md).
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, help="folder of a clone of nanoGPT")
    parser.add_argument("--nanochat", type=Path, help="folder of a clone of nanochat")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--page", action="store_true", help="write the page from the results alone")
    options = parser.parse_args()
    if not options.page:
        measure(options)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
