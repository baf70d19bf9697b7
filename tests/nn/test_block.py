import math

import torch

from seq2chat.nn.block import FeedForward, LayerNorm, Linear, RMSNorm, SwiGLU


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
