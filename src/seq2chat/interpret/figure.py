"""Writing a figure to a file, so that the same numbers make the same bytes."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from seq2chat.config import check

# What tells the time of writing, by the ending of the file.
METADATA = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def check_ending(file: Path) -> None:
    """Raise UserError unless `save_figure` can draw a file of this name."""
    check(file.suffix in METADATA, f"Can't draw {file}; end its name in .png, .svg or .pdf.")


def save_figure(figure: Figure, file: Path, dpi: int) -> None:
    """Write the figure as .png (with `dpi` pixels an inch), .svg or .pdf; folders that are missing
    are made.

    Raises UserError for another ending.
    """
    check_ending(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Letters stay letters in an SVG, and its names are drawn from the salt instead of by chance.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "seq2chat"}):
        figure.savefig(file, dpi=dpi, metadata=METADATA[file.suffix])
