"""Masked accuracy and loss of a small BERT after some minutes, beside transformers' of the same
size and the unigram.

WikiText-2's validation text, nine tenths to train on and one to measure: 4 layers of 256, context
128, WordPiece of 8,000, batch 16 (recipe bert-wikitext). Ours is the whole command, so its minutes
include tokenizer, tokens and the last validation. `BertForMaskedLM` finds all that made and trains
for as many minutes, on the same samples, as its users do: AdamW on every weight, warmup and linear
decay, logits at all positions. Both are asked for the same 15 % of the text held out; the unigram
guesses each token by its frequency in the training text.

    SEQ2CHAT_DATA=... python benchmarks/masked_lm.py [--minutes 10] [--seed 1 2 3]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peers import child, machine

RECIPE = "bert-wikitext"


def measure(logits: Callable[[Any], Any], batches: Iterator[Any]) -> dict[str, float]:
    """Mean loss in nats and accuracy over the labels of `batches`; `logits(batch)` are those at the
    labels."""
    import torch

    from seq2chat.text.batch import IGNORED

    loss, hits, n = 0.0, 0, 0
    with torch.inference_mode():
        for batch in batches:
            guesses, labels = logits(batch), batch.labels[batch.labels != IGNORED]
            loss += torch.nn.functional.cross_entropy(
                guesses.float(), labels, reduction="sum"
            ).item()
            hits += int((guesses.argmax(-1) == labels).sum())
            n += len(labels)
    return {"loss": loss / n, "accuracy": hits / n, "labels": n}


def held_out(recipe: Any, tokenizer: Any) -> tuple[Any, Callable[[], Iterator[Any]]]:
    """The shards to train on, and the batches to measure with."""
    from seq2chat.text.corpus import load_corpus
    from seq2chat.text.masked import masked_evaluation_batches
    from seq2chat.text.shards import cached_shards, open_shards

    folder = cached_shards(load_corpus(recipe.data.corpus), tokenizer, recipe.data.val_fraction)
    train, val = (open_shards(folder, split) for split in ("train", "val"))
    return train, lambda: masked_evaluation_batches(
        val, recipe.model.context, recipe.train.batch_size, tokenizer
    )


def ours(folder: Path, minutes: float, seed: int) -> dict[str, float]:
    """Train by the command into `folder`; what the final weights reach."""
    from seq2chat.text.batch import IGNORED
    from seq2chat.training.checkpoint import load_checkpoint
    from seq2chat.training.run_folder import open_run

    flags = ["--out", str(folder), "--budget", f"{round(60 * minutes)}s", "--train.seed", str(seed)]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "seq2chat", "train", RECIPE, *flags], check=True, stdout=sys.stderr
    )
    seconds = time.perf_counter() - began
    model, tokenizer = load_checkpoint(folder)
    _, batches = held_out(open_run(folder).recipe(), tokenizer)

    def logits(batch: Any) -> Any:
        return model.logits(model.hidden(batch.target, batch.target_mask)[batch.labels != IGNORED])

    last = open_run(folder).metrics()[-1]
    return measure(logits, batches()) | {
        "seconds": seconds,
        "steps": last["step"],
        "run_loss": last["val_loss"],
    }


def transformers(folder: Path, minutes: float, seed: int, lr: float) -> dict[str, float]:
    """Train `BertForMaskedLM` on the samples of the run in `folder`."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    from seq2chat.text.batch import IGNORED
    from seq2chat.text.masked import MaskedLoader
    from seq2chat.text.wordpiece import WordPiece
    from seq2chat.training.run_folder import open_run

    recipe, tokenizer = open_run(folder).recipe(), WordPiece.load(folder / "tokenizer")
    shards, batches = held_out(recipe, tokenizer)
    c, batch_size = recipe.model, recipe.train.batch_size
    loader = MaskedLoader(shards, c.context, seed, tokenizer)
    torch.manual_seed(seed)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.d_model,
            num_hidden_layers=c.n_layer,
            num_attention_heads=c.n_head,
            intermediate_size=c.d_ff,
            max_position_embeddings=c.context,
            pad_token_id=tokenizer.pad_id,
            hidden_dropout_prob=c.dropout,
            attention_probs_dropout_prob=c.dropout,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    began, step, share = time.perf_counter(), 0, 0.0
    while share < 1:
        batch = loader.batch(step * batch_size, batch_size)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, share / 0.05) * (1 - share)
        model(input_ids=batch.target, labels=batch.labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, share = step + 1, (time.perf_counter() - began) / (60 * minutes)
    model.eval()

    def logits(batch: Any) -> Any:
        return model(input_ids=batch.target, attention_mask=batch.target_mask).logits[
            batch.labels != IGNORED
        ]

    return measure(logits, batches()) | {"seconds": time.perf_counter() - began, "steps": step}


def unigram(folder: Path) -> dict[str, float]:
    """The frequencies of the training text, one added to each count, as the guess for every
    mask."""
    import torch

    from seq2chat.text.batch import IGNORED
    from seq2chat.text.wordpiece import WordPiece
    from seq2chat.training.run_folder import open_run

    recipe, tokenizer = open_run(folder).recipe(), WordPiece.load(folder / "tokenizer")
    shards, batches = held_out(recipe, tokenizer)
    tokens = torch.from_numpy(shards.read(0, shards.n_tokens).astype(int))
    counts = torch.bincount(tokens[tokens != tokenizer.sep_id], minlength=tokenizer.vocab_size)
    log_p = torch.log((counts + 1.0) / (counts + 1.0).sum())
    return measure(lambda batch: log_p.expand(int((batch.labels != IGNORED).sum()), -1), batches())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--lr", type=float, default=1e-3, help="peak learning rate of transformers' model"
    )
    parser.add_argument(
        "--side", choices=["ours", "transformers", "unigram"], help=argparse.SUPPRESS
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run = options.folder, options.minutes, options.seed[0]
        sides = {
            "ours": lambda: ours(*run),
            "transformers": lambda: transformers(*run, options.lr),
            "unigram": lambda: unigram(options.folder),
        }
        print(json.dumps(sides[options.side]()))
        return
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seed:
            folder = Path(scratch) / str(seed)
            line: dict[str, Any] = {"benchmark": "masked_lm", "machine": machine()}
            line |= {"minutes": options.minutes, "seed": seed, "lr_transformers": options.lr}
            for side in ("ours", "transformers", "unigram"):
                flags = ["--side", side, "--folder", str(folder), "--minutes", str(options.minutes)]
                result = child(__file__, *flags, "--seed", str(seed), "--lr", str(options.lr))
                line[side] = {name: round(value, 4) for name, value in result.items()}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
