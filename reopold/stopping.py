"""Asking a process to stop, and noticing it in the middle of long work."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from reopold.parent import watch_parent

EXIT_STOPPED = 3

ShouldStop = Callable[[], bool]


class StopRequested(Exception):
    """Raised where work is given up because a stop was asked for; what was begun is not lost."""


def never() -> bool:
    return False


def check(should_stop: ShouldStop) -> None:
    """Raises StopRequested once a stop is asked for."""
    if should_stop():
        raise StopRequested


class StopFlag:
    """Set by SIGTERM or SIGINT, or when the launching process has died; calling it tells."""

    def __init__(self) -> None:
        self.requested = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)
        watch_parent(self._ask)

    def __call__(self) -> bool:
        return self.requested

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:  # a second signal does not wait: what is on disk is enough to go on
            os._exit(EXIT_STOPPED)
        self.requested = True

    def _ask(self) -> None:
        self.requested = True
