"""`seq2chat` as users type it: a process of its own, forked from one that has torch loaded, which
takes seconds."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

LOADED = [
    "torch._dynamo",
    "seq2chat.training.setup",
    "seq2chat.cli.train",
    "seq2chat.cli.translate",
    "seq2chat.cli.serve",
    "matplotlib.pyplot",
]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(LOADED)


def seq2chat(
    *arguments: object, stdin: str | bytes = "", cwd: Path | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end and return what it printed and its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
        files[0].write_bytes(stdin if isinstance(stdin, bytes) else stdin.encode())
        words = list(map(str, arguments))
        process = forked.Process(
            target=_run, args=(words, files, cwd or Path.cwd(), os.environ | ENVIRONMENT)
        )
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(
                words, timeout, files[1].read_bytes(), files[2].read_bytes()
            )
        return subprocess.CompletedProcess(
            words, process.exitcode, files[1].read_text(), files[2].read_text()
        )


def _run(words: list[str], files: list[Path], cwd: Path, environment: dict[str, str]) -> None:
    for descriptor, file in enumerate(files):
        flags = os.O_WRONLY | os.O_CREAT if descriptor else os.O_RDONLY
        os.dup2(os.open(file, flags), descriptor)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(0),
        os.fdopen(1, "w"),
        os.fdopen(2, "w", buffering=1),
    )
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["seq2chat", *words]
    from seq2chat.cli import main

    main()
    sys.stdout.flush()


def succeed(*arguments: object, **options) -> str:
    done = seq2chat(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fail(*arguments: object, **options) -> str:
    """Return the one message of a mistake, on one line."""
    done = seq2chat(*arguments, **options)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())
