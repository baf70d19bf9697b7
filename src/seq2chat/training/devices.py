"""The device of a run, by the name in its recipe."""

import os
import socket

import torch

from seq2chat.config import Recipe, check
from seq2chat.device import pick_device
from seq2chat.training.processes import world_size


def find_device(name: str) -> torch.device:
    """Return the device `cpu`, `cuda`, `cuda:1` or `mps`. With "auto" it is the CUDA GPU if there
    is one, else the CPU.

    Raises UserError for a device that this machine, or this build of torch, doesn't have.
    """
    if name == "auto":
        return pick_device()
    kind, _, number = name.partition(":")
    check(
        kind in ("cpu", "cuda", "mps") and (not number or (kind == "cuda" and number.isdecimal())),
        f"There is no device {name!r}; write auto, cpu, cuda, cuda:1 or mps.",
    )
    n_gpus = torch.cuda.device_count()
    check(
        kind != "cuda" or int(number or 0) < n_gpus,
        f"The device {name} isn't there, as torch {torch.__version__} sees {n_gpus} CUDA GPUs; "
        "write auto.",
    )
    check(
        kind != "mps" or torch.backends.mps.is_available(),
        "The device mps is a Mac's GPU, and torch sees none here; write auto.",
    )
    return torch.device(name)


def device_of(recipe: Recipe) -> torch.device:
    """Return the device of this process. Raises UserError if it has none of the requested kind."""
    device = find_device(recipe.train.device)
    n_gpus = torch.cuda.device_count()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    check(
        device.type != "cuda" or world_size() == 1 or local_rank < n_gpus,
        f"There are {local_rank + 1} or more processes on {socket.gethostname()}, and {n_gpus} "
        f"GPUs; start {n_gpus} processes per server, or add --device cpu.",
    )
    check(
        device.index is None or world_size() == 1,
        f"train.device is {device}, but each of several processes has a GPU of its own; write "
        "cuda or auto.",
    )
    check(
        device.type != "mps" or world_size() == 1,
        "train.device is mps, which one process uses; write cpu for several.",
    )
    if device.index is not None:
        torch.cuda.set_device(device)  # whose random generator a checkpoint stores
    return device
