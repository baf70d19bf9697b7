"""`seq2chat average`: one model from the last checkpoints of a run."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def average(
    run: Annotated[Path, Parameter(help="run folder")],
    *,
    out: Annotated[Path, Parameter(help="model folder to write")],
    last: Annotated[int, Parameter(help="number of newest checkpoints to average")] = 2,
) -> None:
    """Average the weights of the last checkpoints of a run.

    The mean is often a little better than the last checkpoint. A run keeps its newest `train.keep`
    checkpoints, so train with `--train.checkpoints 20 --train.keep 5`, for example.
    """
    from seq2chat.training.average import average_checkpoints

    checkpoints = average_checkpoints(run, last, out)
    print(f"{out}: the mean of {', '.join(folder.name for folder in checkpoints)}")
