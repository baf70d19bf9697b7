"""The state of a run in a checkpoint: weights, optimizers, progress and random state, as tensors of
safetensors files.

A tensor is stored whole, whatever the number of processes that share it, and each process reads its
own part. So a run continues with any number of processes.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from seq2chat.models.folder import Model, load_model, model_tensors
from seq2chat.models.tensor_file import StoredTensor, stored
from seq2chat.training.parallel import fill
from seq2chat.training.pipeline import GPTStage


@dataclass
class Progress:
    """The complete state of data loader, schedule and clock.

    `start` is the share of a timed budget that was used before the first step. `data` is the
    fingerprint of the text.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    start: float = 0.0
    data: str = ""


def tensor_files(
    model: Model, optimizers: list[torch.optim.Optimizer], modules: Mapping[str, nn.Module]
) -> dict[str, list[StoredTensor]]:
    """Return the content of all files of tensors by their path in the checkpoint."""
    files = {"model.safetensors": model_tensors(model)}
    frozen = _frozen(modules)
    for module_name, module in modules.items():
        state = module.state_dict()
        files[f"trainer/{module_name}.safetensors"] = [
            stored(name, t) for name, t in state.items() if name not in frozen[module_name]
        ]
    tensors = _optimizer_tensors(_names(model, modules), optimizers)
    files["trainer/optimizer.safetensors"] = [stored(name, t) for name, t in tensors.items()]
    files["trainer/rng.safetensors"] = [stored(name, t) for name, t in _rng_states().items()]
    if isinstance(model, GPTStage):
        files = {name: model.union(tensors) for name, tensors in files.items()}
    return files


def resume_checkpoint(
    folder: Path,
    model: Model,
    optimizers: list[torch.optim.Optimizer],
    modules: Mapping[str, nn.Module] = {},
) -> Progress:
    """Load weights, optimizer state and random state of the checkpoint `folder`, and return its
    progress.

    Each process takes its part of every tensor, whatever the number of processes that wrote it.
    """
    frozen = _frozen(modules)
    for name, module in modules.items():
        weights = load_file(folder / "trainer" / f"{name}.safetensors")
        _load_weights(module, weights, frozen[name])
    if not modules:
        _load_weights(model, load_model(folder).state_dict(), {})
    names = _names(model, modules)
    with safe_open(folder / "trainer" / "optimizer.safetensors", "pt") as file:
        keys: dict[str, list[str]] = defaultdict(list)
        for stored_name in file.keys():  # noqa: SIM118  # not a dict
            name, _, key = stored_name.rpartition(":")
            keys[name].append(key)
        for optimizer, parameter in _parameters(optimizers):
            name = names[parameter]
            optimizer.state[parameter] = {
                key: _own_part(file.get_tensor(f"{name}:{key}"), parameter) for key in keys[name]
            }
    with safe_open(folder / "trainer" / "rng.safetensors", "pt") as file:
        torch.set_rng_state(file.get_tensor("cpu"))
        if "cuda" in list(file.keys()) and torch.cuda.is_available():
            torch.cuda.set_rng_state(file.get_tensor("cuda"))
        if "mps" in list(file.keys()) and torch.backends.mps.is_available():
            torch.mps.set_rng_state(file.get_tensor("mps"))
    return Progress(**json.loads((folder / "trainer" / "progress.json").read_text()))


@torch.no_grad()
def _load_weights(
    module: nn.Module, weights: Mapping[str, Tensor], frozen: Mapping[str, Tensor]
) -> None:
    """Copy the weights into `module`. Only frozen ones may be missing."""
    state = module.state_dict()
    assert state.keys() <= weights.keys() | frozen.keys()
    for name, tensor in state.items():
        if name in weights:
            fill(tensor, weights[name])


def _own_part(values: Tensor, parameter: nn.Parameter) -> Tensor:
    """Return this process's part of an optimizer state, divided like its parameter."""
    # AdamW's number of steps has no dimension, and every process has it.
    if values.ndim == 0:
        return values.to(parameter.device)
    part = torch.zeros_like(parameter, dtype=values.dtype)
    fill(part, values)
    return part


def _parameters(
    optimizers: list[torch.optim.Optimizer],
) -> Iterable[tuple[torch.optim.Optimizer, nn.Parameter]]:
    return ((o, p) for o in optimizers for group in o.param_groups for p in group["params"])


def _frozen(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """Return the frozen parameters of each module by name, as those below adapters, and where
    another module shares them.

    They are those of the starting model, whose fingerprint is checked when a run is resumed.
    """
    trained = [m for m in modules.values() if any(p.requires_grad for p in m.parameters())]
    frozen = {id(p) for m in trained for p in m.parameters() if not p.requires_grad}
    return {
        name: {key: p for key, p in module.named_parameters() if id(p) in frozen}
        for name, module in modules.items()
    }


def _names(model: Model, modules: Mapping[str, nn.Module]) -> dict[nn.Parameter, str]:
    """Return the name of each parameter, prefixed by its module if there are several."""
    named = [(f"{module}.", m) for module, m in modules.items()] or [("", model)]
    return {
        parameter: f"{prefix}{name}"
        for prefix, m in named
        for name, parameter in m.named_parameters()
    }


def _optimizer_tensors(
    names: dict[nn.Parameter, str], optimizers: list[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    return {
        f"{names[p]}:{key}": value
        for o, p in _parameters(optimizers)
        for key, value in o.state[p].items()
    }


def _rng_states() -> dict[str, Any]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states
