"""How far programs are cut off on this machine; found out once, by trying."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any, Literal

from reopold.sandbox.child import Broken, Child, Job, Mode
from reopold.sandbox.limits import Limits, SandboxFailure

#: The strictest first.
MODES = (Mode(True, True), Mode(False, True), Mode(False, False))

_lock = threading.Lock()
_found: list[tuple[Mode, Isolation]] = []


@dataclass(frozen=True)
class Isolation:
    """What stands between a program and the rest of this machine."""

    network: Literal["absent", "refused", "open"]
    """absent: a network namespace without interfaces, and no sockets but AF_UNIX. refused: no
    sockets but AF_UNIX, and those reach the machine's own. open: nothing is in the way."""
    processes: Literal["hidden", "shielded", "open"]
    """hidden: a PID namespace. shielded: others are seen but get no signals. open: those of the
    same user can be killed."""
    files: Literal["hidden", "refused", "open"]
    """hidden: a root of its own, with room for a bounded amount. refused: by Landlock; how much is
    written into its folder is not bounded. open: what the user may read and write."""
    user: Literal["own", "same", "root"]
    """own: an unprivileged user for each program. same: the platform's (in namespaces, a user
    namespace takes its rights outside away). root: the platform's, which is root, though without
    its capabilities."""
    calls: bool
    """Whether system calls are filtered."""

    @property
    def complete(self) -> bool:
        """Whether a program can reach nothing outside, as far as the kernel keeps its word."""
        hidden = self.processes == "hidden" and self.files == "hidden"
        return hidden and self.network == "absent" and self.calls

    @property
    def text(self) -> str:
        """One line for people and records."""
        calls = "filtered" if self.calls else "not filtered"
        return (
            f"sandbox {'complete' if self.complete else 'PARTIAL'}: network {self.network}, "
            f"processes {self.processes}, files {self.files}, user {self.user}, "
            f"system calls {calls}"
        )


def isolation() -> Isolation:
    """What holds on this machine.

    Raises:
        SandboxFailure: nothing can be run at all.
    """
    return _find()[1]


def mode() -> Mode:
    """The strictest that works here.

    Raises:
        SandboxFailure: nothing can be run at all.
    """
    return _find()[0]


def _find() -> tuple[Mode, Isolation]:
    with _lock:
        if not _found:
            _found.append(probe())
        return _found[0]


def probe(modes: tuple[Mode, ...] = MODES) -> tuple[Mode, Isolation]:
    """The first of these modes in which a program runs, and what holds in it.

    Raises:
        SandboxFailure: there is none.
    """
    errors = []
    for candidate in modes:
        job = Job(Limits(seconds=30.0), seconds=30.0, code="print('here')")
        try:
            with Child(candidate, job) as child:
                child.read(None)
        except (Broken, OSError) as error:
            errors.append(str(error))
            continue
        if child.report["returncode"] == 0 and child.stdout.text() == "here\n":
            return candidate, _describe(candidate, child.report)
        errors.append(child.stderr.text().strip() or str(child.report))
    raise SandboxFailure(f"no program can be run here: {'; '.join(errors)}")


def _describe(found: Mode, report: dict[str, Any]) -> Isolation:
    filtered = bool(report["filtered"])
    own = bool(report["own_user"])
    shielded = own or filtered
    bare_files: Literal["refused", "open"] = "refused" if report["landlock"] else "open"
    return Isolation(
        network="absent" if found.namespaces else "refused" if filtered else "open",
        processes="hidden" if found.namespaces else "shielded" if shielded else "open",
        files="hidden" if found.namespaces else bare_files,
        user="own" if own else "same" if os.geteuid() != 0 else "root",
        calls=filtered,
    )
