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
from tasks.progress import Progress, show

if TYPE_CHECKING:
    import pandas as pd


@task(name="track", task_run_name="{name} · to MLflow")
def track_run(run_dir: str, name: str, study: str) -> str:
    """Ship a run directory to MLflow; a tracker that is away costs a warning, never the run."""
    from tasks.tracking import TrackingUnavailable, ship_run

    if STOP.is_set() or RunDir(Path(run_dir)).manifest()["status"] == "new":
        return ""
    try:
        return ship_run(Path(run_dir), study=study).run_id
    except TrackingUnavailable as error:
        get_run_logger().warning("%s stays on disk until the next start: %s", name, error)
        return ""


class Compared(BaseModel):
    """A study's methods side by side, for people and for scripts."""

    text: str
    summary: dict[str, Any]


def compare(study_dir: Path) -> Compared:
    """Final scores with intervals, and in sentences what they allow to be said."""
    from evals.report import compare as compare_runs

    found = compare_runs(study_dir)
    text = "\n".join([tabulate(found.table), "", *found.reading, *found.notes])
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
    from tasks.tracking import TrackingUnavailable, ship_study

    try:
        shipped = ship_study(Path(study_dir))
    except TrackingUnavailable as error:
        get_run_logger().warning("the study stays on disk until the next start: %s", error)
        return ""
    return shipped.run_id
