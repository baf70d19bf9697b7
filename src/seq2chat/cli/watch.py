"""`seq2chat watch`: the training of runs as a page, while they train."""

import os
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from seq2chat.config import check

NICENESS = 10  # training goes first
PARENT_SECONDS = 1.0  # between looks at the process that started this one


def watch(
    *runs: Annotated[
        Path, Parameter(help="run folders, or folders of runs [default: runs]", show_default=False)
    ],
    host: Annotated[str, Parameter(help="address to listen at")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="port to listen at; 0 takes a free one")] = 8001,
    api_key: Annotated[
        str,
        Parameter(
            help="key that clients must send [default: $SEQ2CHAT_API_KEY]", show_default=False
        ),
    ] = "",
    open_browser: Annotated[
        bool, Parameter(name="--open", help="open the page in a browser, if there is one")
    ] = False,
    parent: Annotated[int, Parameter(show=False)] = 0,
) -> None:
    """Show the training of runs as a page: losses, samples, probe sentences, and heads.

    It reads the run folders during training, and loads checkpoints only to measure them. It
    computes with one thread and a low priority.
    """
    check(0 <= port < 65536, f"--port is {port}; write a number from 0 to 65535.")
    from seq2chat.serving.middleware import check_key, is_loopback

    api_key = api_key or os.environ.get("SEQ2CHAT_API_KEY", "")
    check_key(api_key)
    check(
        api_key != "" or is_loopback(host),
        f"--host {host} lets other machines in; set a key for them with --api-key, or leave --host "
        "out.",
    )
    folders = runs or (Path("runs"),)
    for folder in folders:
        check(folder.exists(), f"There is no run {folder}; `seq2chat runs list` lists those here.")
    import torch

    from seq2chat.serving.run_store import watched_folders
    from seq2chat.serving.server import run_server

    watched = watched_folders(folders)
    check(
        bool(watched),
        f"There is no run in {', '.join(map(str, folders))}; make one with `seq2chat train`.",
    )
    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    if parent:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    console = Console(stderr=True, highlight=False)

    def announce(address: str) -> None:
        names = ", ".join(str(run.folder) for run in watched[:5])
        others = f" and {len(watched) - 5} more" if len(watched) > 5 else ""
        console.print(f"Watching {names}{others} at [bold]{address}/training[/].", soft_wrap=True)
        if not parent:
            console.print("Press Ctrl-C to stop.", style="dim")
        if open_browser and has_browser():
            webbrowser.open(f"{address}/training")

    run_server(list, host, port, api_key, announce, watched)


@contextmanager
def page_of(run: Path) -> Iterator[None]:
    """Serve the page of `run` on a free port by a process of its own, which does not slow training
    down and prints its address."""
    options = ["--port", "0", "--open", "--parent", str(os.getpid())]
    process = subprocess.Popen(
        [sys.executable, "-m", "seq2chat", "watch", str(run), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the training, which saves first
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def has_browser() -> bool:
    """Return True if a window can be opened here."""
    is_windowed = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if not is_windowed:
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def _end_with(parent: int) -> None:
    """End this process when the process `parent` has ended, however that happened."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(0)
