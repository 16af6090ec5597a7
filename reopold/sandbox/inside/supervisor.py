"""Sets a program up, waits for it, ends everything that it started, and reports.

Runs as `python -I -S` with one socket to the platform: a setup comes in, one report goes out. The
platform ends the program by writing a byte or by going away. In namespaces the supervisor is the
first process of a PID namespace, whose end takes every process in it along; elsewhere orphans of
the program come to it (PR_SET_CHILD_SUBREAPER) and are ended one by one.
"""

# Every program waits for these imports; pathlib would take longer than all others together.
from __future__ import annotations

import contextlib
import marshal
import math
import os
import resource
import select
import signal
import time

from . import kernel, landlock, root, seccomp
from .setup import Setup, Started, spare_uid, start

Report = dict[str, object]
_TICK, _LONGEST_TICK = 0.05, 0.4  # seconds between looks at the memory


def main(control: int) -> None:
    os.umask(0o022)
    try:
        setup = Setup(marshal.loads(_read_message(control)))
        for descriptor in (control, *setup.descriptors):
            os.set_inheritable(descriptor, False)
        report = _in_namespaces(setup, control) if setup.namespaces else _bare(setup, control)
    except Exception as error:
        report = _failure(error)
    if report is not None:
        _send(control, report)


def _failure(error: BaseException) -> Report:
    return {"failure": f"{type(error).__name__}: {error}"}


def _read_message(descriptor: int) -> bytes:
    """One message: its length in 8 bytes, then that many."""
    data = bytearray()
    wanted = 8
    header = True
    while header or len(data) < wanted:
        part = os.read(descriptor, min(wanted - len(data), 1 << 20))
        if not part:
            raise EOFError("the platform went away")
        data += part
        if header and len(data) == 8:
            wanted, data, header = int.from_bytes(data, "big"), bytearray(), False
    return bytes(data)


def _send(control: int, report: Report) -> None:
    data = repr(report).encode()
    os.write(control, len(data).to_bytes(8, "big") + data)


def _bare(setup: Setup, control: int) -> Report:
    """Supervise without namespaces."""
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    try:
        uid = spare_uid() if setup.change_user else None
        if uid is not None:
            os.chmod(setup.folder, 0o711)
            os.chown(f"{setup.folder}/home", uid, uid)
        others = 0 if os.geteuid() == 0 else _tasks_of(os.getuid())
        return _supervise(setup, control, uid, others)
    finally:
        root.remove(setup.folder)


def _in_namespaces(setup: Setup, control: int) -> Report | None:
    """Supervise from a child inside fresh namespaces; None where it has reported itself."""
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET
    flags |= kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    uid = spare_uid()
    owner = 1000 if uid is None else uid
    if uid is None:
        outer, group = os.geteuid(), os.getegid()
        kernel.unshare(flags | kernel.CLONE_NEWUSER)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{owner} {outer} 1"),
            ("gid_map", f"{owner} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    else:
        kernel.unshare(flags)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return None if status == 0 else {"failure": f"the supervisor ended with status {status}"}
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        files = setup.files | {
            "/etc/passwd": f"program:x:{owner}:{owner}::{root.HOME}:/bin/sh\n",
            "/etc/group": f"program:x:{owner}:\n",
        }
        root.enter(setup.python, files, owner, 16 * setup.file_bytes)
        # In a user namespace both supervisors run as the program's user.
        _send(control, _supervise(setup, control, uid, 2 if uid is None else 0))
    except BaseException as error:
        _send(control, _failure(error))
    os._exit(0)


def _supervise(setup: Setup, control: int, uid: int | None, others: int) -> Report:
    wake, ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    killed_before = _out_of_memory_kills()
    started = time.monotonic()
    program = start(setup, uid, others)
    try:
        reason, status, refused = _watch(setup, program, control, wake, started)
    finally:
        seconds = time.monotonic() - started
        _end_all()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "reason": reason,
        "returncode": None if status is None else os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "refused": refused,
        "out_of_memory": _out_of_memory_kills() > killed_before,
        "own_user": uid is not None,
        "filtered": program.filtered,
        "landlock": landlock.version() if program.landlocked else 0,
    }


def _watch(
    setup: Setup, program: Started, control: int, wake: int, started: float
) -> tuple[str | None, int | None, int]:
    """Until the program ends or must be ended: why it must, else its status; calls refused."""
    poll = select.poll()
    for descriptor in (wake, control, program.listener):
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
    deadline = math.inf if setup.seconds is None else started + setup.seconds
    tick = _TICK
    refused = 0
    while True:
        left = deadline - time.monotonic()
        ready = dict(poll.poll(max(0.0, min(tick, left)) * 1000))
        if wake in ready:
            os.read(wake, 4096)
        if (status := _reap(program.pid)) is not None:
            return None, status, refused
        if control in ready:
            return "asked", None, refused
        if left <= 0:
            return "timeout", None, refused
        if program.listener in ready:
            if ready[program.listener] & select.POLLIN:
                seccomp.refuse_one(program.listener)
                refused += 1
            else:
                poll.unregister(program.listener)
        below = _below()
        # The kernel counts too, where the program has not found a way to be root.
        if len(below) > 4 * setup.processes:
            return "processes", None, refused
        used = _memory_bytes(below)
        if used > setup.memory_bytes:
            return "memory", None, refused
        tick = _TICK if used > setup.memory_bytes / 4 else min(2 * tick, _LONGEST_TICK)


def _reap(program: int) -> int | None:
    """Collect what has ended, orphans among it; the program's status if it is among it."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == program:
            return status
        if pid == 0:
            return None


def _out_of_memory_kills() -> int:
    """Processes that the kernel has ended for want of memory since it started."""
    try:
        with open("/proc/vmstat") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def _tasks_of(uid: int) -> int:
    """Threads that this user runs already."""
    count = 0
    for pid in _pids():
        try:
            if os.stat(f"/proc/{pid}").st_uid == uid:
                count += os.stat(f"/proc/{pid}/task").st_nlink - 2
        except OSError:
            continue
    return count


def _pids() -> list[int]:
    with os.scandir("/proc") as entries:
        return [int(entry.name) for entry in entries if entry.name.isdigit()]


def _memory_bytes(pids: list[int]) -> int:
    """Resident, of these processes; what they share counts for each."""
    pages = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm") as file:
                pages += int(file.read().split()[1])
        except (OSError, IndexError):
            continue
    return pages * resource.getpagesize()


def _below() -> list[int]:
    """Every process under this one."""
    if os.getpid() == 1:
        return [pid for pid in _pids() if pid != 1]
    children: dict[int, list[int]] = {}
    for pid in _pids():
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(pid)
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def _end_all() -> None:
    """Kill everything under this process until nothing is left; orphans come to it."""
    while True:
        for pid in [-1] if os.getpid() == 1 else _below():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)
