"""`seq2chat plot`: loss curves of one or more runs, as a picture."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from seq2chat.config import check


def plot(
    *runs: Annotated[Path, Parameter(help="run folders")],
    out: Annotated[
        Path | None,
        Parameter(
            help=".png, .svg or .pdf file [default: RUN/loss.png, for several runs compared.png]"
        ),
    ] = None,
    x: Annotated[
        Literal["step", "tokens", "elapsed_seconds"], Parameter(help="quantity on the x axis")
    ] = "tokens",
) -> None:
    """Plot the loss of a run, or compare the validation losses of several in bits per byte."""
    from seq2chat.training.run_folder import open_run, plot_runs

    check(len(runs) > 0, "Name the runs to plot: `seq2chat plot runs/NAME [runs/OTHER ...]`.")
    file = out or (runs[0] / "loss.png" if len(runs) == 1 else Path("compared.png"))
    plot_runs([open_run(run) for run in runs], file, x)
    print(file)
