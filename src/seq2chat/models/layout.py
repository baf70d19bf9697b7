"""Reading and writing `model.safetensors` with the tensor names of a layout."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from seq2chat.config import UserError, check
from seq2chat.models.tensor_file import StoredTensor, whole_tensor, write_tensors


@dataclass(frozen=True)
class Layout:
    """The format of a family's model folder.

    `fields(config)` returns the content of config.json, except dtype and token ids. `names(model)`
    maps each stored tensor to the parameters of this package that it contains, stacked by rows.
    `canonical(config, stored)` returns the name in `names` of a tensor in a file, or None for a
    tensor to skip. `is_transposed(config, name)` returns True if it is stored transposed.
    """

    fields: Callable[[Any], dict[str, Any]]
    names: Callable[[Any], dict[str, list[str]]]
    canonical: Callable[[Any, str], str | None]
    is_transposed: Callable[[Any, str], bool] = lambda config, name: False


def write_weights(model: nn.Module, layout: Layout, file: Path, dtype: torch.dtype) -> None:
    """Write the parameters of `model` to `file` as `dtype`. Tied parameters are written once."""
    write_tensors(stored_tensors(model, layout, dtype), file)


def stored_tensors(model: nn.Module, layout: Layout, dtype: torch.dtype) -> list[StoredTensor]:
    """Return the parameters of `model` as they are stored, by the names of its layout."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensors: list[StoredTensor] = []
    for name, parts in layout.names(model).items():
        rows = [parameters[part] for part in parts]
        is_transposed = layout.is_transposed(model.config, name)
        shape = [sum(part.shape[0] for part in rows), *rows[0].shape[1:]]
        shape = shape[::-1] if is_transposed else shape
        tensors.append(StoredTensor(name, shape, dtype, partial(_stack, rows, is_transposed)))
    return tensors


def _stack(parts: list[Tensor], is_transposed: bool) -> Tensor:
    stacked = torch.cat([whole_tensor(part) for part in parts])
    return stacked.T if is_transposed else stacked


def read_weights(model: nn.Module, layout: Layout, folder: Path, dtype: torch.dtype) -> None:
    """Load the weights in `folder` as `dtype` into `model`, which may be on the meta device.

    Reads one `model.safetensors` or the shards of `model.safetensors.index.json`. Raises UserError
    for a damaged file, or a tensor that is missing, unknown or of the wrong shape.
    """
    names = layout.names(model)
    kind = type(model).__name__
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    state: dict[str, Tensor] = {}
    for file, stored, tensor in _stored_tensors(folder):
        name = layout.canonical(model.config, stored)
        if name is None:
            continue
        check(
            name in names, f"{file}: tensor {stored} is not part of a {kind} of this config.json."
        )
        is_transposed = layout.is_transposed(model.config, name)
        tensor = tensor.T if is_transposed and tensor.ndim == 2 else tensor
        rows = [shapes[part][0] for part in names[name]]
        expected = torch.Size([sum(rows), *shapes[names[name][0]][1:]])
        check(
            tensor.shape == expected,
            f"{file}: tensor {stored} has the wrong shape for config.json, which makes it "
            f"{tuple(expected)} where the file has {tuple(tensor.shape)}"
            + (" (transposed)." if is_transposed else "."),
        )
        for part, values in zip(names[name], tensor.split(rows), strict=True):
            state[part] = values.to(dtype, copy=True).contiguous()
    missing = [name for name, parts in names.items() if parts[0] not in state]
    check(
        not missing,
        f"{folder}: {len(missing)} tensors of the model are missing, the first is {missing[:1]}.",
    )
    model.load_state_dict(state, assign=True)


def refuse_unless(fields: dict[str, Any], **supported: Any) -> None:
    """Raise UserError that names the first field with an unsupported value."""
    for key, supported_value in supported.items():
        value = fields.get(key, supported_value)
        check(
            value == supported_value,
            f"{key} {value!r} is not supported; only {supported_value!r} is.",
        )


def _stored_tensors(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """Yield (file, name, tensor) for all tensors in the folder's weight files."""
    single = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    check(
        single.is_file() or index.is_file(),
        f"{folder} has no model.safetensors; other weight files are not read.",
    )
    for file in [single] if single.is_file() else _shards(index):
        check(file.is_file(), f"{file} is named by {index.name} but does not exist.")
        try:
            with safe_open(file, framework="pt") as tensors:
                names = list(tensors.keys())
            for name in names:
                # Opened for each tensor: pages of an open file stay in memory next to the copies.
                with safe_open(file, framework="pt") as tensors:
                    tensor = tensors.get_tensor(name)
                yield file, name, tensor
                del tensor
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged or not a safetensors file: {error}.") from error


def _shards(index: Path) -> list[Path]:
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        return [index.parent / name for name in sorted(set(weight_map.values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} is damaged: it has no weight_map of tensor names to files."
        ) from error
