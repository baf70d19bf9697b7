"""Write the API reference, generated from the docstrings: `python docs/reference.py site`."""

import sys
from pathlib import Path

import pdoc

import seq2chat

PACKAGES = (
    "config",
    "text",
    "nn",
    "models",
    "generation",
    "training",
    "inference",
    "alignment",
    "interpret",
    "scale",
    "course",
    "serving",
)


def main(folder: Path) -> None:
    """Write one page for the public names, and one per module."""
    for name in seq2chat.__all__:
        # pdoc finds only names that have been imported.
        getattr(seq2chat, name)
    pdoc.render.configure(math=False, search=True, show_source=True)
    pdoc.pdoc("seq2chat", *(f"seq2chat.{name}" for name in PACKAGES), output_directory=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "site"))
