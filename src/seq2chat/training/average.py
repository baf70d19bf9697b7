"""Averaging the weights of a run's last checkpoints, which evens out the noise of the last
steps."""

from pathlib import Path

import torch

from seq2chat.config import check
from seq2chat.training.checkpoint import load_checkpoint, save_with_tokenizer
from seq2chat.training.run_folder import open_run


@torch.no_grad()
def average_checkpoints(run: Path, last: int, out: Path) -> list[Path]:
    """Write the mean of the weights of the `last` newest checkpoints of `run`, and the tokenizer,
    as a model folder `out` (Vaswani et al. 2017, section 6.1). Returns the checkpoints, oldest
    first.

    Raises UserError when there are fewer, when they are of different shapes, or when `out` holds
    files already.
    """
    checkpoints = open_run(run).list_checkpoints()
    check(last > 0, f"--last is {last}; write a positive number of checkpoints.")
    check(
        len(checkpoints) >= last,
        f"{run} holds {len(checkpoints)} of the {last} checkpoints; write --last "
        f"{max(1, len(checkpoints))}, or train with --train.keep {last} and as many "
        "--train.checkpoints.",
    )
    check(
        not out.exists() or not any(out.iterdir()),
        f"{out} holds files already; choose another folder.",
    )
    chosen = checkpoints[-last:]
    model, tokenizer = load_checkpoint(chosen[-1])
    # In float64, so that the mean of equal weights is these weights.
    sums = {name: parameter.double() for name, parameter in model.named_parameters()}
    for folder in chosen[:-1]:
        other, _ = load_checkpoint(folder)
        check(
            other.config == model.config,
            f"{folder} and {chosen[-1]} are models of different shapes.",
        )
        for name, parameter in other.named_parameters():
            sums[name] += parameter.double()
    for name, parameter in model.named_parameters():
        parameter.copy_(sums[name] / last)
    save_with_tokenizer(model, tokenizer, out)
    return chosen
