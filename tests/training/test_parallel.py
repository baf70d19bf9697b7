"""Several processes have the losses of one, for all families and divisions, also after a stop."""

import dataclasses
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file
from training.ranks import Run, losses, metrics, train_together

from seq2chat.config import ParallelConfig, Recipe, UserError
from seq2chat.training.loop import train
from seq2chat.training.parallel import Parallel
from seq2chat.training.setup import resume_job, start_job

EQUAL = 2e-6
TRAIN = {
    "budget": "8 steps",
    "batch_size": 8,
    "seed": 1,
    "precision": "fp32",
    "compile": "off",
    "evals": 2,
    "checkpoints": 2,
    "samples": 1,
}
SHAPES = {
    "gpt": {"context": 32, "n_layer": 2, "n_head": 2, "d_model": 32},
    "gpt2": {"layout": "gpt2", "context": 32, "n_layer": 2, "n_head": 2, "d_model": 32},
    "bert": {"family": "bert", "context": 32, "n_layer": 2, "n_head": 2, "d_model": 32},
    "transformer": {"family": "transformer", "n_layer": 2, "n_head": 2, "d_model": 32},
    "seq2seq": {"family": "seq2seq", "n_layer": 2, "d_model": 32, "d_embed": 24},
}


DIVISIONS = [
    "gpt-data",
    "gpt-both",
    "gpt-tensor",
    "gpt2-pipeline",  # its first and last stage share the embedding
    "gpt-all",
    "gpt-2",
    "gpt-tensor-2",
    "gpt-pipeline-2",
]
WHOLE = [*(f"{shape}-4" for shape in SHAPES), "gpt-both", "gpt-tensor", "gpt2-pipeline", "gpt-all"]


def recipe_of(name, text_file, parallel_files, **changes):
    data = {"corpus": str(text_file)}
    if name in ("transformer", "seq2seq"):
        data = parallel_files
    vocabulary = 120 if name == "bert" else 260
    tables = {
        "data": data,
        "tokenizer": {"vocab_size": vocabulary},
        "model": SHAPES[name] | {"dropout": 0.0},
        "train": TRAIN,
    }
    return Recipe.from_tables(tables, {"train": changes})


def divided(recipe, **sizes):
    return dataclasses.replace(recipe, parallel=ParallelConfig(**sizes))


def run_alone(job):
    for _ in train(job, threading.Event()):
        pass


@pytest.fixture(scope="module")
def recipes(text_file, parallel_files):
    every = {name: recipe_of(name, text_file, parallel_files) for name in SHAPES}
    every["accumulated"] = recipe_of("gpt", text_file, parallel_files, batch_size=4, accumulation=3)
    return every


@pytest.fixture(scope="module")
def folders(recipes, tmp_path_factory):
    """Runs by one process, four and two."""
    root = tmp_path_factory.mktemp("runs")
    for name, recipe in recipes.items():
        run_alone(start_job(recipe, root / f"{name}-1"))
    four = [Run(root / f"{name}-4", recipe) for name, recipe in recipes.items()]
    four.append(Run(root / "gpt-data", divided(recipes["gpt"], data=4)))
    four.append(Run(root / "gpt-both", divided(recipes["gpt"], data=2, shard=2)))
    four.append(Run(root / "gpt-tensor", divided(recipes["gpt"], shard=2, tensor=2)))
    four.append(Run(root / "gpt2-pipeline", divided(recipes["gpt2"], shard=2, pipeline=2)))
    four.append(Run(root / "gpt-all", divided(recipes["gpt"], tensor=2, pipeline=2)))
    four.append(Run(root / "gpt-stopped", recipes["gpt"], stop_after=5))
    four.append(Run(root / "gpt-3", divided(recipes["gpt"], data=3)))
    four.append(
        Run(
            root / "gpt-odd",
            recipe_odd := dataclasses.replace(
                recipes["gpt"], train=dataclasses.replace(recipes["gpt"].train, batch_size=6)
            ),
        )
    )
    assert recipe_odd.train.batch_size == 6
    errors = train_together(4, four)
    assert errors[:-2] == [""] * (len(four) - 2)
    (root / "errors").write_text("\n".join(errors[-2:]))
    shutil.copytree(root / "gpt-stopped", root / "gpt-stopped-1")
    shutil.copytree(root / "gpt-stopped", root / "gpt-stopped-tensor")
    shutil.copytree(root / "gpt-stopped", root / "gpt-stopped-pipeline")
    two = [
        Run(root / "gpt-2", recipes["gpt"]),
        Run(root / "gpt-tensor-2", divided(recipes["gpt"], tensor=2)),
        Run(root / "gpt-pipeline-2", divided(recipes["gpt"], pipeline=2)),
        Run(root / "gpt-stopped"),
        Run(root / "gpt-stopped-tensor", changes={"parallel": {"tensor": 2}}),
        Run(root / "gpt-stopped-pipeline", changes={"parallel": {"pipeline": 2}}),
    ]
    full = Run(root / "gpt-full", recipes["gpt"], disk=50_000)
    refused = [*disagreeing(recipes["gpt"], root), full]
    errors = train_together(2, [*two, *refused])
    assert errors[: len(two)] == [""] * len(two)
    (root / "refusals").write_text("\n".join(errors[len(two) :]))
    return root


