"""The average of the weights of a run's last checkpoints, which reduces the noise of the last
steps."""

from pathlib import Path

import torch

from seq2chat.config import check
from seq2chat.training.checkpoint import load_checkpoint, save_with_tokenizer
from seq2chat.training.run_folder import open_run


@torch.no_grad()
def average_checkpoints(run: Path, last: int, out: Path) -> list[Path]:
    """Write the mean weights of the `last` newest checkpoints of `run` as the model folder `out`,
    with the tokenizer, and return the checkpoints, oldest first (Vaswani et al. 2017, section 6.1).

    Raises UserError if there are fewer checkpoints, if their shapes differ, or if `out` is not
    empty.
    """
    checkpoints = open_run(run).list_checkpoints()
    check(last > 0, f"The number of checkpoints is {last}; write a positive number.")
    check(
        len(checkpoints) >= last,
        f"{run} has {len(checkpoints)} checkpoints, not {last}; average at most "
        f"{max(1, len(checkpoints))}, or train with train.keep and train.checkpoints of at least "
        f"{last}.",
    )
    check(
        not out.exists() or not any(out.iterdir()),
        f"{out} is not empty; choose another folder.",
    )
    chosen = checkpoints[-last:]
    model, tokenizer = load_checkpoint(chosen[-1])
    # In float64, so that the mean of equal weights is exactly that weight.
    sums = {name: parameter.double() for name, parameter in model.named_parameters()}
    for folder in chosen[:-1]:
        other, _ = load_checkpoint(folder)
        check(
            other.config == model.config,
            f"{folder} and {chosen[-1]} hold models of different shapes.",
        )
        for name, parameter in other.named_parameters():
            sums[name] += parameter.double()
    for name, parameter in model.named_parameters():
        parameter.copy_(sums[name] / last)
    save_with_tokenizer(model, tokenizer, out)
    return chosen
