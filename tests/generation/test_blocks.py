"""Blocks found among the numbers that the `gguf` package dequantized."""

import gguf
import pytest
import torch
from generation.test_decode_step import SMALL, Slots, random_gpt

from seq2chat.generation.blocks import find_blocks
from seq2chat.serving.served_model import linear_maps

TYPES = ("Q4_0", "Q4_1", "Q8_0")


def quantized(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """The numbers of a matrix after llama.cpp's quantization."""
    number = gguf.GGMLQuantizationType[kind]
    packed = gguf.quants.quantize(weight.numpy(), number)
    return torch.from_numpy(gguf.quants.dequantize(packed, number).copy())


@pytest.mark.parametrize("kind", TYPES)
def test_blocks_are_the_very_numbers(kind):
    torch.manual_seed(0)
    weight = torch.randn(37, 96)
    weight[3, 32:64] = 0.0
    weight[20, :32] = 0.25
    weight = quantized(weight, kind)
    blocks = find_blocks(weight)
    assert blocks is not None
    assert (blocks.lowest is None) == (kind == "Q8_0")
    assert torch.equal(blocks.matrix(), weight)
    assert blocks.data.numel() == weight.numel() // (1 if kind == "Q8_0" else 2)


def test_other_numbers_are_in_no_blocks():
    torch.manual_seed(0)
    weight = torch.randn(40, 64)
    assert find_blocks(weight) is None
    assert find_blocks(quantized(weight, "Q4_0").bfloat16()) is None
    assert find_blocks(quantized(weight, "Q8_0")[:, :48].contiguous()) is None
    changed = quantized(weight, "Q4_1")
    changed[-1, -1] += 0.01  # after the rows that are probed
    assert find_blocks(changed) is None


@pytest.mark.parametrize("kind", TYPES)
def test_a_step_multiplies_by_blocks(kind):
    model = random_gpt(SMALL)
    with torch.no_grad():
        for linear in linear_maps(model):
            linear.weight.copy_(quantized(linear.weight, kind))
    tokens = torch.randint(0, 101, (3, 20))
    slots, alone, state = Slots(model), Slots(model), model.start()
    for i in range(20):
        with torch.no_grad():
            expected, state = model.step(tokens[:, i : i + 1], state)
        logits = slots.read(tokens[:, i], [0, 1, 2], i)
        torch.testing.assert_close(logits, expected[:, 0], rtol=0, atol=1e-4)
        assert torch.equal(alone.read(tokens[1:2, i], [0], i)[0], logits[1])
