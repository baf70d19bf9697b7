"""The agreement of the launchers on several servers: the port of each attempt, its failure, and
what to do after it, which server 0 decides."""

import json
import math
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from seq2chat.config import UserError, check

if TYPE_CHECKING:
    from seq2chat.scale.launch import Launch

Decide = Callable[[int, list[dict[str, Any]]], dict[str, Any]]

PATIENCE = timedelta(minutes=10)  # until all launchers of a run have started
ANSWER = 30.0  # seconds, besides those to save in, in which a launcher reports an attempt's end
FAREWELL = 30.0  # seconds in which the others read the last decision
POLL = 0.1


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
            bool(host) and port.isdecimal() and 0 < int(port) < 1 << 16,
            f"--rendezvous is {launch.rendezvous!r}; several nodes meet at HOST:PORT, where HOST is"
            " the first of them.",
        )
        self.host = host
        self.answer = ANSWER + launch.grace
        self.store = _store(host, int(port), is_first=self.node == 0)

    def __enter__(self) -> "Rendezvous":
        if self.store is not None:
            self._add("arrived")
            n = self._wait_for("arrived", PATIENCE.total_seconds())
            check(
                n >= self.nodes,
                f"Only {n} of {self.nodes} launchers have started within "
                f"{PATIENCE.total_seconds():g} s; start one per server, with --node 0 to "
                f"{self.nodes - 1}.",
            )
        return self

    def __exit__(self, kind: object, error: BaseException | None, *rest: object) -> None:
        if self.store is None:
            return
        with suppress(RuntimeError):  # if server 0 has ended
            if error is not None:
                sentence = f"The launcher of server {self.node} has ended: {error}"
                self.store.set("gone", json.dumps(["gone", sentence]))
                return
            # The store ends with node 0, so that waits for the others.
            self.store.add("left", 1)
            if self.node == 0:
                self._wait_for("left", FAREWELL)

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
        return self._read(f"failed-{attempt}") or self._read("gone") or []

    def decide(self, attempt: int, report: dict[str, Any], decide: Decide) -> dict[str, Any]:
        """Return what to do after an attempt: on server 0, `decide(attempt, reports)` with the
        reports of all servers, and on the others the same."""
        if self.store is None:
            return decide(attempt, [report])
        with _explained():
            self.store.set(f"report-{attempt}-{self.node}", json.dumps(report))
        end = time.monotonic() + self.answer
        if self.node > 0:
            end += self.answer  # in which server 0 waits for the reports
            decision = self._await(f"decision-{attempt}", end)
            check(bool(decision), "The launcher of server 0 doesn't answer, so this one ends.")
            return decision
        reports = []
        for node in range(self.nodes):
            report = self._await(f"report-{attempt}-{node}", end, or_key="gone")
            if not isinstance(report, dict):
                _, reason = report or ["", f"The launcher of server {node} doesn't answer."]
                report = {"kind": "gone", "reason": reason}
            reports.append(report)
        decision = decide(attempt, reports)
        with _explained():
            self.store.set(f"decision-{attempt}", json.dumps(decision))
        return decision

    def all_done(self, attempt: int) -> bool:
        """Wait until the processes of all servers are done, or any has failed."""
        if self.store is None:
            return True
        self._add(f"done-{attempt}")
        # Process 0 ends last, so server 0 waits for no long work of another.
        seconds = math.inf if self.node else self.answer
        is_done = self._wait_for(f"done-{attempt}", seconds, attempt) >= self.nodes
        if not is_done and not self.failure(attempt):
            self.fail(attempt, "gone", "A launcher of another server doesn't answer.")
        return is_done

    def _read(self, key: str) -> Any:
        """Return the value of a key, or None without one."""
        if self.store is None:
            return None
        with _explained():
            return json.loads(self.store.get(key)) if self.store.check([key]) else None

    def _await(self, key: str, end: float, or_key: str = "") -> Any:
        """Return the value of a key, or of `or_key` if that comes first, or None at `end`."""
        while True:
            value = self._read(key) or (self._read(or_key) if or_key else None)
            if value is not None or time.monotonic() > end:
                return value
            time.sleep(POLL)

    def _add(self, key: str, n: int = 1) -> int:
        with _explained():
            return self.store.add(key, n)

    def _wait_for(self, key: str, seconds: float, attempt: int = -1) -> int:
        """Wait until all launchers have added to a key, and return how many have in time."""
        end = time.monotonic() + seconds
        while (n := self._add(key, 0)) < self.nodes and time.monotonic() < end:
            if attempt >= 0 and self.failure(attempt):
                break
            time.sleep(POLL)
        return n


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
