"""Runs that MLflow believes to be running: which they are, and how to close those that are not.

A trainer or a flow that was killed leaves its run RUNNING for ever: whoever outlives it closes it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reopold.run_dir import RunDir
from tasks import home
from tasks import tracking_records as records
from tasks.tracking import state
from tasks.tracking.client import (
    ATTEMPT,
    IDENTITY,
    PARENT,
    RUN_DIR,
    STUDY_PARENT,
    find_runs,
    get_run,
    reaching,
    set_status,
    statuses,
)

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class OpenRun:
    """A run of ours with status RUNNING.

    Args:
        name: of the run in MLflow.
        run_dir: its folder, there or not; None for the parent run of a study.
    """

    run_id: str
    name: str
    study: str
    run_dir: Path | None


def open_runs() -> list[OpenRun]:
    """Ours that are RUNNING in MLflow: those of run directories, then those of studies.

    Raises:
        TrackingUnavailable: MLflow is away or refuses.
    """
    with reaching() as client:
        experiments = [each.experiment_id for each in client.search_experiments()]
        found = client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=5_000)
    ours = [
        OpenRun(
            run_id=run.info.run_id,
            name=run.info.run_name or "",
            study=run.data.tags.get("study", ""),
            run_dir=home.home() / run.data.tags[RUN_DIR] if RUN_DIR in run.data.tags else None,
        )
        for run in found
        if {IDENTITY, STUDY_PARENT} & run.data.tags.keys()
    ]
    return sorted(ours, key=lambda run: (run.run_dir is None, run.study, run.name))


def close_run(run: OpenRun) -> str:
    """End in MLflow a run that nobody is at work on; close the runs of a study before its parent.

    Returns:
        Its status now: by its manifest; KILLED where that says running (its trainer died) or the
        folder is gone; RUNNING for a study that has open runs still. `deleted` for a run that is
        another one's twin.

    Raises:
        TrackingUnavailable: MLflow is away or refuses.
    """
    with reaching() as client:
        there = get_run(client, run.run_id)
        if there is None:
            return "deleted"
        if STUDY_PARENT in there.data.tags:
            children = find_runs(client, there.info.experiment_id, PARENT, run.run_id)
            status, ended = records.study_status(statuses(children) or ["KILLED"]), time.time()
        elif run.run_dir is None or not (run.run_dir / "config.json").exists():
            status, ended = "KILLED", time.time()
        else:
            found = state.snapshot(RunDir(run.run_dir))
            if _is_twin(there, run.run_dir, found):
                client.delete_run(run.run_id)
                return "deleted"
            status, ended = found.status(under_way=False), found.ended
            status = "KILLED" if status == "SCHEDULED" else status
        set_status(client, there, status, ended)
        return status


def _is_twin(run: Run, run_dir: Path, found: state.Snapshot) -> bool:
    """Whether the folder ships to another run: this one was made by a request sent twice."""
    cursor = state.Cursor.load(run_dir, os.environ["MLFLOW_TRACKING_URI"])
    names = (found.identity(RunDir(run_dir)), str(cursor.attempt))
    same = (run.data.tags[IDENTITY], run.data.tags.get(ATTEMPT, "0")) == names
    return same and bool(cursor.run_id) and cursor.run_id != run.info.run_id
