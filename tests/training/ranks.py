"""Real processes that train together: several runs, one after the other, in one group of processes.

Starting processes takes seconds, so a group trains all runs that need its size.
"""

import json
import os
import resource
import signal
import socket
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command import forked

from seq2chat.config import Recipe, UserError


@dataclass
class Run:
    """A run to train by all processes, in the new folder, or to resume there."""

    folder: Path
    recipe: Recipe | None = None  # None resumes
    stop_after: int = 0  # 0 trains to the end
    changes: dict[str, Any] = field(default_factory=dict)  # when it is resumed
    second: Recipe | None = None  # of process 1, if it has another one
    disk: int = 0  # bytes that a file of process 0 may have; 0 is no limit
    delay: float = 0.0  # seconds that each block of process 1 takes longer


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def train_together(n: int, runs: list[Run], timeout: float = 150) -> list[str]:
    """Train the runs with `n` processes, and return the error of each run or an empty string."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "errors.json"
        processes = [
            forked.Process(target=_rank, args=(rank, n, port, runs, results)) for rank in range(n)
        ]
        for process in processes:
            process.start()
        end = time.monotonic() + timeout
        for process in processes:
            process.join(max(0, end - time.monotonic()))
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        tracebacks = [file.read_text() for file in Path(folder).glob("rank-*")]
        assert codes == [0] * n, "\n".join([str(codes), *tracebacks])
        return json.loads(results.read_text())


def _rank(rank: int, n: int, port: int, runs: list[Run], results: Path) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import torch.distributed as dist

    try:
        errors = [_train(run) for run in runs]
    except BaseException:
        results.with_name(f"rank-{rank}").write_text(traceback.format_exc())
        os._exit(1)
    if rank == 0:
        results.write_text(json.dumps(errors))
    dist.destroy_process_group()


def _train(run: Run) -> str:
    import threading

    from seq2chat.alignment.setup import prepare
    from seq2chat.training.loop import train
    from seq2chat.training.setup import resume_job, start_job
    from seq2chat.training.types import Step

    stop = threading.Event()
    recipe = (run.second or run.recipe) if os.environ["RANK"] == "1" else run.recipe
    if run.disk and os.environ["RANK"] == "0":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (run.disk, resource.RLIM_INFINITY))
    try:
        if recipe is None:
            job = resume_job(run.folder, run.changes, prepare=prepare)
        else:
            job = start_job(recipe, run.folder, prepare=prepare)
        if run.delay and os.environ["RANK"] == "1":
            for layer in job.model.layers:
                _delay(layer, run.delay)
        for event in train(job, stop):
            # One process alone gets the signal.
            if isinstance(event, Step) and event.step == run.stop_after and job.parallel.rank == 1:
                stop.set()
    except UserError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    return ""


def _delay(layer, seconds: float) -> None:
    forward = layer.forward

    def delayed(*arguments):
        time.sleep(seconds)
        return forward(*arguments)

    layer.forward = delayed


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [m["loss"] for m in metrics(folder) if "loss" in m]
