"""How a running flow looks in a terminal: a live table, or plain lines where there is none."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from evals.benchmarks.catalogue import Entry
from reopold.preflight import Check
from tasks.findings import Finding
from tasks.home import amount
from tasks.plan import Plan
from tasks.progress import Progress, Silent, use_display

if TYPE_CHECKING:  # it brings matplotlib, which must not start before its folder is set
    from evals.report.verify import Checked

#: Seconds between plain lines about one running stage.
LINE_SECONDS = 10.0


class PlainLines:
    """One line when a stage starts, every ten seconds while it runs, and when it ends."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.lock = stream, threading.Lock()
        self.started = time.monotonic()
        self.last: dict[str, float] = {}

    def show(self, progress: Progress) -> None:
        key = f"{progress.name} {progress.stage}"
        now = time.monotonic()
        with self.lock:
            if (
                progress.state == "running"
                and now - self.last.get(key, -LINE_SECONDS) < LINE_SECONDS
            ):
                return
            self.last[key] = now
            self._print(now, line(progress))

    def tell(self, text: str) -> None:
        with self.lock:
            self._print(time.monotonic(), text)

    def _print(self, now: float, text: str) -> None:
        print(f"[{clock(now - self.started)}] {text}", file=self.stream, flush=True)


class LiveTable:
    """The stages at work with bar, newest reward and time left; ended ones scroll up."""

    def __init__(self, console: Console) -> None:
        self.console, self.lock = console, threading.Lock()
        self.started = time.monotonic()
        self.running: dict[str, Progress] = {}
        self.live = Live(console=console, refresh_per_second=4, get_renderable=self.table)

    def show(self, progress: Progress) -> None:
        key = f"{progress.name} {progress.stage}"
        with self.lock:
            if progress.state == "running":
                self.running[key] = progress
                return
            self.running.pop(key, None)
        self.tell(line(progress))

    def tell(self, text: str) -> None:
        passed = clock(time.monotonic() - self.started)
        self.live.console.print(f"[{passed}] {text}", highlight=False, markup=False)

    def table(self) -> Table:
        with self.lock:
            running = list(self.running.values())
        table = Table(box=None, padding=(0, 1), show_header=bool(running))
        for column in ("run", "stage", "", "step", "reward", "left"):
            table.add_column(
                column, justify="right" if column in ("step", "reward", "left") else "left"
            )
        for p in running:
            table.add_row(
                p.name,
                p.stage,
                ProgressBar(total=p.steps, completed=p.step, width=24) if p.steps else "",
                f"{p.step}/{p.steps}" if p.steps else "",
                "" if p.reward is None else f"{p.reward:.3f}",
                "" if p.seconds_left is None else clock(p.seconds_left),
            )
        return table


@contextmanager
def display(quiet: bool = False) -> Iterator[None]:
    """Show progress on stderr while the block runs; stdout is left to results."""
    console = Console(stderr=True)
    if quiet:
        use_display(Silent())
        yield
    elif console.is_terminal:
        table = LiveTable(console)
        use_display(table)
        with table.live:
            yield
    else:
        use_display(PlainLines(sys.stderr))
        yield
    use_display(Silent())


def show_benchmarks(entries: Sequence[Entry]) -> None:
    """A table of every benchmark, on stdout."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("benchmark", "family", "items", "metric", "rules", "data"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        items = str(entry.items[0]) if entry.items else "any"
        items += " or a known part" if len(entry.items) > 1 else ""
        metric = entry.metric.replace("@k", f"@{entry.samples}")
        rules = ", ".join(entry.rules)
        table.add_row(entry.name, entry.family, items, metric, rules, escape(entry.found))
    Console().print(table)


def line(progress: Progress) -> str:
    parts = [f"{progress.name}: {progress.stage}"]
    if progress.steps:
        parts.append(f"step {progress.step}/{progress.steps}")
    if progress.reward is not None:
        parts.append(
            f"{'score' if 'evaluation' in progress.stage else 'reward'} {progress.reward:.3f}"
        )
    if progress.state == "running" and progress.seconds_left is not None:
        parts.append(f"{clock(progress.seconds_left)} left")
    if progress.state != "running":
        parts.append(progress.state)
    return ", ".join(parts)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def show_findings(found: Sequence[Finding]) -> None:
    """The table of `reopold doctor`; nothing where nothing was found."""
    if not found:
        return
    table = Table("check", "where", "found", "mend", "", box=box.SIMPLE_HEAD)
    colours = {"mended": "green", "failed": "bold red", "note": "dim"}
    for each in found:
        outcome = f"[{colours.get(each.outcome, 'yellow')}]{each.outcome}[/]"
        table.add_row(
            each.check, escape(each.where), escape(each.found), escape(each.mend), outcome
        )
    Console(stderr=True).print(table)


def show_checks(found: Sequence[Check]) -> None:
    """The table of `reopold preflight`; nothing where nothing is to be said."""
    if found:
        heads = ("check", "result", "found", "how to mend it")
        _show_results(heads, [(c.name, c.status, c.found, c.mend) for c in found])


def show_checked(found: Sequence[Checked]) -> None:
    """The table of `reopold report verify`."""
    heads = ("check", "result", "where", "found")
    _show_results(heads, [(c.check, c.verdict, c.where, c.found) for c in found])


def _show_results(heads: Sequence[str], rows: Sequence[tuple[str, str, str, str]]) -> None:
    """A table on stderr whose second column is a result."""
    table = Table(*heads, box=box.SIMPLE_HEAD)
    colours = {"pass": "green", "warn": "yellow", "skip": "yellow", "fail": "bold red"}
    for name, result, third, fourth in rows:
        shown = f"[{colours[result]}]{result}[/]"
        table.add_row(name, shown, escape(third), escape(fourth))
    Console(stderr=True).print(table)


def show_plan(plan: Plan, where: str) -> None:
    """What a study will do, on stderr: stdout is left to results."""
    table = Table("arm", "settings", "runs", "samples", "hours", "disk", box=box.SIMPLE_HEAD)
    for row in plan.rows:
        done = f" ({row.done} done)" if row.done else ""
        table.add_row(
            row.arm,
            escape(row.settings),
            f"{row.runs}{done}",
            f"{row.samples:,}",
            "?" if row.device_hours is None else f"{row.device_hours:.2f}",
            amount(row.disk_bytes),
        )
    hours = "?" if plan.device_hours is None else f"{plan.device_hours:.2g}"
    console = Console(stderr=True)
    console.print(table)
    device = "GPU" if plan.estimated else "one GPU (or CPU core)"
    console.print(
        f"{where}: {plan.runs} runs, {plan.samples:,} samples, about {hours} "
        f"hours of {device}{plan.estimated}, {amount(plan.disk_bytes)} of checkpoints",
        highlight=False,
        markup=False,
    )
