"""The launcher: starts the processes of a run, watches them, and starts them again if one fails.

An attempt ends as soon as one process dies, hangs, or gets a loss that is not finite. The others
are ended, because a group of processes that lost one can't continue. The next attempt begins with
new processes that meet at a new port, and resumes from the last checkpoint. Restarting single
processes in place works rarely with gloo.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from seq2chat.config import UserError, check
from seq2chat.log import Log
from seq2chat.scale.rendezvous import Rendezvous

POLL = 0.1  # seconds between two looks at the processes
SETTLE = 3.0  # seconds in which the others of a failed process may end with their own reason
LONGEST_PAUSE = 300.0
ENDS = ("done", "stopped", "refused")
KINDS = ("done", "stopped", "died", "hung", "nan", "gone", "refused")  # the worst is last
STATES = {"T": "is suspended", "D": "waits for a disk or a device"}
# Exit codes of a process of a run, see `cli.main`.
REFUSED = 2
DIVERGED = 3
LOST_PEER = 4
INTERRUPTED = 130


@dataclass(frozen=True)
class Launch:
    """A command of this package, for example ("train", "my.txt", "--out", "runs/my"), and how it is
    run by many processes. Times are in seconds."""

    command: tuple[str, ...]
    folder: Path
    n_processes: int
    nodes: int = 1
    node: int = 0
    rendezvous: str = ""
    retries: int = 3
    pause: float = 1.0
    hang_timeout: float = 600.0
    grace: float = 100.0

    def words(self) -> list[str]:
        """Return the command, or the one that resumes its run if it has begun one.

        A run in the folder that another command has begun is not resumed: that command's options
        would be ignored.
        """
        has_begun = any(
            event.get("begins") and event["command"] == list(self.command)
            for event in events(self.folder)
        )
        is_run = (self.folder / "config.toml").exists()
        if "--resume" in self.command or not is_run or not has_begun:
            return list(self.command)
        # All other options are in the run's own recipe.
        page = ["--watch"] if "--watch" in self.command else []
        if self.command[0] == "train":
            return ["train", str(self.folder), "--resume", *page]
        return [self.command[0], "--out", str(self.folder), "--resume", *page]


@dataclass(frozen=True)
class Outcome:
    """The end of an attempt on one server: one of `KINDS`, in a sentence, and the last step of any
    process."""

    kind: str
    reason: str = ""
    step: int = 0
    is_signaled: bool = False


@dataclass(frozen=True)
class Decision:
    """What all launchers do after an attempt: they end with the exit code `code`, or start the
    processes again after `pause` seconds if it is None."""

    kind: str
    sentence: str
    code: int | None = None
    pause: float = 0.0


@dataclass
class Supervisor:
    """Runs a command by many processes until it is done, or has failed too often.

    On several servers, the launcher of server 0 decides for all of them, as a group of processes
    that lost a server can't continue.
    """

    launch: Launch
    log: Log
    signals: list[int] = field(default_factory=list)
    failures: int = 0  # attempts in a row without a new checkpoint
    checkpoint: str = ""
    last: Outcome = field(default_factory=lambda: Outcome(""))

    def run(self) -> int:
        """Return the exit code: 0 if the run is done, or stopped by a signal and saved."""
        self.launch.folder.mkdir(parents=True, exist_ok=True)
        with Rendezvous(self.launch) as rendezvous, _forwarded(self.signals):
            attempt = 0
            while True:
                outcome = self._attempt(attempt, rendezvous)
                report = asdict(replace(outcome, is_signaled=bool(self.signals)))
                decision = Decision(**rendezvous.decide(attempt, report, self._decide))
                if decision.kind not in ENDS and outcome.kind not in ENDS:
                    self._event(outcome.kind, outcome.reason, attempt=attempt, step=outcome.step)
                self._event(decision.kind, decision.sentence, attempt=attempt, step=outcome.step)
                if decision.code is not None:
                    return decision.code
                self._pause(decision.pause)
                attempt += 1

    def _decide(self, attempt: int, reports: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the fields of the decision after the reports of all servers, on server 0."""
        outcomes = [Outcome(**report) for report in reports]
        worst = max(outcomes, key=lambda outcome: KINDS.index(outcome.kind))
        # The other servers only lost their peers, as a signal reached one of them.
        stopped = [outcome for outcome in outcomes if outcome.kind == "stopped"]
        end = worst if worst.kind in ENDS else next(iter(stopped), None)
        if end is not None:
            code = REFUSED if end.kind == "refused" else 0
            return asdict(Decision(end.kind, end.reason, code))
        newest = self._newest_checkpoint()
        self.failures = 1 if newest != self.checkpoint else self.failures + 1
        self.checkpoint = newest
        again = worst.kind == "nan" and (self.last.kind, self.last.step) == ("nan", worst.step)
        self.last = worst
        is_signaled = any(outcome.is_signaled for outcome in outcomes)
        if again or self.failures > self.launch.retries or is_signaled or worst.kind == "gone":
            cause = "it is not finite again" if again else f"attempt {attempt + 1} failed"
            sentence = f"{worst.reason} " if worst.kind == "gone" else ""
            return asdict(Decision("given up", f"{sentence}The run ends, as {cause}.", code=1))
        seconds = min(LONGEST_PAUSE, self.launch.pause * 2 ** (self.failures - 1))
        where = f"from {newest}" if newest else "from the start"
        sentence = f"Starting again {where} in {seconds:g} s."
        return asdict(Decision("restart", sentence, pause=seconds))

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.signals:
            time.sleep(POLL)

    def _attempt(self, attempt: int, rendezvous: Rendezvous) -> Outcome:
        """Start the processes, and return how they ended."""
        port = rendezvous.port(attempt)
        if self.signals:  # in the pause after the last attempt
            outcome = Outcome("stopped", "Stopped before the processes were started again.")
            rendezvous.fail(attempt, outcome.kind, outcome.reason)
            return outcome
        with tempfile.TemporaryDirectory(prefix="seq2chat-") as folder:
            beats = Path(folder)
            words = self.launch.words()
            is_new = not (self.launch.folder / "config.toml").exists()
            processes = self._start(words, port, rendezvous.host, beats)
            n = self.launch.n_processes * self.launch.nodes
            self._event(
                "start",
                f"{n} processes run: {' '.join(words)}",
                attempt=attempt,
                command=self.launch.command,
                begins=is_new,
                pids=[process.pid for process in processes],
            )
            try:
                return self._watch(attempt, processes, beats, rendezvous)
            finally:
                for process in processes:
                    process.kill()
                    process.wait()

    def _start(self, words: list[str], port: int, host: str, beats: Path) -> list[subprocess.Popen]:
        launch = self.launch
        threads = max(1, (os.cpu_count() or 1) // launch.n_processes)
        processes = []
        for local_rank in range(launch.n_processes):
            variables = {
                "RANK": str(launch.node * launch.n_processes + local_rank),
                "LOCAL_RANK": str(local_rank),
                "WORLD_SIZE": str(launch.n_processes * launch.nodes),
                "MASTER_ADDR": host,
                "MASTER_PORT": str(port),
                "SEQ2CHAT_HEARTBEAT": str(beats / str(local_rank)),
                "SEQ2CHAT_LAUNCHER": str(os.getpid()),
            }
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "seq2chat", *words],
                    env={"OMP_NUM_THREADS": str(threads)} | os.environ | variables,
                    # So that Ctrl-C reaches the launcher alone, which forwards it once.
                    start_new_session=True,
                )
            )
        return processes

    def _watch(
        self,
        attempt: int,
        processes: list[subprocess.Popen],
        beats: Path,
        rendezvous: Rendezvous,
    ) -> Outcome:
        """Return the outcome as soon as it is known. The processes may still run then."""
        deadline = 0.0
        while True:
            time.sleep(POLL)
            steps = _steps(beats)
            newest = max((step for step, _ in steps.values()), default=0)
            codes = [process.poll() for process in processes]
            if all(code == 0 for code in codes) and rendezvous.all_done(attempt):
                return self._ended(newest)
            if self.signals and not deadline:
                deadline = time.monotonic() + self.launch.grace
                self._event("signal", "Saving, because a signal asks the run to stop.")
                for process in processes:
                    process.send_signal(signal.SIGTERM)
            if len(self.signals) > 1:
                return Outcome("died", "Ended by a second signal.", newest)
            if deadline and time.monotonic() > deadline:
                return Outcome("died", f"It was not saved within {self.launch.grace:g} s.", newest)
            if self.signals and INTERRUPTED in codes and set(codes) <= {0, INTERRUPTED}:
                outcome = Outcome("stopped", "Stopped before the first step.", newest)
                rendezvous.fail(attempt, outcome.kind, outcome.reason)
                return outcome
            if any(codes):
                time.sleep(0 if REFUSED in codes else SETTLE)
                outcome = self._failure([process.poll() for process in processes], newest)
                rendezvous.fail(attempt, outcome.kind, outcome.reason)
                return outcome
            if elsewhere := rendezvous.failure(attempt):
                return Outcome(*elsewhere, step=newest)
            if late := self._hung(processes, steps, newest):
                rendezvous.fail(attempt, late.kind, late.reason)
                return late

    def _ended(self, step: int) -> Outcome:
        if self.signals:
            return Outcome("stopped", f"Stopped and saved at step {step}.", step)
        return Outcome("done", f"Done: {self.launch.folder}", step)

    def _failure(self, codes: list[int | None], step: int) -> Outcome:
        """Return the outcome of an attempt of which one process has failed."""
        first = self.launch.node * self.launch.n_processes
        by_rank = {first + index: code for index, code in enumerate(codes) if code}
        for rank, code in by_rank.items():
            if code == REFUSED:
                return Outcome("refused", f"Process {rank} refused the command.", step)
            if code == DIVERGED:
                return Outcome("nan", f"The loss is not finite after step {step}.", step)
        causes = {rank: code for rank, code in by_rank.items() if code != LOST_PEER} or by_rank
        rank, code = next(iter(causes.items()))
        how = f"was ended by {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
        return Outcome("died", f"Process {rank} {how} after step {step}.", step)

    def _hung(
        self,
        processes: list[subprocess.Popen],
        steps: dict[int, tuple[int, float]],
        newest: int,
    ) -> Outcome | None:
        """Return an outcome if a process has not reported for too long: no step, no batch of a
        validation, and no minibatch. Preparation, before the first step, has no limit."""
        limit = self.launch.hang_timeout
        if not any(age > limit for _, age in steps.values()):
            return None
        # The others wait for the one that hangs, so the steps don't name it.
        first = self.launch.node * self.launch.n_processes
        reason = f"There was no step for {limit:g} s after step {newest}."
        for rank, process in enumerate(processes, start=first):
            if state := STATES.get(_state(process.pid)):
                reason += f" Process {rank} {state}."
        return Outcome("hung", reason, newest)

    def _newest_checkpoint(self) -> str:
        # As `RunFolder.list_checkpoints`, without loading torch.
        complete = self.launch.folder.glob("checkpoints/step-*/manifest.json")
        names = sorted((file.parent.name for file in complete), key=lambda name: (len(name), name))
        return names[-1] if names else ""

    def _event(self, kind: str, sentence: str, **values: object) -> None:
        """Print the sentence, and append the event to `events.jsonl`."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        event = {"time": stamp, "event": kind, "sentence": sentence, "node": self.launch.node}
        with (self.launch.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event | values) + "\n")
        self.log(sentence)


def events(folder: Path) -> list[dict[str, Any]]:
    """Return the events of the run in `folder`, oldest first."""
    file = folder / "events.jsonl"
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    known = []
    for line in text.split("\n"):
        # A line that a kill or a full disk cut short, which the next event may follow.
        with suppress(ValueError):
            known.append(json.loads(line))
    return known


def _steps(beats: Path) -> dict[int, tuple[int, float]]:
    """Return the step of each process, and the seconds since it made it."""
    steps = {}
    for file in beats.iterdir():
        text = file.read_text(encoding="ascii")
        if text:  # a process may be writing it
            steps[int(file.name)] = (int(text), time.time() - file.stat().st_mtime)
    return steps


def _state(pid: int) -> str:
    """Return the letter of a process's state on Linux, or an empty string elsewhere."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[0]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextmanager
def _forwarded(signals: list[int]) -> Iterator[None]:
    """Append SIGTERM and SIGINT to `signals` instead of ending this process."""
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, frame: signals.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_folder_of(command: tuple[str, ...]) -> Path:
    """Return the run folder that a command names. Raises UserError if it names none."""
    methods = ("train", "sft", "reward", "dpo", "ppo", "grpo")
    check(
        bool(command) and command[0] in methods,
        f"Write the command to run after the options of launch; it can be {', '.join(methods)}.",
    )
    words = list(command)
    for index, word in enumerate(words):
        if word == "--out" and index + 1 < len(words):
            return Path(words[index + 1])
        if word.startswith("--out="):
            return Path(word.removeprefix("--out="))
    if "--resume" in words and len(words) > 1 and not words[1].startswith("-"):
        return Path(words[1])
    raise UserError("Name the run folder with --out, so that a failed run can be resumed.")
