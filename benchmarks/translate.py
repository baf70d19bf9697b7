"""Training tokens per second and beam-5 sentences per second beside JoeyNMT and `transformers`'
Marian, in one run.

Shape, vocabulary, dropout and label smoothing are those of the recipe multi30k-transformer. All
sides train in float32 on the same batches, those that our loader deals, with AdamW (JoeyNMT: Adam,
as it does); a token is one of the target. All decode the same sentences of the validation split in
the same batches, sorted by length. Weights are random, so every side is made to write as many
tokens as the longest source of a batch has: equal work. Each side runs in processes of its own, in
turn, so that a drift of the machine meets all of them; figures are medians over the rounds, ratios
the medians of the ratios within a round. JoeyNMT lives in an environment of its own.

    SEQ2CHAT_DATA=... python benchmarks/translate.py [--joeynmt-python PYTHON] [--rounds 3]
"""

import argparse
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import machine, peak_memory

BEAM, ALPHA = 5, 0.6
WARMUP = 3  # batches before the clock starts


def make_work(file: Path, options: argparse.Namespace) -> None:
    """Write the batches that everybody trains on and decodes, as lists of ids, into `file`."""
    from seq2chat.text.named import find_corpus
    from seq2chat.text.parallel import read_lines

    with tempfile.TemporaryDirectory() as folder:
        job = start(Path(folder) / "run")
    tokenizer, loader, first, training = job.tokenizer, job.task.loader, 0, []
    for _ in range(WARMUP + options.steps):
        size = job.recipe.train.batch_size
        batch = loader.batch(first, size)
        first += loader.n_samples(first, size)
        assert batch.source is not None and batch.source_mask is not None
        pairs = zip(batch.source, batch.source_mask, batch.labels, strict=True)
        training.append([(s[m].tolist()[:-1], y[y >= 0].tolist()[:-1]) for s, m, y in pairs])
    lines = random.Random(0).sample(read_lines(find_corpus("multi30k-val-en")), options.sentences)
    sources = sorted((tokenizer.encode(line) for line in lines), key=len)
    decoding = [sources[i : i + options.batch] for i in range(0, len(sources), options.batch)]
    work = {
        "training": training,
        "decoding": decoding,
        "end": tokenizer.eos_id,
        "pad": tokenizer.pad_id,
    }
    shape = dataclasses.asdict(job.model.config) | {
        "label_smoothing": job.recipe.train.label_smoothing
    }
    file.write_text(json.dumps(work | {"shape": shape}))


def start(folder: Path) -> Any:
    from seq2chat.config import Recipe, recipe_tables
    from seq2chat.training.setup import start_job

    equal = {"optim": {"matrices": "adamw"}, "train": {"precision": "fp32", "budget": "1000 steps"}}
    recipe = Recipe.from_tables(recipe_tables("multi30k-transformer"), equal)
    return start_job(recipe, folder, lambda line: print(line, file=sys.stderr))


def padded(rows: list[list[int]], value: int) -> Any:
    import torch

    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def timed(step: Callable[[Any], object], batches: list[Any], warmup: int) -> float:
    """Seconds that `step` takes for `batches`, without the first `warmup`."""
    for batch in batches[:warmup]:
        step(batch)
    began = time.perf_counter()
    for batch in batches[warmup:]:
        step(batch)
    return time.perf_counter() - began


def ours(work: dict) -> tuple[float, float]:
    from seq2chat.generation.beam import beam_search

    with tempfile.TemporaryDirectory() as folder:
        job = start(Path(folder) / "run")
    labels = [job.task.step(job).n_tokens for _ in range(WARMUP)]
    began = time.perf_counter()
    labels += [job.task.step(job).n_tokens for _ in work["training"][WARMUP:]]
    training = time.perf_counter() - began
    assert labels == [sum(len(t) + 1 for _, t in batch) for batch in work["training"]], (
        "the work is not the same"
    )

    end = work["end"]

    def decode(sources: list[list[int]]) -> None:
        n = len(sources[-1])
        prompts, read = [[end]] * len(sources), [[*source, end] for source in sources]
        beam_search(
            job.model, prompts, end, read, beam=BEAM, alpha=ALPHA, min_length=n, max_length=n
        )

    return training, timed(decode, [work["decoding"][0], *work["decoding"]], 1)


