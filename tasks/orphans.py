"""Processes of this home whose launcher is gone: they should have ended with it.

Our launchers name themselves in the environment of what they start, and children inherit it. A
number alone names nobody for long, because the kernel gives it away again: a launcher is there only
if a process of that number began before its child did.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from reopold import parent
from tasks.home import home

#: The nearest owner first: a server of a trainer is the trainer's, whose launcher may be gone.
#: The first is that of reopold/engines/worker, which needs torch.
OWNERS = ("REOPOLD_OWNER_PID", parent.VARIABLE)
#: In these seconds a child notices by itself that its launcher is gone, and after SIGTERM it ends.
NOTICE_SECONDS, GRACE_SECONDS = 1.5, 10.0


@dataclass(frozen=True)
class Process:
    """A process by its number and its start (clock ticks since boot), which name it for ever."""

    pid: int
    start: int
    session: int
    owner: int
    command: tuple[str, ...]

    @property
    def family(self) -> tuple[int, int]:
        """What one launch left: its owner and its session, which children inherit."""
        return self.owner, self.session

    @property
    def trains(self) -> bool:
        return "reopold.train" in self.command

    @property
    def serves(self) -> bool:
        """Whether it is a server of Prefect or MLflow, which others may be talking to."""
        return any("prefect" in word or "mlflow" in word for word in self.command)

    @property
    def title(self) -> str:
        words = [Path(self.command[0]).name, *self.command[1:]] if self.command else ["?"]
        text = " ".join(words)
        return text if len(text) < 70 else f"{text[:67]}..."


def orphans() -> list[Process]:
    """Living processes of this user and home whose owner is gone, and still so a moment later.

    What runs in another PID namespace is left out: the numbers there are not ours.
    """
    found = _orphans()
    if found:
        time.sleep(NOTICE_SECONDS)
    again = set(_orphans()) if found else set()
    return [process for process in found if process in again]


def end(processes: list[Process]) -> None:
    """SIGTERM; SIGKILL after a grace to what is left, and to what it has started meanwhile.

    Raises:
        RuntimeError: one does not end even so (a process in the kernel's hands).
    """
    families = {process.family for process in processes}
    left = list(processes)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in left:
            _signal(process, number)
        deadline = time.monotonic() + GRACE_SECONDS
        while left and time.monotonic() < deadline:
            time.sleep(0.1)
            left = [process for process in _orphans() if process.family in families]
    if left:
        raise RuntimeError(f"still there after SIGKILL: {[process.pid for process in left]}")


def _orphans() -> list[Process]:
    ours = _ancestors(os.getpid())
    return [
        process
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and int(entry.name) not in ours
        if (process := _owned(entry)) is not None and not _is_there(process)
    ]


def _owned(entry: Path) -> Process | None:
    """None if it is not ours to judge: no owner, another home, user or PID namespace, or gone."""
    try:
        raw = (entry / "environ").read_bytes()
        here = (entry / "ns" / "pid").readlink() == Path("/proc/self/ns/pid").readlink()
        if not here or entry.stat().st_uid != os.getuid():
            return None
        environment = dict(
            pair.split("=", 1) for pair in os.fsdecode(raw).split("\0") if "=" in pair
        )
        owner = next((environment[name] for name in OWNERS if name in environment), "")
        folder = environment.get("REOPOLD_HOME", "")
        if not owner.isdigit() or not folder or Path(folder).resolve() != home():
            return None
        stat = _stat(int(entry.name))
        if stat is None:
            return None
        command = os.fsdecode((entry / "cmdline").read_bytes()).split("\0")[:-1]
        return Process(int(entry.name), stat.start, stat.session, int(owner), tuple(command))
    except OSError:  # it has ended, or belongs to somebody else
        return None


def _is_there(process: Process) -> bool:
    owner = _stat(process.owner)
    return owner is not None and owner.start <= process.start


@dataclass(frozen=True)
class _Stat:
    parent: int
    session: int
    start: int


def _stat(pid: int) -> _Stat | None:
    """What the kernel says of a living process; None if it has ended (a zombie has)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # man 5 proc: the command may hold anything, so count from the last parenthesis.
    state, *fields = text.rpartition(")")[2].split()
    if state in "ZX":
        return None
    return _Stat(parent=int(fields[0]), session=int(fields[2]), start=int(fields[18]))


def was_there(pid: int, at: float) -> bool:
    """Whether the process that had this number `at` that time (Unix seconds) is still there."""
    stat = _stat(pid)
    if stat is None:
        return False
    running = time.clock_gettime(time.CLOCK_BOOTTIME) - stat.start / os.sysconf("SC_CLK_TCK")
    return time.time() - running < at + 1.0  # ticks are coarse


def _ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid and pid not in found:
        found.add(pid)
        stat = _stat(pid)
        pid = stat.parent if stat else 0
    return found


def _signal(process: Process, number: int) -> None:
    """A handle names the process and not its number: nobody else can be hit."""
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(process.pid)
        try:
            stat = _stat(process.pid)
            if stat is not None and stat.start == process.start:
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)
