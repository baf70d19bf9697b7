"""The loss under a head: by the formula, and in chunks."""

import pytest
import torch

from seq2chat.training import nll
from seq2chat.training.nll import chunked_nll_sum, nll_sum

ROWS, VOCAB, WIDTH = 11, 7, 4


@pytest.fixture
def example(monkeypatch):
    """Hidden states, head and labels of 11 rows, which are cut into chunks of 3, the last one
    smaller."""
    monkeypatch.setattr(nll, "CHUNK_LOGITS", 1)
    monkeypatch.setattr(nll, "MIN_ROWS", 3)
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=rng)
    head = torch.randn(VOCAB, WIDTH, dtype=torch.float64, generator=rng)
    labels = torch.tensor([1, 2, -100, -100, 0, 6, -100, -100, -100, 5, 5])
    return hidden, head, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nll_sum_is_the_plain_formula(example, smoothing):
    hidden, head, labels = example
    log_p = (hidden @ head.T).log_softmax(-1)
    rows = (labels >= 0).nonzero()[:, 0]
    expected = -(
        (1 - smoothing) * log_p[rows, labels[rows]] + smoothing * log_p[rows].mean(-1)
    ).sum()
    torch.testing.assert_close(nll_sum(hidden, head, labels, smoothing), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
def test_chunks_have_loss_and_gradients_of_the_whole(example, smoothing, trained):
    hidden, head, labels = example
    inputs = [
        tensor.requires_grad_(is_trained)
        for tensor, is_trained in zip((hidden, head), trained, strict=True)
    ]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    whole = nll_sum(hidden, head, labels, smoothing)
    chunked = chunked_nll_sum(hidden, head, labels, smoothing)
    torch.testing.assert_close(chunked, whole, rtol=1e-13, atol=0)
    expected, got = (torch.autograd.grad(loss / 3, wanted) for loss in (whole, chunked))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)


def test_chunks_without_gradients_have_same_loss(example):
    hidden, head, labels = example
    torch.testing.assert_close(chunked_nll_sum(hidden, head, labels), nll_sum(hidden, head, labels))
    head.requires_grad_()
    with torch.no_grad():
        loss = chunked_nll_sum(hidden, head, labels)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, nll_sum(hidden, head, labels).detach())


def test_no_rows_and_rows_without_labels_cost_nothing(example):
    hidden, head, labels = example
    hidden.requires_grad_()
    assert chunked_nll_sum(hidden[:0], head, labels[:0]) == 0
    loss = chunked_nll_sum(hidden, head, torch.full_like(labels, -100))
    assert loss == 0 and not torch.autograd.grad(loss, hidden)[0].any()


def test_half_precision_gradients_are_close(example):
    """The head is float32 and the hidden states bfloat16, as in training; shapes are kept."""
    hidden, head, labels = example
    hidden = hidden.to(torch.bfloat16)[None].requires_grad_()
    head = head.float().requires_grad_()
    whole, chunked = (
        nll_sum(hidden, head, labels[None]),
        chunked_nll_sum(hidden, head, labels[None]),
    )
    assert chunked.dtype == torch.float32
    torch.testing.assert_close(chunked, whole)
    expected, got = (torch.autograd.grad(loss, (hidden, head)) for loss in (whole, chunked))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
