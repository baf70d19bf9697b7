"""LoRA on a GPT: the matrices of the blocks are frozen, and a low-rank update of each is trained
(Hu et al. 2021, section 4.1).

Adapters are exchanged as folders of `peft`, the library of the field.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from seq2chat.config import UserError, check
from seq2chat.models.gpt import GPT, LAYOUTS
from seq2chat.nn.lora import LoRALinear, Shifted

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model.model."


def add_lora(model: GPT, rank: int, alpha: float, tokens: Sequence[int] = ()) -> None:
    """Freeze `model`, and add trainable adapters of this rank to the matrices of its blocks.

    The embeddings and head rows of `tokens` are trained too. New control tokens start with equal
    embeddings, and adapters in the blocks alone could never learn to distinguish the end of an
    answer from the start of a turn.
    """
    model.requires_grad_(False)
    if tokens:
        for module in (model.embed_tokens, model.lm_head):
            if module is not None:  # a tied head is the embedding
                parametrize.register_parametrization(
                    module, "weight", Shifted(module.weight, tokens)
                )
    for module in list(model.layers.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, LoRALinear(child, rank, alpha))


def frozen_copy(model: GPT) -> GPT:
    """Return a copy of `model` that shares its frozen parameters, in evaluation mode and without
    gradients.

    With adapters, a reference policy costs only a copy of these.
    """
    shared: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    adapted = [module for module in model.modules() if isinstance(module, LoRALinear)]
    shared |= {id(module.rounded): module.rounded for module in adapted}
    return copy.deepcopy(model, shared).eval().requires_grad_(False)


@torch.no_grad()
def merged(model: GPT) -> GPT:
    """Return `model` with its adapters added to its matrices: an ordinary GPT with the same logits.

    It shares the other tensors with `model`.
    """
    state = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if ".parametrizations." not in key and ".lora_" not in key
    }
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            state[f"{name}.weight"] = module.weight
        elif isinstance(module, LoRALinear):
            state[f"{name}.weight"] = module.merged_weight()
    with torch.device("meta"):
        plain = GPT(model.config)
    plain.load_state_dict(state, assign=True)
    plain.compute_dtype = model.compute_dtype
    plain.gradient_checkpointing = model.gradient_checkpointing
    return plain.eval()


def write_adapter(
    adapters: Mapping[str, Tensor], folder: Path, base: str, rank: int, alpha: float
) -> None:
    """Write adapters as a folder that `peft` opens on top of the model folder `base`.

    `adapters` has the parameters of `add_lora` by name. Raises UserError if embeddings were trained
    too, which belong to no adapter.
    """
    tensors = {name: t for name, t in adapters.items() if ".lora_a" in name or ".lora_b" in name}
    check(
        not any(".shift" in name for name in adapters),
        "The embeddings of new control tokens were trained with the adapters, so the adapters alone"
        " are not the model; export it with --safetensors.",
    )
    renamed = {}
    for name, tensor in tensors.items():
        module, _, letter = name.rpartition(".lora_")
        renamed[f"{_PREFIX}{module}.lora_{letter.upper()}.weight"] = tensor.contiguous()
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted({name.split(".")[-2] for name in tensors}),
        "bias": "none",
        "lora_dropout": 0.0,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(renamed, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / ADAPTER_CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def adapter_base(folder: Path) -> str:
    """Return the name or the path of the model that the adapters in `folder` belong to.

    Raises UserError for a folder whose configuration is damaged, and for features of `peft` that
    this package lacks.
    """
    file = folder / ADAPTER_CONFIG
    try:
        fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        base = fields["base_model_name_or_path"]
        kind = fields["peft_type"]
        is_sized = fields["r"] > 0 and fields["lora_alpha"] > 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged: {error}.") from None
    check(is_sized, f"{file} is damaged: r and lora_alpha must be positive.")
    check(kind == "LORA", f"{file} has adapters of the type {kind!r}; only 'LORA' is supported.")
    for name, supported in _SUPPORTED.items():
        value = fields.get(name) or supported[0]
        check(
            value in supported,
            f"{file}: {name} {value!r} is not supported; only {supported[0]!r} is.",
        )
    return str(base)


# The values of peft's options that mean nothing else.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False,),
    "bias": ("none",),
    "modules_to_save": ([],),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "alora_invocation_tokens": ([],),
    "init_lora_weights": (True, "gaussian", "default"),  # others change the base, too
}


@torch.no_grad()
def merge_adapter(model: GPT, folder: Path) -> None:
    """Add the adapters in a folder of `peft` to the matrices of `model`.

    Raises UserError for a damaged folder, and if the adapters belong to another model.
    """
    fields = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    rank = fields["r"]
    scale = fields["lora_alpha"] / (rank**0.5 if fields.get("use_rslora") else rank)
    file = folder / _WEIGHTS
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is damaged: {error}.") from None
    other = f"{file} belongs to another model than {adapter_base(folder)}: %s."
    parameters = dict(model.named_parameters())
    unknown = [n for n in tensors if not n.endswith((".lora_A.weight", ".lora_B.weight"))]
    check(not unknown, f"{file}: tensor {unknown[:1]} is not part of an adapter of a linear map.")
    names = {name.split(".lora_")[0] for name in tensors}
    for name in sorted(names):
        weight = parameters.get(f"{name.removeprefix(_PREFIX)}.weight")
        is_block = name.startswith(f"{_PREFIX}layers.")
        check(is_block, f"{file}: only adapters of the blocks are supported, and {name} is not.")
        if weight is None or not LAYOUTS[model.config.layout].rotary:
            raise UserError(other % f"it has no {name.removeprefix(_PREFIX)}")
        try:
            a = tensors[f"{name}.lora_A.weight"]
            b = tensors[f"{name}.lora_B.weight"]
        except KeyError as error:
            raise UserError(f"{file} is damaged: it lacks {error}.") from None
        if (b.shape[0], a.shape[1]) != tuple(weight.shape) or a.shape[0] != b.shape[1]:
            shapes = f"{tuple(b.shape)} times {tuple(a.shape)}, not {tuple(weight.shape)}"
            raise UserError(other % f"the update of {name.removeprefix(_PREFIX)} is {shapes}")
        weight += scale * (b.to(weight.dtype) @ a.to(weight.dtype))
