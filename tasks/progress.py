"""Progress of the running stages, for whoever shows it (a terminal, or nobody)."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from reopold.run_dir import RunDir

#: Steps that the estimate of the time left is averaged over.
RECENT_STEPS = 20


@dataclass(frozen=True)
class Progress:
    """Where one stage is.

    Args:
        name: the run, for example `reopold-s1`.
        stage: what it is doing, for example `exploration`.
        step, steps: completed and wanted; 0 of 0 where a stage has no steps.
        reward: newest mean outcome reward of the rollouts, if any.
        seconds_left: estimate; None before there is one.
        state: running, done, reused or failed; of an alarm what it does (warn, pause, ...).
    """

    name: str
    stage: str
    step: int = 0
    steps: int = 0
    reward: float | None = None
    seconds_left: float | None = None
    state: str = "running"


class Display(Protocol):
    def show(self, progress: Progress) -> None: ...

    def tell(self, text: str) -> None: ...


class Silent:
    def show(self, progress: Progress) -> None:
        """Nobody looks."""

    def tell(self, text: str) -> None:
        """Nobody listens."""


_display: Display = Silent()


def use_display(display: Display) -> None:
    """Send the progress of every stage of this process to `display`."""
    global _display
    _display = display


def show(progress: Progress) -> None:
    _display.show(progress)


def tell(text: str) -> None:
    """Say a sentence that is no stage's progress: a tracker that has gone, and come back."""
    _display.tell(text)


class MetricsWatcher:
    """Reads what is new in a metrics.jsonl, and turns it into progress."""

    def __init__(self, run: RunDir, stage: str, first: int, until: int) -> None:
        self.run, self.stage, self.first, self.until = run, stage, first, until
        self.size = -1

    def poll(self) -> Progress | None:
        """The newest progress, or None if nothing was written since the last call."""
        size = self.run.metrics_file.stat().st_size if self.run.metrics_file.exists() else 0
        if size == self.size:
            return None
        self.size = size
        lines = self.run.metrics()
        done = lines[-1]["step"] + 1 if lines else self.first
        reward = lines[-1].get("rollout/reward") if lines else None
        recent = [line["perf/seconds_total"] for line in lines[-RECENT_STEPS:]]
        left = fmean(recent) * (self.until - done) if recent else None
        return Progress(self.run.path.name, self.stage, done, self.until, reward, left)