def marian(work: dict) -> tuple[float, float]:
    import torch
    from transformers import MarianConfig, MarianMTModel

    end, pad, shape = work["end"], work["pad"], work["shape"]
    sides = {
        f"{side}_{key}": shape[value]
        for side in ("encoder", "decoder")
        for key, value in (
            ("layers", "n_layer"),
            ("attention_heads", "n_head"),
            ("ffn_dim", "d_ff"),
        )
    }
    model = MarianMTModel(
        MarianConfig(
            vocab_size=shape["vocab_size"],
            d_model=shape["d_model"],
            dropout=shape["dropout"],
            activation_function="relu",
            scale_embedding=True,
            pad_token_id=pad,
            eos_token_id=end,
            decoder_start_token_id=end,
            forced_eos_token_id=None,
            max_position_embeddings=256,
            **sides,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def train(pairs: list) -> None:
        source = padded([[*s, end] for s, _ in pairs], pad)
        target = padded([[end, *t] for _, t in pairs], pad)
        labels = padded([[*t, end] for _, t in pairs], -100)
        logits = model(source, (source != pad).long(), target, (target != pad).long()).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), label_smoothing=shape["label_smoothing"]
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    training = timed(train, work["training"], WARMUP)
    model.eval()

    def decode(sources: list[list[int]]) -> None:
        source, n = padded([[*s, end] for s in sources], pad), len(sources[-1])
        with torch.inference_mode():
            model.generate(
                source,
                attention_mask=(source != pad).long(),
                num_beams=BEAM,
                length_penalty=ALPHA,
                do_sample=False,
                min_new_tokens=n,
                max_new_tokens=n,
            )

    return training, timed(decode, [work["decoding"][0], *work["decoding"]], 1)


def joeynmt(work: dict) -> tuple[float, float]:
    import importlib.metadata
    from types import SimpleNamespace

    import torch

    # What it asks for is in the library since Python 3.10.
    sys.modules.setdefault("importlib_metadata", importlib.metadata)
    from joeynmt.batch import Batch
    from joeynmt.model import build_model
    from joeynmt.search import search
    from joeynmt.vocabulary import Vocabulary

    shape, (unk, pad, bos, eos) = work["shape"], range(4)
    names = {
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "sep_token": None,
    }
    ids = {"unk_id": unk, "pad_id": pad, "bos_id": bos, "eos_id": eos, "sep_id": None}
    vocabulary = Vocabulary(
        [str(i) for i in range(shape["vocab_size"])], SimpleNamespace(**names, **ids, lang_tags=[])
    )
    side = {
        "type": "transformer",
        "num_layers": shape["n_layer"],
        "num_heads": shape["n_head"],
        "hidden_size": shape["d_model"],
        "ff_size": shape["d_ff"],
        "dropout": shape["dropout"],
        "layer_norm": "pre",
        "embeddings": {"embedding_dim": shape["d_model"], "scale": True},
    }
    tied = {"tied_embeddings": True, "tied_softmax": True, "initializer": "xavier_uniform"}
    model = build_model({"encoder": side, "decoder": side, **tied}, vocabulary, vocabulary)
    model.loss_function = ("crossentropy", shape["label_smoothing"])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def batch(sources: list[list[int]], targets: list[list[int]] | None) -> Batch:
        source = padded([[*(i + 4 for i in row), eos] for row in sources], pad)
        target = (
            None
            if targets is None
            else padded([[bos, *(i + 4 for i in row), eos] for row in targets], pad)
        )
        lengths, index = torch.tensor([len(row) + 1 for row in sources]), torch.arange(len(sources))
        return Batch(
            source,
            lengths,
            None,
            target,
            None,
            index,
            torch.device("cpu"),
            pad,
            eos,
            target is not None,
        )

    def train(pairs: list) -> None:
        data = batch([s for s, _ in pairs], [t for _, t in pairs])
        loss, *_ = model(return_type="loss", **vars(data))
        data.normalize(loss, "tokens").backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    model.train()
    training = timed(train, work["training"], WARMUP)
    model.eval()

    def decode(sources: list[list[int]]) -> None:
        n = len(sources[-1])
        search(model, batch(sources, None), n, BEAM, ALPHA, min_output_length=n)

    return training, timed(decode, [work["decoding"][0], *work["decoding"]], 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--joeynmt-python", help="interpreter of an environment with joeynmt 2.3")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="timed training steps in each round")
    parser.add_argument(
        "--sentences", type=int, default=400, help="sentences decoded in each round"
    )
    parser.add_argument("--batch", type=int, default=100, help="sentences decoded at once")
    parser.add_argument("--side", choices=["ours", "marian", "joeynmt"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run = {"ours": ours, "marian": marian, "joeynmt": joeynmt}[options.side]
        training, decoding = run(json.loads(options.work.read_text()))
        print(
            json.dumps({"training": training, "decoding": decoding, "peak_memory": peak_memory()})
        )
        return
    pythons = {"ours": sys.executable, "marian": sys.executable}
    if options.joeynmt_python:
        pythons["joeynmt"] = options.joeynmt_python
    results: dict[str, list[dict]] = {name: [] for name in pythons}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "work.json"
        make_work(file, options)
        work = json.loads(file.read_text())
        for _ in range(options.rounds):
            for name, python in pythons.items():
                results[name].append(child(python, name, file))
                print(name, results[name][-1], file=sys.stderr)
    n_tokens = sum(len(target) + 1 for batch in work["training"][WARMUP:] for _, target in batch)
    amounts = {"training": n_tokens, "decoding": options.sentences}
    line: dict[str, Any] = {
        "benchmark": "translate",
        "machine": machine(),
        "batch_sentences": options.batch,
    }
    for what, unit in (
        ("training", "train_tokens_per_second"),
        ("decoding", "beam5_sentences_per_second"),
    ):
        rates = {
            name: [amounts[what] / result[what] for result in rounds]
            for name, rounds in results.items()
        }
        for name in pythons:
            line[f"{name}_{unit}"] = round(statistics.median(rates[name]), 1)
        for name in list(pythons)[1:]:
            ratios = [
                mine / theirs for mine, theirs in zip(rates["ours"], rates[name], strict=True)
            ]
            line[f"ratio_{name}_{what}"] = round(statistics.median(ratios), 2)
        line[f"rounds_{what}"] = {
            name: [round(rate, 1) for rate in values] for name, values in rates.items()
        }
    line["peak_memory_mb"] = {
        name: round(max(r["peak_memory"] for r in results[name]) / 1e6) for name in pythons
    }
    print(json.dumps(line))


def child(python: str, side: str, work: Path) -> dict[str, float]:
    """Run one side in a fresh process of its interpreter and return the figures of its last
    line."""
    environment = {
        key: value for key, value in os.environ.items() if side == "ours" or key != "PYTHONPATH"
    }
    command = [python, __file__, "--side", side, "--work", str(work)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{side} failed")
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
