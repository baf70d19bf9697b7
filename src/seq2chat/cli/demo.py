"""`seq2chat demo`: a GPT from nothing in minutes, on text that every Python carries."""

import time
from pathlib import Path

from rich.console import Console

from seq2chat.cli.train import continue_run, start_run


def demo() -> None:
    """Train a small GPT on the Python documentation, show what it learned, and leave it in runs/demo.

    Interrupted, it goes on where it stopped; finished, it shows the result again.
    """
    began = time.monotonic()
    folder = Path("runs/demo")
    console = Console(stderr=True, highlight=False)
    console.print("Training a GPT on the documentation of Python itself, for about two minutes.")
    if (folder / "config.toml").exists():
        continue_run(folder, {})
    else:
        start_run("demo", folder, {}, began)
    console.print(
        f"\nIts loss curve is {folder}/loss.png. Now activate the environment and try:\n"
        f"  source .venv/bin/activate\n"
        f'  seq2chat generate {folder} --prompt "The function "\n'
        f"  seq2chat train my.txt --budget 10m"
    )
