"""The agreement of the launchers on several servers: the port of each attempt, and its failure."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from seq2chat.config import UserError, check

if TYPE_CHECKING:
    from seq2chat.scale.launch import Launch

PATIENCE = timedelta(minutes=10)  # until all launchers of a run have started


def free_port() -> int:
    """Return a port of this machine that no program uses."""
    with socket.socket() as server:
        server.bind(("", 0))
        return server.getsockname()[1]


class Rendezvous:
    """The place where the launchers of a run meet. On one server, there is nobody to meet.

    Node 0 keeps a store of keys and values, which outlives the attempts.
    """

    def __init__(self, launch: "Launch") -> None:
        self.nodes = launch.nodes
        self.node = launch.node
        self.host = "127.0.0.1"
        self.store: Any = None
        check(
            0 <= self.node < self.nodes,
            f"--node is {self.node}, and --nodes is {self.nodes}; number the servers from 0 on.",
        )
        if self.nodes == 1:
            return
        host, _, port = launch.rendezvous.rpartition(":")
        check(
            bool(host) and port.isdecimal(),
            f"--rendezvous is {launch.rendezvous!r}; several nodes meet at HOST:PORT, where HOST is"
            " the first of them.",
        )
        self.host = host
        self.store = _store(host, int(port), is_first=self.node == 0)

    def __enter__(self) -> "Rendezvous":
        return self

    def __exit__(self, *error: object) -> None:
        if self.store is None or any(error):
            return
        # The store ends with node 0, so that waits for the others.
        self._add("left")
        if self.node == 0:
            self._wait_for("left")

    def port(self, attempt: int) -> int:
        """Return the port at which the processes of this attempt meet."""
        if self.store is None:
            return free_port()
        with _explained():
            if self.node == 0:
                self.store.set(f"port-{attempt}", str(free_port()))
            return int(self.store.get(f"port-{attempt}"))

    def fail(self, attempt: int, kind: str, reason: str) -> None:
        """Report the failure of an attempt to the other launchers."""
        if self.store is not None:
            with _explained():
                self.store.set(f"failed-{attempt}", json.dumps([kind, reason]))

    def failure(self, attempt: int) -> list[str]:
        """Return kind and reason of a failure on any server, or an empty list."""
        key = f"failed-{attempt}"
        if self.store is None:
            return []
        with _explained():
            return json.loads(self.store.get(key)) if self.store.check([key]) else []

    def all_done(self, attempt: int) -> bool:
        """Wait until the processes of all servers are done, or any has failed."""
        if self.store is None:
            return True
        self._add(f"done-{attempt}")
        return self._wait_for(f"done-{attempt}", attempt)

    def _add(self, key: str, n: int = 1) -> int:
        with _explained():
            return self.store.add(key, n)

    def _wait_for(self, key: str, attempt: int = -1) -> bool:
        end = time.monotonic() + PATIENCE.total_seconds()
        while self._add(key, 0) < self.nodes and time.monotonic() < end:
            if attempt >= 0 and self.failure(attempt):
                return False
            time.sleep(0.1)
        return True


@contextmanager
def _explained() -> Iterator[None]:
    """Raise UserError if the store of server 0 doesn't answer."""
    try:
        yield
    except RuntimeError as error:
        raise UserError("The launcher of server 0 has ended, so this one ends too.") from error


def _store(host: str, port: int, is_first: bool) -> Any:
    from torch.distributed import TCPStore

    try:
        return TCPStore(host, port, is_master=is_first, timeout=PATIENCE, wait_for_workers=False)
    except (RuntimeError, OSError) as error:
        if is_first and "in use" in str(error).lower():
            raise UserError(f"The port {port} of {host} is taken; choose another one.") from error
        raise UserError(f"The launchers can't meet at {host}:{port}: {error}") from error
