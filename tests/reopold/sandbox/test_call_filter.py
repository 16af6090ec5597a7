"""The filter on system calls, run by an interpreter of its own on both architectures."""

from __future__ import annotations

import errno
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from reopold.sandbox.inside import seccomp
from reopold.sandbox.inside.seccomp import Instruction

ALLOW, KILL, ERROR, NOTIFY = 0x7FFF0000, 0x80000000, 0x00050000, 0x7FC00000
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
#: Numbers by hand, from the kernel's tables (arch/x86/entry/syscalls/syscall_64.tbl and
#: include/uapi/asm-generic/unistd.h).
NUMBERS = {
    "x86_64": {"read": 0, "write": 1, "socket": 41, "socketpair": 53, "clone": 56, "execve": 59}
    | {"kill": 62, "ptrace": 101, "mount": 165, "tkill": 200, "tgkill": 234, "unshare": 272}
    | {"clone3": 435, "io_uring_setup": 425, "pidfd_send_signal": 424},
    "aarch64": {"read": 63, "write": 64, "socket": 198, "socketpair": 199, "clone": 220}
    | {"execve": 221, "kill": 129, "ptrace": 117, "mount": 40, "tkill": 130, "tgkill": 131}
    | {"unshare": 97, "clone3": 435, "io_uring_setup": 425, "pidfd_send_signal": 424},
}
OWN = 4321
CASES = [
    ("read", 0, ALLOW),
    ("write", 1, ALLOW),
    ("execve", 0, ALLOW),
    ("socket", 1, ALLOW),
    ("socketpair", 1, ALLOW),
    *[("socket", family, NOTIFY) for family in (0, 2, 10, 16, 17, 40)],
    ("socketpair", 2, NOTIFY),
    ("clone", signal.SIGCHLD, ALLOW),
    ("clone", 0x3D0F00, ALLOW),
    *[("clone", flag | signal.SIGCHLD, KILL) for flag in (0x20000, 0x10000000, 0x20000000)],
    ("clone", 0x40000000, KILL),
    ("clone3", 0, ERROR | errno.ENOSYS),
    ("io_uring_setup", 0, ERROR | errno.ENOSYS),
    ("ptrace", 0, KILL),
    ("mount", 0, KILL),
    ("unshare", 0, KILL),
]
SIGNALS = [
    ("kill", OWN, ALLOW),
    ("kill", 0, ALLOW),
    *[("kill", pid & 0xFFFFFFFF, ERROR | errno.EPERM) for pid in (-1, 1, OWN + 1, -OWN)],
    ("tgkill", OWN, ALLOW),
    ("tgkill", OWN + 1, ERROR | errno.EPERM),
    ("tkill", OWN, ERROR | errno.EPERM),
    ("pidfd_send_signal", 3, ERROR | errno.EPERM),
]


def run(program: list[Instruction], machine: int, number: int, argument: int) -> int:
    """What classic BPF returns for a call."""
    data = {0: number, 4: machine, 16: argument}
    accumulator = place = 0
    while True:
        code, if_true, if_false, value = program[place]
        place += 1
        if code == 0x20:
            accumulator = data[value]
        elif code == 0x06:
            return value
        else:
            compare = {0x15: accumulator == value, 0x35: accumulator >= value}
            compare[0x45] = bool(accumulator & value)
            place += if_true if compare[code] else if_false


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=request.param))
    name: str = request.param
    return name


def test_each_call_gets_its_answer(machine: str) -> None:
    for own, cases in ((None, CASES), (OWN, CASES + SIGNALS)):
        program = seccomp.build(True, own)
        for name, argument, action in cases:
            number = NUMBERS[machine][name]
            found = run(program, MACHINES[machine], number, argument)
            assert found == action, (name, argument, hex(found))


def test_signals_are_free_where_a_namespace_bounds_them(machine: str) -> None:
    program = seccomp.build(True, None)
    for name, argument, _ in SIGNALS:
        number = NUMBERS[machine][name]
        assert run(program, MACHINES[machine], number, argument) == ALLOW


def test_without_a_listener_the_filter_refuses_by_itself(machine: str) -> None:
    program = seccomp.build(False, None)
    number = NUMBERS[machine]["socket"]
    assert run(program, MACHINES[machine], number, 2) == ERROR | errno.EACCES


def test_calls_of_another_instruction_set_end_the_process(machine: str) -> None:
    program = seccomp.build(True, None)
    other = next(value for name, value in MACHINES.items() if name != machine)
    assert run(program, other, 0, 0) == KILL
    assert run(program, 0x40000003, 0, 0) == KILL  # i386
    assert run(program, MACHINES[machine], 0x40000000 + 1, 0) == KILL  # x32


def test_every_number_is_the_kernels() -> None:
    headers = ["/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h"]
    if not all(Path(header).is_file() for header in headers):
        pytest.skip(f"the kernel's headers are absent: {headers}")
    for column, header in enumerate(headers):
        text = Path(header).read_text()
        known = dict(re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", text, re.M))
        for name, numbers in seccomp._NUMBERS.items():
            number = numbers[column]
            assert number is None or known.get(name, str(number)) == str(number), name
