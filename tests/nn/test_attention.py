import math

import pytest
import torch

from seq2chat.nn import trained_attention
from seq2chat.nn.attention import DotProductHeads, scaled_dot_product, scaled_dot_product_plain
from seq2chat.nn.trained_attention import attend_in_training


def qkv(n_query=7, n_key=7, n_head=4, n_kv_head=4, batch=2, d_head=8):
    torch.manual_seed(0)
    q = torch.randn(batch, n_head, n_query, d_head, dtype=torch.float64)
    k = torch.randn(batch, n_kv_head, n_key, d_head, dtype=torch.float64)
    return q, k, torch.randn_like(k)


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
@pytest.mark.parametrize("kind", ["full", "causal", "masked"])
def test_fused_attention_equals_its_plain_twin(kind, scale, n_kv_head):
    q, k, v = qkv(n_kv_head=n_kv_head)
    mask = (
        (torch.rand(2, 1, 7, 7) < 0.5) | torch.eye(7, dtype=torch.bool)
        if kind == "masked"
        else None
    )
    options = {"mask": mask, "is_causal": kind == "causal", "scale": scale}
    context, _ = scaled_dot_product_plain(q, k, v, **options)
    torch.testing.assert_close(scaled_dot_product(q, k, v, **options), context, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_kv_head", [4, 2])
@pytest.mark.parametrize("kind", ["full", "causal", "masked"])
def test_all_training_paths_have_the_gradients_of_their_plain_twin(kind, n_kv_head, monkeypatch):
    # With keys that no query of a block sees, and a block that sees none.
    mask = torch.rand(2, 1, 7, 7) < 0.5
    mask[:, :, :, 5:] = False
    mask[:, :, :3] = False
    mask = mask if kind == "masked" else None

    def gradients(attend):
        q, k, v = (x.requires_grad_() for x in qkv(n_kv_head=n_kv_head))
        context = attend(q, k, v, mask, is_causal=kind == "causal", scale=0.3)
        context.square().sum().backward()
        return context.detach(), q.grad, k.grad, v.grad

    results = [gradients(scaled_dot_product), gradients(attend_in_training)]
    monkeypatch.setattr(trained_attention, "MAX_KEPT_KEYS", 0)
    for block in (2, 3, 7):
        monkeypatch.setattr(trained_attention, "BLOCK", block)
        results.append(gradients(attend_in_training))
    plain = gradients(lambda *args, **options: scaled_dot_product_plain(*args, **options)[0])
    for result in results:
        torch.testing.assert_close(result, plain, rtol=0, atol=1e-12)


def test_long_attention_in_bfloat16_keeps_no_weights():
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    q, k, v = (x.bfloat16().requires_grad_() for x in qkv(n_query=300, n_key=300))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scaled_dot_product(q, k, v, is_causal=True)
    assert sum(kept) == q.numel() + k.numel() + v.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_paths_are_zero_where_nothing_may_be_attended(dtype):
    q, k, v = (x.to(dtype).requires_grad_() for x in qkv())
    mask = torch.rand(2, 1, 7, 7) < 0.5
    mask[0, 0, 3] = False
    context = scaled_dot_product(q, k, v, mask)
    expected, _ = scaled_dot_product_plain(q, k, v, mask)
    assert not context[0, :, 3].any()
    torch.testing.assert_close(context, expected, rtol=0, atol=2e-2)
    context.float().sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.parametrize("attend", [scaled_dot_product, scaled_dot_product_plain])
def test_mask_with_is_causal_is_refused(attend):
    with pytest.raises(ValueError, match="not both"):
        attend(*qkv(), torch.ones(1, 1, 7, 7, dtype=torch.bool), is_causal=True)


def test_plain_attention_equals_the_formula():
    q, k, v = qkv(n_head=4, n_kv_head=2)
    context, weights = scaled_dot_product_plain(q, k, v, is_causal=True)
    for b, h, i in [(0, 0, 0), (0, 1, 3), (1, 2, 6), (1, 3, 5)]:
        exponentials = [math.exp(q[b, h, i] @ k[b, h // 2, j] / math.sqrt(8)) for j in range(i + 1)]
        expected = [x / sum(exponentials) for x in exponentials] + [0.0] * (6 - i)
        assert weights[b, h, i].tolist() == pytest.approx(expected, abs=1e-12)
        assert context[b, h, i].tolist() == pytest.approx(
            (weights[b, h, i] @ v[b, h // 2]).tolist(), abs=1e-12
        )


def test_equal_keys_give_the_mean_of_the_values():
    q, k, v = qkv()
    context = scaled_dot_product(q, torch.ones_like(k), v)
    torch.testing.assert_close(context, v.mean(dim=2, keepdim=True).expand_as(v))


def test_heads_are_causal():
    """A single query sees every key."""
    q, k, v = qkv()
    heads = DotProductHeads(scale=0.5)
    torch.testing.assert_close(
        heads(q, k, v), scaled_dot_product_plain(q, k, v, is_causal=True, scale=0.5)[0]
    )
    last = heads(q[:, :, -1:], k, v)
    torch.testing.assert_close(last, heads(q, k, v)[:, :, -1:])
