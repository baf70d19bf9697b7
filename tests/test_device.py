"""The number format follows the measurement, unless it is asked for."""

import pytest
import torch

from seq2chat import device
from seq2chat.config import UserError
from seq2chat.training.devices import find_device

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("bf16", "chosen"), [(9e11, torch.bfloat16), (1.1e11, torch.float32), (1e9, torch.float32)]
)
def test_bfloat16_is_chosen_only_where_faster(bf16, chosen, monkeypatch):
    monkeypatch.setattr(
        device, "matmul_flops", lambda _, dtype: bf16 if dtype == torch.bfloat16 else 1e11
    )
    precision = device.pick_precision("auto", CPU)
    assert precision.dtype == chosen
    assert precision.peak_flops == max(bf16 if chosen == torch.bfloat16 else 1e11, 0)
    assert device.pick_precision("bf16", CPU).dtype == torch.bfloat16
    assert device.pick_precision("fp32", CPU).dtype == torch.float32


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("gpu", "There is no device 'gpu'; write auto, cpu, cuda, cuda:1 or mps"),
        ("cpu:3", "There is no device"),
        ("cuda:one", "There is no device"),
        ("cuda:99", "The device cuda:99 isn't there"),
    ],
)
def test_a_device_that_is_not_there_is_refused_by_name(choice, words):
    with pytest.raises(UserError, match=words):
        find_device(choice)


def test_idle_gpus_are_named_with_the_command_that_uses_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert "1 of 8 GPUs" in device.unused_accelerators(CPU, 1, "train a.txt")
    assert "launch --nproc 8 train a.txt" in device.unused_accelerators(CPU, 1, "train a.txt")
    assert device.unused_accelerators(CPU, 8, "train a.txt") == ""


def test_the_peak_is_that_of_a_real_product():
    assert 1e8 < device.matmul_flops(CPU, torch.float32) < 1e14


def test_seeding_repeats_the_draws():
    device.seed_everything(7)
    first = torch.rand(3)
    device.seed_everything(7)
    assert torch.equal(torch.rand(3), first)
