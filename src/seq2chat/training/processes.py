"""The processes of a run: how they find each other, and what they agree on.

`torchrun` and `seq2chat launch` start several processes and describe them in environment variables.
With one process, every function here returns what it gets and communicates nothing.
"""

import atexit
import datetime
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from seq2chat.config import SharedError, Unreachable, UserError, check

S = TypeVar("S")
T = TypeVar("T")

# Preparing a large text takes long on one process, while the others wait. A process that ends is
# noticed at once, and `seq2chat launch` notices one that hangs.
TIMEOUT = datetime.timedelta(hours=6)
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def join_processes() -> None:
    """Connect to the other processes of the run, if there are any. A second call does nothing.

    Raises UserError if the environment variables are incomplete, or if no connection can be made.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    missing = [name for name in VARIABLES if name not in os.environ]
    check(
        not missing,
        f"WORLD_SIZE is set but {', '.join(missing)} is not; start several processes with "
        "`seq2chat launch --nproc N ...` or with torchrun.",
    )
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    has_gpu = torch.cuda.is_available()
    local_rank = int(os.environ["LOCAL_RANK"])
    if local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if "EADDRINUSE" in reason or "in use" in reason:
            raise Unreachable(
                f"The port of {address} is taken; choose another one (--rendezvous HOST:PORT, or "
                "torchrun --master-port)."
            ) from error
        raise Unreachable(f"The processes of the run can't meet at {address}: {reason}.") from error
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Return True on the process that writes files and prints: process 0."""
    return rank() == 0


def agree(value: T) -> T:
    """Return the value of process 0."""
    if world_size() == 1:
        return value
    if isinstance(value, float):
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(tensor, 0)
        return tensor.item()  # pyrefly: ignore[bad-return]
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def gather(value: T) -> list[T]:
    """Return the values of all processes, in their order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_process(flag: bool) -> bool:
    """Return True if `flag` is set on any process."""
    if world_size() == 1:
        return flag
    tensor = torch.tensor(int(flag))
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return bool(tensor)


def together(make: Callable[[], T]) -> T:
    """Return `make()`, or raise UserError on all processes if any of them raises it.

    A process that raised alone would leave the others waiting for it.
    """
    if world_size() == 1:
        return make()
    value, error = _attempt(make)
    _raise_first(gather(error))
    return value  # pyrefly: ignore[bad-return]


def main_first(make: Callable[[S | None], T], share: Callable[[T], S | None]) -> T:
    """Return `make(None)` of process 0, and then `make(shared)` of the others, with the shared part
    of that result.

    So the others read what process 0 caches. Raises UserError as `together` does.
    """
    if world_size() == 1:
        return make(None)
    value, error = _attempt(lambda: make(None)) if is_main() else (None, "")
    error, shared = agree((error, None if value is None else share(value)))
    _raise_first([error])
    if not is_main():
        value, error = _attempt(lambda: make(shared))
    _raise_first(gather(error))
    return value  # pyrefly: ignore[bad-return]


def from_main(make: Callable[[], T]) -> T:
    """Return `make()` of process 0. Its UserError is raised on all processes."""
    if world_size() == 1:
        return make()
    value, error = agree(_attempt(make) if is_main() else (None, ""))
    _raise_first([error])
    return value  # pyrefly: ignore[bad-return]


def _attempt(make: Callable[[], T]) -> tuple[T | None, str]:
    """Return the result, and the message of an error or an empty string."""
    try:
        return make(), ""
    except UserError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}."


def _raise_first(errors: list[str]) -> None:
    """Raise the first error, with the process that had it unless all had the same."""
    failed = [index for index, error in enumerate(errors) if error]
    if not failed:
        return
    error = errors[failed[0]]
    is_shared = len(set(errors)) == 1
    raise SharedError(error if is_shared else f"Process {failed[0]} of {len(errors)}: {error}")


def check_same(what: str, values: dict[str, Any]) -> None:
    """Raise SharedError unless all processes have the same `values`. It names the first that
    differs, with both values.

    `what` is the noun of the values, for example "recipe".
    """
    everyone = gather(values)
    first = everyone[0]
    for index, other in enumerate(everyone):
        for name in first | other:
            if first.get(name) != other.get(name):
                raise SharedError(
                    f"The processes disagree about the {what}: {name} is {first.get(name)!r} for "
                    f"process 0 and {other.get(name)!r} for process {index}; start all of them "
                    "alike."
                )


def code_version() -> str:
    """Return the version of this package and a hash of its source."""
    digest = hashlib.sha256()
    folder = Path(__file__).parents[1]
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode())
        digest.update(file.read_bytes())
    return f"{sys.modules['seq2chat'].__version__}+{digest.hexdigest()[:10]}"


def beat(step: int) -> None:
    """Report to `seq2chat launch` that this process has made a step.

    If the launcher has ended, the process saves and stops, as nobody would restart it.
    """
    if file := os.environ.get("SEQ2CHAT_HEARTBEAT"):
        if os.getppid() != int(os.environ["SEQ2CHAT_LAUNCHER"]):
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            Path(file).write_text(str(step), encoding="ascii")


def alive() -> None:
    """Report to `seq2chat launch` that this process computes, within something longer than a
    step."""
    if file := os.environ.get("SEQ2CHAT_HEARTBEAT"):
        Path(file).touch()


class AgreedEvent:
    """An event that is set as soon as any process has set its own.

    All processes have to call `is_set` equally often.
    """

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def is_set(self) -> bool:
        """Return whether any process has set its event."""
        if world_size() > 1 and any_process(self.event.is_set()):
            self.event.set()
        return self.event.is_set()
