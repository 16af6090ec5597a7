"""Prefect tasks over a whole study: tracking, comparison, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from pydantic import BaseModel

from reopold.run_dir import RunDir
from tasks.launch import STOP
from tasks.live_tracking import LINK, over, reporting, ship_last
from tasks.progress import Progress, show
from tasks.tracking import ship_run, ship_study, waiting, waiting_run

if TYPE_CHECKING:
    import pandas as pd


@task(name="track", task_run_name="{name} · to MLflow")
def track_run(run_dir: str, name: str) -> str:
    """Ship what is left of a run, and its end; "" if MLflow is away: that never costs the run."""
    run, logger = Path(run_dir), get_run_logger()
    if RunDir(run).manifest()["status"] == "new":
        return ""
    over(run)
    if STOP.is_set():  # the command is about to end: seconds for MLflow, the disk keeps the rest
        if waiting_run(run):
            ship_last(run, logger)
        return ""
    with reporting(logger) as reports:
        reports.append(ship_run(run))
    return reports[0].run_id if reports else ""


class Compared(BaseModel):
    """A study's methods side by side, for people and for scripts."""

    text: str
    summary: dict[str, Any]


def compare(study_dir: Path) -> Compared:
    """Final scores with intervals, and in sentences what they allow to be said."""
    from evals.report import compare as compare_runs

    found = compare_runs(study_dir)
    lines = []
    for part in found.parts:
        title = [part.benchmark] if len(found.parts) > 1 else []
        lines += [*title, tabulate(part.table), "", *part.reading, ""]
    text = "\n".join([*lines, *found.notes]).rstrip()
    return Compared(text=text, summary=found.summary)


def tabulate(table: pd.DataFrame) -> str:
    """A plain table that fits any terminal: one column a method where rows are few."""
    return table.set_index(table.columns[0]).T.to_string()


@task(name="compare")
def compare_study(study_dir: str) -> Compared:
    """The comparison, also as an artifact on Prefect's page."""
    compared = compare(Path(study_dir))
    create_markdown_artifact(
        f"```\n{compared.text}\n```", key="comparison", description="final scores"
    )
    return compared


@task(name="report")
def write_report(study_dir: str) -> str:
    """Write the report folder; returns the path of index.html."""
    from evals.report import build_report

    show(Progress("study", "report"))
    index = build_report(Path(study_dir))
    create_markdown_artifact((index.parent / "report.md").read_text(encoding="utf-8"), key="report")
    show(Progress("study", "report", state="done"))
    return str(index)


@task(name="track-study", task_run_name="study to MLflow")
def track_study(study_dir: str) -> str:
    """Ship what is left and the report folder; returns the study's run id, "" if MLflow is away."""
    shipped = None
    with reporting(get_run_logger()) as reports:
        shipped = ship_study(Path(study_dir))
        reports += shipped.runs
    return shipped.run_id if shipped else ""


def tracked(folder: Path) -> str:
    """At the end of a command: where to look, or what MLflow lacks, why, and what sends it.

    Args:
        folder: a run directory or a study.
    """
    run = waiting_run(folder) if (folder / "config.json").exists() else None
    waits = [run] if run else waiting(folder)
    if not waits and LINK.why is None:
        return "MLflow and Prefect: make dashboard"
    why = f" ({LINK.why})" if LINK.why else ""
    lines = [f"Not in MLflow yet{why}; nothing is lost, it waits in the run directories:"]
    lines += [f"  {each}" for each in waits] or ["  the report"]
    return "\n".join([*lines, "To send it: the same command again, or reopold doctor --fix"])
