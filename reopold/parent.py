"""A launched process must not outlive its launcher, which holds its slot."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

VARIABLE = "REOPOLD_PARENT_PID"


def watch_parent(on_death: Callable[[], None]) -> None:
    """Call `on_death` from a thread once the launcher that set REOPOLD_PARENT_PID is gone.

    Does nothing in a process that was started by hand.
    """
    parent = os.environ.get(VARIABLE)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        on_death()

    threading.Thread(target=watch, daemon=True).start()
