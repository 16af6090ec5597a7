"""Progress as files tell it, and as a terminal shows it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows.terminal import LiveTable, PlainLines, clock, line
from reopold.run_dir import RunDir, append_line
from tasks.progress import MetricsWatcher, Progress


def test_the_watcher_reads_step_reward_and_time_left(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "opd-s1")
    run.path.mkdir()
    watcher = MetricsWatcher(run, "opd", 0, 10)
    first = watcher.poll()
    assert first == Progress("opd-s1", "opd", 0, 10)
    assert watcher.poll() is None
    for step, seconds in enumerate([1.0, 3.0]):
        append_line(
            run.metrics_file,
            {"step": step, "rollout/reward": 0.1 * step, "perf/seconds_total": seconds},
        )
    assert watcher.poll() == Progress("opd-s1", "opd", 2, 10, 0.1, 16.0)


def test_plain_lines_say_start_and_end_and_not_every_step() -> None:
    stream = io.StringIO()
    lines = PlainLines(stream)
    for step in range(50):
        lines.show(Progress("opd-s1", "opd", step, 50, 0.5, 60.0))
    lines.show(Progress("opd-s1", "opd", 50, 50, 0.9, state="done"))
    assert stream.getvalue().splitlines() == [
        "[0:00] opd-s1: opd, step 0/50, reward 0.500, 1:00 left",
        "[0:00] opd-s1: opd, step 50/50, reward 0.900, done",
    ]


def test_the_live_table_shows_what_runs_and_prints_what_ended() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    table = LiveTable(console)
    with table.live:
        table.show(Progress("grpo-s2", "grpo", 7, 10, 0.25, 65.0))
        console.print(table.table())
        shown = stream.getvalue()
        table.show(Progress("grpo-s2", "grpo", 10, 10, 0.5, state="done"))
    for expected in ("grpo-s2", "7/10", "0.250", "1:05"):
        assert expected in shown
    assert not table.running
    assert "step 10/10, reward 0.500, done" in stream.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3605, "60:05")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_an_evaluation_shows_a_score_not_a_reward() -> None:
    assert line(Progress("a", "evaluation at 5", reward=0.5, state="reused")).endswith(
        "score 0.500, reused"
    )
