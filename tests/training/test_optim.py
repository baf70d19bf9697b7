"""Muon against torch's own and against its mathematics; every parameter in one group."""

import pytest
import torch
from torch import nn

from seq2chat.config import GPTConfig, OptimConfig
from seq2chat.models.gpt import GPT
from seq2chat.training import optim
from seq2chat.training.optim import Muon, make_optimizers, orthogonalize

SHAPES = [(24, 24), (24, 64), (64, 24)]


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalization_keeps_singular_vectors(shape):
    random = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(random, full_matrices=False)
    matrix = u * torch.linspace(0.05, 1, min(shape), dtype=torch.float64) @ vt
    result = orthogonalize(matrix, torch.float64)
    assert torch.linalg.svdvals(result).sub(1).abs().max() < 0.71
    inner = u.mT @ result @ vt.mT
    off_diagonal = inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 1e-10


def test_a_batch_is_orthogonalised_as_one_by_one():
    matrices = torch.randn(4, 16, 40, generator=torch.Generator().manual_seed(0))
    one_by_one = torch.cat([orthogonalize(m[None], torch.float32) for m in matrices])
    torch.testing.assert_close(orthogonalize(matrices, torch.float32), one_by_one)


def test_each_quintic_is_the_best_on_what_the_ones_before_leave():
    """It errs equally much at four points, with alternating signs (Chebyshev)."""
    low, high = 0.003, 1.0
    for a, b, c in optim.QUINTICS:
        x = torch.linspace(max(low, high / 10), high, 200_001, dtype=torch.float64)
        y = a * x + b * x**3 + c * x**5
        assert (y.max() - 1).item() == pytest.approx(
            1 - min(y.min().item(), a * low + b * low**3 + c * low**5), abs=2e-3
        )
        turns = (y[1:] - y[:-1]).sign().diff().count_nonzero()
        assert turns == 2
        low, high = a * low + b * low**3 + c * low**5, y.max().item()


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_moves_like_torch_muon(shape, monkeypatch):
    """With the five rounds that torch has."""
    monkeypatch.setattr(optim, "QUINTICS", ((3.4445, -4.7750, 2.0315),) * 5)
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    muon = Muon([ours], lr=0.02, momentum=0.9, weight_decay=0.1, dtype=torch.bfloat16)
    peer = torch.optim.Muon(
        [theirs], lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="original"
    )
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        muon.step()
        peer.step()
    # Both round to bfloat16 on the way, in another order.
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
    assert (ours - 1).abs().max() > 0.02


@pytest.mark.parametrize("layout", ["gpt2", "modern"])
@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_every_parameter_is_in_exactly_one_group(layout, matrices):
    model = GPT(GPTConfig(layout, vocab_size=300, context=16, n_layer=2, n_head=2, d_model=16))
    config = OptimConfig(
        matrices=matrices, matrix_lr=1.0, embedding_lr=2.0, head_lr=3.0, vector_lr=4.0
    )
    optimizers = make_optimizers(model, config, torch.float32)
    rates = {p: g["peak"] for o in optimizers for g in o.param_groups for p in g["params"]}
    listed = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    assert len(listed) == len(set(listed)) == len(list(model.parameters()))
    assert rates[model.embed_tokens.weight] == 2.0
    assert rates[model.layers[0].mlp.down_proj.weight] == 1.0
    assert rates[model.norm.weight] == 4.0
    if layout == "modern":
        assert rates[model.lm_head.weight] == 3.0
    decaying = {
        p for o in optimizers for g in o.param_groups if g["weight_decay"] for p in g["params"]
    }
    assert decaying == {p for p in listed if rates[p] == 1.0}
