"""A launched process must not outlive its launcher, which holds its slot.

Programs of ours watch their launcher. For those of others, `python -m reopold.parent PID...` does:
it ends them once its own launcher is gone (a negative PID is a process group).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

VARIABLE = "REOPOLD_PARENT_PID"


def watch_parent(on_death: Callable[[], None]) -> None:
    """Call `on_death` from a thread once the launcher that set REOPOLD_PARENT_PID is gone.

    Does nothing in a process that was started by hand.
    """
    parent = os.environ.get(VARIABLE)
    if parent is not None:
        watch(int(parent), on_death)


def watch(parent: int, on_death: Callable[[], None]) -> None:
    """Call `on_death` from a thread once `parent` is no longer our parent.

    Not PR_SET_PDEATHSIG: that fires when the *thread* that started us ends.
    """

    def poll() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        on_death()

    threading.Thread(target=poll, daemon=True).start()


def guard(processes: list[int], grace: float = 10.0) -> None:
    """Wait until all `processes` have ended; if our launcher ends first, end them.

    Args:
        grace: seconds between asking them to end and killing them.
    """
    orphaned = threading.Event()
    watch_parent(orphaned.set)
    while not orphaned.wait(0.5):
        if not any(_signal(process, 0) for process in processes):
            return
    for process in processes:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and any(_signal(process, 0) for process in processes):
        time.sleep(0.1)
    for process in processes:
        _signal(process, signal.SIGKILL)


def _signal(process: int, number: int) -> bool:
    """Whether there was such a process."""
    with suppress(ProcessLookupError):
        os.kill(process, number)
        return True
    return False


if __name__ == "__main__":
    guard([int(argument) for argument in sys.argv[1:]])
