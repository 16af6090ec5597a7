"""Runs that MLflow shows as running although nobody is at work on them, and data it does not have.

The tracking server may be shared: another machine's run of the same name is none of ours, and a
run whose folder is not here may well be at work elsewhere. Only a database in the home is all ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from reopold.run_dir import RunDir
from tasks import tracking
from tasks.alive import FlowFile, at_work_on, flow_files
from tasks.findings import Finding
from tasks.home import configure_mlflow, home, relative
from tasks.tracking import OpenRun
from tasks.tracking.state import Cursor


def mlflow_runs() -> Iterator[Finding]:
    """Open runs, what waits on disk, and open studies, which end after their runs."""
    configure_mlflow()
    flows = flow_files()
    try:
        open_runs = _open_runs()
    except tracking.TrackingUnavailable as error:
        yield Finding(
            check="MLflow",
            where=os.environ["MLFLOW_TRACKING_URI"].rpartition("@")[2],
            found=str(error),
            mend="start it, or correct MLFLOW_TRACKING_URI; nothing is lost meanwhile",
        )
        yield from _waiting(flows, set())
        return
    runs = [run for run in open_runs if run.run_dir is not None]
    yield from _open(runs, open_runs, flows)
    yield from _waiting(flows, {run.run_dir for run in runs})
    # Once more: what was sent may have made a study, and what was closed lets another one end.
    open_runs = _open_runs()
    yield from _open([run for run in open_runs if run.run_dir is None], open_runs, flows)


def _open(
    runs: list[OpenRun], open_runs: list[OpenRun], flows: list[FlowFile]
) -> Iterator[Finding]:
    for run in runs:
        if _at_work(run, flows):
            continue
        ours = _is_ours(run, open_runs)
        # A single run's study is nobody's to end: no flow of it ever does.
        planned = run.run_dir or home() / "studies" / run.study / "study.json"
        yield Finding(
            check="MLflow",
            where=f"{run.study}: {run.name}" if run.run_dir else f"{run.study}: the study",
            found="it is open, and nobody is at work on it" if ours else "it is open",
            mend="send what it lacks, and close it" if ours else "look on the machine it is from",
            fault=ours and planned.exists(),
            fix=partial(_close, run) if ours else None,
        )


def _waiting(flows: list[FlowFile], seen: set[Path | None]) -> Iterator[Finding]:
    """Data that MLflow does not have, of runs that nobody is at work on."""
    for study in sorted(home().glob("studies/*")):
        for waits in tracking.waiting(study):
            path = waits.run_dir
            idle = RunDir(path).holder() is None and not at_work_on(path, flows)
            if idle and path not in seen:
                yield Finding(
                    check="MLflow",
                    where=relative(path),
                    found=f"MLflow does not have {waits}",
                    mend="send it",
                    fix=partial(tracking.ship_run, path),
                )


def _open_runs() -> list[OpenRun]:
    """A database that is not there has no runs, and to ask it would make it."""
    return tracking.open_runs() if not _in_home() or _database().exists() else []


def _in_home() -> bool:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    return uri.startswith("sqlite:") and _database().resolve().is_relative_to(home())


def _database() -> Path:
    return Path(os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///"))


def _at_work(run: OpenRun, flows: list[FlowFile]) -> bool:
    if run.run_dir is not None:
        return RunDir(run.run_dir).holder() is not None or at_work_on(run.run_dir, flows)
    study = home() / "studies" / run.study
    held = (RunDir(file.parent).holder() for file in study.glob("runs/*/config.json"))
    return any(holder is not None for holder in held) or at_work_on(study, flows)


def _is_ours(run: OpenRun, open_runs: list[OpenRun]) -> bool:
    """Whether this home made the run, so that this kernel knows whether it is alive."""
    if _in_home():
        return True
    if run.run_dir is not None:
        cursor = Cursor.load(run.run_dir, os.environ["MLFLOW_TRACKING_URI"])
        return cursor.run_id == run.run_id
    children = [each for each in open_runs if each.run_dir is not None and each.study == run.study]
    here = (home() / "studies" / run.study).is_dir()
    return here and all(_is_ours(child, open_runs) for child in children)


def _close(run: OpenRun) -> None:
    if run.run_dir is not None and (run.run_dir / "config.json").exists():
        tracking.ship_run(run.run_dir)
    tracking.close_run(run)
