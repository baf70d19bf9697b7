"""Compiled steps are taken only where their gradients are right. The compiler itself is stood in
for by the blocks."""

import dataclasses
import threading

import pytest
import torch

from seq2chat.training.loop import train
from seq2chat.training.setup import start_job


class Wrong(torch.autograd.Function):
    """Passes values on, and gradients with some of them wrong."""

    @staticmethod
    def forward(ctx, x, wrong):
        ctx.wrong = wrong
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[..., :3] = ctx.wrong
        return gradient, None


@pytest.fixture
def compiler(monkeypatch):
    """Let blocks "compile" to themselves with one wrong value in their gradients for each attempt;
    None is right."""

    def install(*wrong):
        attempts = []

        def compile_block(block, dynamic):
            value, plain = wrong[len(attempts)], block._call_impl
            block._compiled_call_impl = (
                plain if value is None else lambda *a, **k: Wrong.apply(plain(*a, **k), value)
            )

        def compile_loss(function, dynamic):
            attempts.append(function)
            return function

        monkeypatch.setattr(torch.nn.Module, "compile", compile_block)
        monkeypatch.setattr(torch, "compile", compile_loss)

    with torch._inductor.config.patch({"cpp.simdlen": None}):
        yield install


def start(recipe, folder):
    recipe = dataclasses.replace(
        recipe, train=dataclasses.replace(recipe.train, compile="on", budget="2 steps")
    )
    lines = []
    job = start_job(recipe, folder, lines.append)
    return job, "\n".join(line for line in lines if "compile" in line)


@pytest.mark.parametrize("wrong", [float("nan"), 1.0])
def test_narrower_vectors_after_wrong_gradients(wrong, compiler, tiny_recipe, tmp_path):
    compiler(wrong, None)
    job, line = start(tiny_recipe, tmp_path / "run")
    assert job.recipe.train.compile == "on" and "256-bit vectors" in line
    assert torch._inductor.config.cpp.simdlen == 256


def test_training_is_plain_where_all_gradients_are_wrong(compiler, tiny_recipe, tmp_path):
    compiler(float("nan"), float("nan"))
    job, line = start(tiny_recipe, tmp_path / "run")
    assert (
        job.recipe.train.compile == "off"
        and "wrong gradients here, so training is not compiled" in line
    )
    assert torch._inductor.config.cpp.simdlen is None
    list(train(job, threading.Event()))
    assert all(parameter.isfinite().all() for parameter in job.model.parameters())


def test_gradient_check_leaves_the_weights(compiler, tiny_recipe, tmp_path):
    plain, _ = start_job(tiny_recipe, tmp_path / "plain", lambda line: None), compiler(None)
    job, line = start(tiny_recipe, tmp_path / "run")
    assert job.recipe.train.compile == "on" and "narrower" not in line
    for ours, expected in zip(job.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, expected) and ours.grad is None
