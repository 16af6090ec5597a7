"""What the platform orders, and how a process turns into the program that it is about."""

from __future__ import annotations

import _socket  # what `socket` wraps, for a quicker start
import contextlib
import fcntl
import math
import os
import resource
import signal
import sys

from . import kernel, landlock, root, seccomp

_HIGH = 100  # descriptors from here on are nobody's
_FILTERED = b"\0"  # what a program says before it starts where its system calls are filtered


class Setup:
    """What the platform sends."""

    namespaces: bool
    change_user: bool
    """Without namespaces, from root; with them that is always done."""
    command: list[str]
    """Of the program."""
    environment: dict[str, str]
    python: dict[str, str]
    """Folders that the interpreter needs, by the path that it knows them by."""
    files: dict[str, str]
    """Text by absolute path, in a root of its own."""
    folder: str
    """Where there is no root of its own: has `home`, the working directory; removed at the end."""
    descriptors: list[int]
    """To be handed down as 3, 4, ..."""
    seconds: float | None
    memory_bytes: int
    file_bytes: int
    processes: int

    def __init__(self, fields: dict[str, object]) -> None:
        self.__dict__.update(fields)


class Started:
    """A running program and what holds for it."""

    def __init__(self, pid: int, filtered: bool, listener: int | None, landlocked: bool) -> None:
        self.pid = pid
        self.filtered = filtered
        """Whether its system calls are."""
        self.listener = listener
        """Where its refused calls are to be answered."""
        self.landlocked = landlocked


def spare_uid() -> int | None:
    """An unprivileged user that no other program runs as; None where we may not choose one.

    One each, since the kernel counts processes per user.
    """
    if os.geteuid() != 0:
        return None
    covered = 0
    with open("/proc/self/uid_map") as file:
        for line in file:
            first, _, length = (int(field) for field in line.split())
            covered = max(covered, first + length)
    if covered > 1 << 30:
        return (1 << 28) + os.getpid()
    return covered // 2 + os.getpid() % (covered // 2) if covered > 1 << 15 else None


def start(setup: Setup, uid: int | None, others: int) -> Started:
    """Start the program; returns when it has replaced its setting-up.

    Args:
        uid: to run as; None keeps the user.
        others: threads that the user runs already, which the kernel counts.

    Raises:
        OSError: it could not be started.
    """
    landlocked = not setup.namespaces and landlock.version() > 0
    ours, theirs = _socket.socketpair()
    program = os.fork()
    if program == 0:
        number = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, _HIGH)
        channel = _socket.socket(fileno=number)
        try:
            _become(setup, uid, others, landlocked, channel)
        except BaseException as error:
            channel.send(f"{type(error).__name__}: {error}".encode())
        os._exit(127)
    theirs.close()
    listener, said = None, b""
    while True:
        part, received, _, _ = ours.recvmsg(4096, _socket.CMSG_LEN(4))
        for _, _, descriptor in received:
            listener = int.from_bytes(descriptor, sys.byteorder)
        said += part
        if not part:
            break
    ours.close()
    if failure := said.removeprefix(_FILTERED).decode(errors="replace"):
        raise OSError(f"the program could not be started: {failure}")
    if listener is not None:
        os.set_inheritable(listener, False)
    return Started(program, said == _FILTERED, listener, landlocked)


def _become(
    setup: Setup, uid: int | None, others: int, landlocked: bool, channel: _socket.socket
) -> None:
    """Turn this process into the program."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    # Out of the way first: a descriptor may bear the number that another is to have.
    held = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _HIGH) for number in setup.descriptors]
    for place, number in enumerate(held):
        os.dup2(number, 3 + place)
    home = root.HOME if setup.namespaces else f"{setup.folder}/home"
    os.chdir(home)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    for capability in range(64):
        with contextlib.suppress(OSError):
            kernel.prctl(kernel.PR_CAPBSET_DROP, capability)
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    elif (counted := spare_uid()) is not None and not setup.namespaces:
        os.setresuid(counted, 0, 0)  # the kernel counts processes by real user, and never root's
    _limit(setup, others)
    if landlocked:
        readable = [*root.SYSTEM, *root.SETTINGS, *setup.python.values(), f"{setup.folder}/program"]
        landlock.restrict(readable, [*root.DEVICES, home])
    if seccomp.supported():
        with contextlib.suppress(OSError):  # the kernel knows no filters: then the report says so
            listener = seccomp.install(None if setup.namespaces else os.getpid())
            passed = b"" if listener is None else listener.to_bytes(4, sys.byteorder)
            rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, passed)
            channel.sendmsg([_FILTERED], [rights] if passed else [])
    os.execve(setup.command[0], setup.command, setup.environment)


def _limit(setup: Setup, others: int) -> None:
    """Set the resource limits, hard and soft."""
    stack = min(max(setup.memory_bytes // 32, 8 << 20), 128 << 20)  # of each thread as well
    limits = {
        resource.RLIMIT_AS: setup.memory_bytes,
        resource.RLIMIT_FSIZE: setup.file_bytes,
        resource.RLIMIT_NPROC: setup.processes + others,
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_CORE: 1,  # none; 0 would still start a handler that reads a pipe
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 256,
    }
    pairs = {kind: (value, value) for kind, value in limits.items()}
    pairs[resource.RLIMIT_STACK] = (stack, resource.RLIM_INFINITY)
    if setup.seconds is not None:
        seconds = math.ceil(setup.seconds)
        pairs[resource.RLIMIT_CPU] = (seconds, seconds + 1)
    for kind, (soft, hard) in pairs.items():
        highest = resource.getrlimit(kind)[1]  # which nobody but root may raise
        if highest != resource.RLIM_INFINITY:
            soft, hard = min(soft, highest), highest if hard < 0 else min(hard, highest)
        resource.setrlimit(kind, (soft, hard))
