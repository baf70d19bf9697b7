"""A tiny policy that has learned a corner of the world: enough to be sometimes right and sometimes
wrong."""

import itertools
import threading

import pytest
import torch

from seq2chat.alignment.setup import prepare_alignment
from seq2chat.config import GPTConfig, Recipe, recipe_tables
from seq2chat.models.folder import make_model, save_model
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.world import documents
from seq2chat.training.loop import train
from seq2chat.training.setup import resume_job, start_job

TABLES = {
    "train": {"precision": "fp32", "evals": 1, "checkpoints": 1, "samples": 0, "seed": 7},
    "align": {"max_tokens": 12},
}


def quiet(text: str) -> None: ...


def _align(method, folder, start, stop_after=None, **changes):
    """Train by the method's own recipe with dotted changes; the finished job, or one stopped after
    so many steps."""
    tables = {name: dict(table) for name, table in TABLES.items()}
    if method == "reward":
        del tables["align"]["max_tokens"]
    tables["align"] |= {"start": str(start)}
    for key, value in changes.items():
        table, _, name = key.partition("__")
        tables.setdefault(table, {})[name] = value
    recipe = Recipe.from_tables(recipe_tables(method), tables)
    return finish(start_job(recipe, folder, quiet, prepare=prepare_alignment), stop_after)


def _resume(folder, stop_after=None):
    return finish(resume_job(folder, {}, quiet, prepare=prepare_alignment), stop_after)


def _rates(lr):
    return dict.fromkeys(
        ("optim__matrix_lr", "optim__embedding_lr", "optim__vector_lr", "optim__head_lr"), lr
    )


def finish(job, stop_after):
    stop = threading.Event()
    for event in train(job, stop):
        if stop_after is not None and getattr(event, "step", 0) >= stop_after:
            stop.set()
    return job


@pytest.fixture(scope="session")
def align():
    return _align


@pytest.fixture(scope="session")
def rates():
    return _rates


@pytest.fixture(scope="session")
def resume():
    return _resume


@pytest.fixture(scope="session")
def world_tokenizer():
    return ByteBPE.train(itertools.islice(documents(), 2000), 700)


@pytest.fixture(scope="session")
def base(world_tokenizer, tmp_path_factory):
    """A model folder with fresh weights whose branches are not zero."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(3)
    model = make_model(
        GPTConfig(
            vocab_size=world_tokenizer.vocab_size, context=128, n_layer=2, n_head=2, d_model=64
        )
    )
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.normal_(parameter, std=0.05)
    save_model(
        model, folder, eos_token_id=world_tokenizer.eos_id, pad_token_id=world_tokenizer.pad_id
    )
    world_tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def corner(tmp_path_factory):
    """Demonstrations of a corner of the world that a tiny model learns in seconds: the world's
    prompts whose answers need little reading."""
    import json

    from seq2chat.text.world import questions

    file = tmp_path_factory.mktemp("corner") / "corner.jsonl"
    asked = questions(
        "train", 1200, seed=11, families=("harmful", "polite", "count", "unanswerable")
    )
    rows = [
        {
            "messages": (
                [{"role": m.role, "content": m.content} for m in q.messages]
                + [{"role": "assistant", "content": q.answer}]
            )
        }
        for q in asked
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture(scope="session")
def fine_tuned(base, corner, tmp_path_factory):
    """A policy fine-tuned on the corner."""
    folder = tmp_path_factory.mktemp("runs") / "sft"
    _align(
        "sft",
        folder,
        base,
        data__corpus=corner,
        train__budget="160 steps",
        train__batch_size=16,
        **_rates(0.004),
    )
    return folder


@pytest.fixture(scope="session")
def judge(fine_tuned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "reward"
    _align(
        "reward",
        folder,
        fine_tuned,
        train__budget="60 steps",
        train__batch_size=8,
        align__examples=600,
        **_rates(0.001),
    )
    return folder
