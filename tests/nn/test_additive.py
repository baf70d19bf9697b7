import math

import pytest
import torch

from seq2chat.nn.attention import AdditiveAttention, FixedContext


@pytest.fixture
def attention():
    torch.manual_seed(0)
    attention = AdditiveAttention(d_query=5, d_memory=6, d_attention=4).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    return attention


def source(batch=3, seq=7):
    torch.manual_seed(1)
    annotations = torch.randn(batch, seq, 6, dtype=torch.float64)
    mask = torch.arange(seq) < torch.tensor([seq, 4, 1])[:batch, None]
    return annotations, mask, torch.randn(batch, 6, dtype=torch.float64)


def query(batch=3):
    return torch.randn(batch, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_additive_attention_equals_the_formula(attention):
    annotations, mask, summary = source()
    context, weights = attention(query(), attention.prepare(annotations, mask, summary))
    w, u, v = (m.weight.detach() for m in (attention.q_proj, attention.k_proj, attention.score))
    for b, n_words in enumerate([7, 4, 1]):
        h = annotations[b, :n_words]
        energies = [(v[0] @ torch.tanh(w @ query()[b] + u @ h[j])).item() for j in range(n_words)]
        exponentials = [math.exp(e) for e in energies]
        alpha = [x / sum(exponentials) for x in exponentials]
        expected = sum(a * h_j for a, h_j in zip(alpha, h, strict=True))
        assert weights[b].tolist() == pytest.approx(alpha + [0.0] * (7 - n_words), abs=1e-12)
        torch.testing.assert_close(context[b], expected, rtol=0, atol=1e-12)


def test_masked_words_have_no_weight(attention):
    annotations, mask, summary = source()
    changed = annotations.masked_fill(~mask[:, :, None], 9.0)
    before = attention(query(), attention.prepare(annotations, mask, summary))
    torch.testing.assert_close(
        attention(query(), attention.prepare(changed, mask, summary)), before, rtol=0, atol=0
    )
    assert (before[1] == 0).equal(~mask)


def test_row_without_words_has_a_zero_context(attention):
    """Its gradients are finite."""
    annotations, mask, summary = source()
    mask[1] = False
    annotations.requires_grad_()
    context, weights = attention(query(), attention.prepare(annotations, mask, summary))
    assert (context[1] == 0).all() and (weights[1] == 0).all()
    assert weights[0].sum().item() == pytest.approx(1)
    context.sum().backward()
    assert (annotations.grad[1] == 0).all() and (annotations.grad[0] != 0).any()
    assert all(p.grad.isfinite().all() for p in attention.parameters())


def test_energies_that_are_all_equal_give_the_mean(attention):
    annotations, mask, summary = source()
    torch.nn.init.zeros_(attention.score.weight)
    context, _ = attention(query(), attention.prepare(annotations, mask, summary))
    torch.testing.assert_close(context[1], annotations[1, :4].mean(0))


def test_gradients_are_those_of_finite_differences(attention):
    annotations, mask, summary = source()

    def contexts(query, annotations):
        return attention(query, attention.prepare(annotations, mask, summary))

    torch.autograd.gradcheck(contexts, (query().requires_grad_(), annotations.requires_grad_()))


def test_fixed_context_ignores_the_query():
    annotations, mask, summary = source()
    fixed = FixedContext()
    memory = fixed.prepare(annotations, mask, summary)
    for q in (query(), -query()):
        context, weights = fixed(q, memory)
        assert context.equal(summary) and weights is None


def test_attention_to_one_word_is_a_fixed_context(attention):
    annotations, _, _ = source()
    one = torch.arange(7) == torch.tensor([[6], [3], [0]])
    context, _ = attention(query(), attention.prepare(annotations, one, annotations[one]))
    fixed = FixedContext()
    torch.testing.assert_close(
        context, fixed(query(), fixed.prepare(annotations, one, annotations[one]))[0]
    )
