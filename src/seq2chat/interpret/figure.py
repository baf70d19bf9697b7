"""Write figures to files reproducibly: the same numbers make the same bytes."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from seq2chat.config import check

# Metadata without the time of writing, by the suffix of the file.
METADATA = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def check_ending(file: Path) -> None:
    """Raise UserError unless `save_figure` can draw a file of this name."""
    check(file.suffix in METADATA, f"Can't draw {file}; end its name in .png, .svg or .pdf.")


def save_figure(figure: Figure, file: Path, dpi: int) -> None:
    """Write the figure as .png (with `dpi` pixels per inch), .svg or .pdf, and create missing
    folders.

    Raises UserError for another suffix.
    """
    check_ending(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Text in an SVG stays text, and its ids are derived from the salt instead of random.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "seq2chat"}):
        figure.savefig(file, dpi=dpi, metadata=METADATA[file.suffix])
