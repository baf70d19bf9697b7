"""Gradients of a saved checkpoint, layer by layer, from the state of its optimizers.

Training records the norm of the whole gradient only. The optimizers keep a moving average of the
gradients, and a checkpoint contains it, so the norms per layer cost training nothing.
"""

from pathlib import Path

from safetensors import safe_open

from seq2chat.config import check

AVERAGES = ("exp_avg", "momentum")  # of AdamW and of Muon


def layer_gradients(checkpoint: Path) -> dict[str, float]:
    """Return the norm of the averaged gradient of each layer, in the order of the model.

    The average is AdamW's first moment or Muon's momentum, of gradients after clipping. Parameters
    outside of layers are grouped by their module, for example `embed_tokens`. Raises UserError if
    the checkpoint has no optimizer state.
    """
    file = checkpoint / "trainer" / "optimizer.safetensors"
    check(file.exists(), f"{checkpoint.name} has no optimizer state, so there are no gradients.")
    squares: dict[str, float] = {}
    with safe_open(file, "pt") as tensors:
        for key in sorted(tensors.keys(), key=_order):
            name, _, kind = key.rpartition(":")
            if kind in AVERAGES:
                layer = layer_name(name)
                average = tensors.get_tensor(key).float()
                squares[layer] = squares.get(layer, 0.0) + average.square().sum().item()
    return {layer: square**0.5 for layer, square in squares.items()}


def layer_name(parameter: str) -> str:
    """Return the layer of a parameter.

    >>> layer_name("layers.2.mlp.up_proj.weight"), layer_name("embed_tokens.weight")
    ('layers.2', 'embed_tokens')
    """
    parts = parameter.split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return ".".join(parts[:-1]) or parameter


def _order(key: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts numbers by value."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in key.split(".")]
