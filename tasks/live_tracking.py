"""Ships runs to MLflow while they train, from one thread of this process that nothing waits for.

MLflow may be away at the start, in the middle or at the end: training goes on, the run directories
keep what it lacks, and the thread asks again, ever more rarely. It says so once when MLflow goes
away and once when it is back. One thread for all runs: ten that write to one SQLite file at once
would wait for each other's locks, and ten that ask a dead server learn the same thing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from reopold.run_dir import RunDir
from tasks.launch import Interrupted
from tasks.progress import tell
from tasks.tracking import ShipReport, TrackingUnavailable, ship_run
from tasks.tracking_records import counted

#: Seconds between shipments of a run; and at most, while MLflow is away.
INTERVAL, LONGEST = 30.0, 300.0
#: Seconds that a stage which failed or was stopped waits for its last shipment.
PATIENCE = 3.0

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


@contextmanager
def shipping(run_dir: Path, logger: Logger) -> Iterator[None]:
    """Ship `run_dir` every half minute while the block runs, and once more at its end.

    It raises nothing of its own. Only a block that fails waits for its last shipment, and for no
    more than :data:`PATIENCE` seconds.

    Args:
        logger: of the stage; the terminal is told, too.
    """
    watched = _SHIPPER.watch(run_dir, logger)
    ended = True
    try:
        yield
        ended = False  # the flow goes on with the run: it evaluates, or trains its next stage
    finally:
        _SHIPPER.leave(watched, ended)
        if ended and LINK.why is None:  # the command is about to end: MLflow should know how
            watched.done.wait(PATIENCE)


def ship_last(run_dir: Path, logger: Logger) -> None:
    """What `shipping` does when its block fails: for a run whose flow ends early."""
    with suppress(Interrupted), shipping(run_dir, logger):
        raise Interrupted


def over(run_dir: Path) -> None:
    """No flow is at work on the run from now on: what is still to be shipped of it says so."""
    _SHIPPER.over(run_dir)


class Link:
    """Whether MLflow takes what this process sends. Said once when it changes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.why: str | None = None
        """Why MLflow is away; None while it is not."""
        self.since = 0.0

    def lost(self, error: TrackingUnavailable, logger: Logger) -> None:
        with self.lock:
            known, self.why = self.why is not None, error.why
            if known:
                return
            self.since = time.monotonic()
        text = f"{error}. Training goes on; what MLflow lacks waits in the run directories"
        logger.warning(text)
        tell(text)

    def works(self, reports: Sequence[ShipReport], logger: Logger) -> None:
        with self.lock:
            if self.why is None:
                return
            self.why, seconds = None, time.monotonic() - self.since
        sent = [
            counted(sum(each.steps_sent for each in reports), "step"),
            counted(sum(each.evaluations_sent for each in reports), "evaluation"),
        ]
        text = f"MLflow is back after {seconds:.0f} s"
        if any(sent):
            names = ", ".join(each.name for each in reports)
            text += f" and has what waited: {' and '.join(filter(None, sent))} of {names}"
        logger.info(text)
        tell(text)


#: This process's.
LINK = Link()


@contextmanager
def reporting(logger: Logger) -> Iterator[list[ShipReport]]:
    """Ship in the block and add the reports to the list; that MLflow is away ends the block."""
    reports: list[ShipReport] = []
    try:
        yield reports
    except TrackingUnavailable as error:
        LINK.lost(error, logger)
    else:
        LINK.works(reports, logger)


@dataclass
class _Watched:
    """A run that trains, or whose last shipment is still to be made."""

    run_dir: Path
    logger: Logger
    due: float = 0.0
    """On the monotonic clock."""
    leaving: bool = False
    ended: bool = False
    """Nobody goes on with the run."""
    seen: tuple[object, ...] = ()
    """What the folder looked like at the last shipment."""
    told: str = ""
    done: threading.Event = field(default_factory=threading.Event)

    def ship(self) -> ShipReport | None:
        """Send what is new; None if nothing is."""
        run = RunDir(self.run_dir)
        looks = (*_looks(run), self.ended)
        if looks == self.seen or run.manifest()["status"] == "new":
            return None
        report = ship_run(self.run_dir, under_way=not self.ended)
        self.seen = looks
        return report

    def complain(self, error: Exception) -> None:
        text = f"{self.run_dir.name} is not shipped to MLflow: {type(error).__name__}: {error}"
        if text != self.told:
            self.told = text
            self.logger.warning(text)
            tell(text)


class _Shipper:
    """The thread, and the runs it looks after. It ends when there are none."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.runs: list[_Watched] = []
        self.thread: threading.Thread | None = None
        self.pause, self.not_before = INTERVAL, 0.0

    def watch(self, run_dir: Path, logger: Logger) -> _Watched:
        watched = _Watched(run_dir, logger, due=time.monotonic() + INTERVAL)
        with self.changed:
            # What an earlier stage of the run could not send goes with this one's.
            self.runs = [each for each in self.runs if each.run_dir != run_dir]
            self.runs.append(watched)
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, name="to MLflow", daemon=True)
                self.thread.start()
        return watched

    def leave(self, watched: _Watched, ended: bool) -> None:
        with self.changed:
            watched.leaving, watched.ended, watched.due = True, ended, 0.0
            self.changed.notify()

    def over(self, run_dir: Path) -> None:
        with self.changed:
            for each in self.runs:
                each.ended |= each.run_dir == run_dir

    def _work(self) -> None:
        while due := self._await():
            sent = []
            try:
                for watched in due:
                    if report := self._turn(watched):
                        sent.append(report)
            except TrackingUnavailable as error:
                self._back_off(watched)
                LINK.lost(error, watched.logger)
            else:
                self.pause = INTERVAL
                if sent:
                    LINK.works(sent, due[0].logger)

    def _await(self) -> list[_Watched]:
        """The runs whose turn it is, the longest overdue first; none where none are left."""
        with self.changed:
            while self.runs:
                now = time.monotonic()
                ready = max(self.not_before, min(each.due for each in self.runs))
                if ready <= now:
                    due = [each for each in self.runs if each.due <= now]
                    return sorted(due, key=lambda each: each.due)
                self.changed.wait(ready - now)
            self.thread = None
            return []

    def _turn(self, watched: _Watched) -> ShipReport | None:
        last, report = watched.leaving, None
        try:
            report = watched.ship()
        except TrackingUnavailable:
            raise
        except Exception as error:  # whatever it is, it must not end the training
            watched.complain(error)
        with self.changed:
            if last:
                self.runs = [each for each in self.runs if each is not watched]
                watched.done.set()
            elif not watched.leaving:  # else it has just left, and has one shipment to go
                watched.due = time.monotonic() + INTERVAL
        return report

    def _back_off(self, watched: _Watched) -> None:
        """Nobody is asked again before long; then all, and first the others than `watched`."""
        with self.changed:
            self.not_before = time.monotonic() + self.pause
            self.pause = min(2 * self.pause, LONGEST)
            for each in self.runs:
                each.due = 0.0
            self.runs.sort(key=lambda each: each is watched)


_SHIPPER = _Shipper()


def _looks(run: RunDir) -> tuple[object, ...]:
    """Changes whenever there is something to send."""
    files = [run.config_file, run.changes_file, run.manifest_file, run.metrics_file]
    files += [run.events_file, *sorted(run.path.glob("eval/*/*/results.json"))]
    stats = [file.stat() for file in files if file.exists()]
    return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)
