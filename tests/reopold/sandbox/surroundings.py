"""The sandbox as it is here and without namespaces, and what it left behind."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from reopold.sandbox import SandboxFailure, child, modes
from reopold.sandbox.child import Mode

#: In the environment of every process that these tests start in the sandbox.
MARK = f"reopold-litter-{secrets.token_hex(8)}"
BARE = (Mode(False, True), Mode(False, False))


child._ENVIRONMENT["REOPOLD_SANDBOX_TEST"] = MARK


def marked_processes() -> list[str]:
    """Command lines of what the sandbox of these tests runs, supervisors included."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            ours = MARK.encode() in (folder / "environ").read_bytes() or MARK in command
        except OSError:
            continue
        if ours or (parent == str(os.getpid()) and "inside.supervisor" in command):
            found.append(f"{folder.name}: {command}")
    return found


def marked_files() -> list[str]:
    """What programs of these tests left in places that anybody may write to."""
    found = []
    for folder in ("/tmp", "/var/tmp", "/dev/shm", "/", "/usr", str(Path.home())):
        names = [path.name for path in Path(folder).iterdir()] if Path(folder).is_dir() else []
        found += [f"{folder}/{name}" for name in names if MARK in name]
    return found


def mounts() -> int:
    """Mounts that this process sees."""
    return len(Path("/proc/self/mounts").read_text().splitlines())


def use(wanted: tuple[Mode, ...]) -> Callable[[], None]:
    """Have every program run in the first of these modes that works; returns what undoes it."""
    try:
        found = modes.probe(wanted)
    except SandboxFailure as error:
        pytest.skip(str(error))
    before = list(modes._found)
    modes._found[:] = [found]

    def undo() -> None:
        modes._found[:] = before

    return undo