def disagreeing(recipe, root):
    """Runs that are refused: other options, no data, and other data."""

    def reading(file):
        return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, corpus=str(file)))

    other = root / "other.txt"
    other.write_text("Another text. " * 200)
    clipped = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, clip=0.5))
    seconds = (clipped, reading(root / "none.txt"), reading(other))
    return [Run(root / f"no-{i}", recipe, second=second) for i, second in enumerate(seconds)]


def equal(folder, expected):
    actual = metrics(folder)
    wanted = metrics(expected)
    assert [m["step"] for m in actual] == [m["step"] for m in wanted]
    for a, b in zip(actual, wanted, strict=True):
        for name in ("loss", "val_loss", "grad_norm"):
            assert abs(a.get(name, 0) - b.get(name, 0)) <= EQUAL, (a["step"], name)
        for name in ("tokens", "val_tokens"):
            assert a.get(name) == b.get(name)
    assert losses(expected)[-1] < losses(expected)[0] - 0.1  # it learns, so equality says something


@pytest.mark.parametrize("name", [*SHAPES, "accumulated"])
def test_four_sharding_processes_have_the_losses_of_one(folders, name):
    equal(folders / f"{name}-4", folders / f"{name}-1")


@pytest.mark.parametrize("name", DIVISIONS)
def test_any_division_has_the_losses_of_one(folders, name):
    equal(folders / name, folders / f"{name.partition('-')[0]}-1")


@pytest.mark.parametrize("name", WHOLE)
def test_weights_and_optimizer_state_are_those_of_one(folders, name):
    alone = f"{name.partition('-')[0]}-1"
    for file in ("model.safetensors", "trainer/optimizer.safetensors"):
        one = load_file(folders / alone / "checkpoints" / "step-000008" / file)
        four = load_file(folders / name / "checkpoints" / "step-000008" / file)
        assert one.keys() == four.keys()
        for key, tensor in one.items():
            # Softmax ignores it, so its gradient is what rounding leaves, which Adam amplifies.
            if "k_proj.bias" in key:
                continue
            torch.testing.assert_close(four[key], tensor, atol=2e-5, rtol=1e-4, msg=key)


def test_a_run_of_four_goes_on_with_two_or_one_or_in_another_division(folders):
    equal(folders / "gpt-stopped", folders / "gpt-1")
    equal(folders / "gpt-stopped-tensor", folders / "gpt-1")
    equal(folders / "gpt-stopped-pipeline", folders / "gpt-1")
    job = resume_job(folders / "gpt-stopped-1", {})
    assert job.progress.step == 5
    run_alone(job)
    equal(folders / "gpt-stopped-1", folders / "gpt-1")


def test_a_checkpoint_of_four_opens_in_transformers(folders):
    from transformers import AutoModelForCausalLM

    from seq2chat.training.checkpoint import load_checkpoint

    model, _ = load_checkpoint(folders / "gpt-4")
    theirs = AutoModelForCausalLM.from_pretrained(folders / "gpt-4/checkpoints/step-000008").eval()
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=2e-5, rtol=0)


def test_sizes_that_do_not_fit_are_refused_with_what_to_change(folders):
    sizes, batch = (folders / "errors").read_text().splitlines()
    assert "data 3 × shard 1" in sizes and "needs 3 processes" in sizes and "has 4" in sizes
    assert "train.batch_size is 6" in batch and "multiple of 4" in batch


def test_processes_that_disagree_are_refused_with_both_values(folders):
    recipe, missing, other, _ = (folders / "refusals").read_text().splitlines()
    assert "recipe: optim.clip is 1.0 for process 0 and 0.5 for process 1" in recipe
    assert "Process 1 of 2: There is no corpus or file" in missing and "none.txt" in missing
    assert "disagree about the data: fingerprint is" in other


def test_a_full_disk_ends_all_processes_with_one_sentence(folders):
    error = (folders / "refusals").read_text().splitlines()[-1]
    assert "is full, so step 4 was not saved" in error
    assert not list((folders / "gpt-full").glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("name", "sizes", "train", "words"),
    [
        ("gpt", {"tensor": 4}, {}, "parallel.tensor is 4, which doesn't divide model.n_head 2"),
        ("gpt", {"pipeline": 4}, {}, "parallel.pipeline is 4, which doesn't divide model.n_layer"),
        ("gpt", {"pipeline": 2, "data": 2, "micro_batches": 3}, {}, "3 micro-batches"),
        ("bert", {"tensor": 2}, {}, "for pretraining a GPT; write 1 for bert"),
        ("seq2seq", {"pipeline": 2}, {}, "for pretraining a GPT; write 1 for seq2seq"),
        ("gpt", {}, {"compile": "on"}, "without compiling"),
    ],
)
def test_divisions_that_are_not_possible_are_refused(name, sizes, train, words, recipes):
    recipe = divided(recipes[name], **sizes)
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, **train))
    parallel = object.__new__(Parallel)  # without processes
    parallel.sizes = recipe.parallel.sizes(4)
    parallel.mesh = object()
    parallel.size = parallel.sizes["data"] * parallel.sizes["shard"]
    with pytest.raises(UserError, match=words):
        parallel.check(recipe)
