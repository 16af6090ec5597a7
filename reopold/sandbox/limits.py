"""What a sandboxed program may use, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal[
    "ok", "runtime_error", "timeout", "memory", "output_limit", "forbidden", "sandbox_failure"
]


class SandboxFailure(RuntimeError):
    """The sandbox broke, twice: nothing is known about the program."""


@dataclass(frozen=True)
class Limits:
    """Per program, its children included."""

    seconds: float = 10.0
    """Wall-clock; CPU time is limited to the same, rounded up."""
    memory_bytes: int = 4 * 2**30
    """Address space of each process (RLIMIT_AS), and what all of them hold at once."""
    output_bytes: int = 1 << 20
    """Of stdout and of stderr, counted while reading; more ends the program."""
    file_bytes: int = 1 << 20
    """Largest file that it may write; in memory of its own, sixteen times that altogether."""
    processes: int = 16
    """Threads included, beyond those that the user already runs."""


@dataclass(frozen=True)
class Outcome:
    status: Status
    stdout: str
    stderr: str
    """The tail, at most `Limits.output_bytes`."""
    returncode: int | None
    seconds: float
    """Wall-clock."""
    cpu_seconds: float
    result: str | None = None
    """What the program's trusted driver reported; None where it reported nothing."""
