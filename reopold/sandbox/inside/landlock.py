"""Fewer files for a program where it cannot have a root of its own: Landlock (Linux 5.13).

It needs no privilege. It also takes ptrace and /proc/PID of processes outside away.
"""

# Every program waits for these imports; pathlib would take longer than all others together.
from __future__ import annotations

import ctypes
import os

from .kernel import PR_SET_NO_NEW_PRIVS, prctl, syscall

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on every architecture
_ACCESSES = {1: 0x1FFF, 2: 0x3FFF}  # by version of the interface; from the third on:
_ALL = 0x7FFF
_READ = 0b1101  # execute, read a file, read a folder
_FILE_ALONE = 0b0111 | 0x4000  # what a rule on a plain file may grant


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled", ctypes.c_uint64),)


class _Rule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """Of the kernel's interface; 0 where it has none."""
    try:
        return syscall("landlock", _CREATE, 0, 0, 1)
    except OSError:
        return 0


def restrict(readable: list[str], writable: list[str]) -> None:
    """Leave this process and all that it starts these paths and what lies below them, for good.

    Raises:
        OSError: the kernel has no Landlock.
    """
    handled = _ACCESSES.get(version(), _ALL)
    size = ctypes.sizeof(_Ruleset)
    ruleset = syscall("landlock", _CREATE, ctypes.pointer(_Ruleset(handled)), size, 0)
    for paths, access in ((readable, _READ), (writable, _ALL)):
        for path in paths:
            if os.path.exists(path):
                _allow(ruleset, path, access & handled)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    syscall("landlock", _RESTRICT, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        granted = access if os.path.isdir(path) else access & _FILE_ALONE
        syscall("landlock", _ADD_RULE, ruleset, 1, ctypes.pointer(_Rule(granted, place)), 0)
    finally:
        os.close(place)
