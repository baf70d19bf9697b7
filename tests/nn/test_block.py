import math

import pytest
import torch
import torch.nn.functional as F

from seq2chat.nn.block import (
    FeedForward,
    LayerNorm,
    Linear,
    RMSNorm,
    SwiGLU,
    gated,
    rms_norm,
)


def test_gelu_feed_forward_is_gpt2s_formula():
    torch.manual_seed(0)
    module, x = FeedForward(3, 5, "gelu_tanh").double(), torch.randn(2, 4, 3, dtype=torch.float64)
    hidden = x @ module.up_proj.weight.T + module.up_proj.bias
    gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    torch.testing.assert_close(module(x), gelu @ module.down_proj.weight.T + module.down_proj.bias)


def test_swiglu_is_shazeers_formula():
    torch.manual_seed(0)
    module, x = SwiGLU(3, 5).double(), torch.randn(2, 4, 3, dtype=torch.float64)
    gate, up = x @ module.gate_proj.weight.T, x @ module.up_proj.weight.T
    torch.testing.assert_close(
        module(x), (gate / (1 + torch.exp(-gate)) * up) @ module.down_proj.weight.T
    )


def test_rms_norm_equals_the_formula():
    """It keeps the number format of its input."""
    norm, x = RMSNorm(6, eps=0.01), torch.randn(2, 6)
    torch.nn.init.uniform_(norm.weight)
    expected = x / torch.sqrt((x**2).mean(-1, keepdim=True) + 0.01) * norm.weight
    torch.testing.assert_close(norm(x), expected)
    low = norm(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0.02, atol=0.02)


def gradients(function, *inputs):
    torch.manual_seed(1)
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*inputs)
    output.backward(torch.randn_like(output))
    return [output, *(x.grad for x in inputs)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm_equals_its_plain_twin(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64).to(dtype)
    weight = torch.rand(64, dtype=torch.promote_types(dtype, torch.float32))
    norm = RMSNorm(64, eps=0.01)

    def ours(x, weight):
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    plain = gradients(lambda x, weight: rms_norm(x, weight, 0.01)[0], x, weight)
    torch.testing.assert_close(gradients(ours, x, weight), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gated_has_the_bits_of_its_plain_twin(dtype):
    torch.manual_seed(0)
    gate, up = torch.randn(2, 3, 64).to(dtype), torch.randn(2, 3, 64).to(dtype)
    plain = gradients(lambda gate, up: F.silu(gate) * up, gate, up)
    assert all(map(torch.equal, gradients(gated, gate, up), plain))


def test_norm_and_gate_keep_their_inputs_alone_for_the_backward_pass():
    """Beside one number per row. Autograd keeps wide copies of the input of a norm."""
    kept = []

    def keep(tensor):
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    x = torch.randn(4, 64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        RMSNorm(64, eps=0.01)(x)
        gated(x, x)
    assert sum(kept) == 4 * 64 * 2 + 64 * 4 + 4 * 4 + 2 * 4 * 64 * 2


def test_linear_and_layer_norm_equal_torchs():
    """They keep the number format of their input."""
    torch.manual_seed(0)
    x = torch.randn(2, 6)
    for ours, theirs in [
        (Linear(6, 3), torch.nn.Linear(6, 3)),
        (LayerNorm(6), torch.nn.LayerNorm(6)),
    ]:
        for parameter in ours.parameters():
            torch.nn.init.normal_(parameter)
        theirs.load_state_dict(ours.state_dict())
        assert torch.equal(ours(x), theirs(x))
        low = ours(x.bfloat16())
        assert low.dtype == torch.bfloat16
        assert torch.equal(low, theirs.bfloat16()(x.bfloat16()))
        low.sum().backward()
        assert {parameter.grad.dtype for parameter in ours.parameters()} == {torch.float32}
