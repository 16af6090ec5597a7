"""What the microscope shows of a study: its recorded rollouts, and the last ones of training."""

from __future__ import annotations

import json
from pathlib import Path

from evals.report.evidence import last_rollouts
from evals.report.microscope import Group
from evals.report.pictures import picture
from evals.report.study import Run, Study
from reopold.run_dir import Record, read_lines

_WHEN = {"before": "the student before", "after": "after training"}


def groups(study: Study) -> list[Group]:
    """Recorded rollouts first, before and after on the same prompts; then those that training kept
    at the last checkpoint of each run."""
    found = []
    for run in study.runs:
        place = study.folder / "microscope" / run.name
        for when, label in _WHEN.items():
            records = _records(study, place / f"{when}.jsonl")
            if records:
                floor = records[0].get("floor")
                found.append(Group(f"{run.name}: {label}, same prompts", floor, records))
    for run in study.runs:
        for file in last_rollouts(run.directory):
            records = [each for each in _records(study, file) if _is_shown(each)]
            step = int(file.stem.removeprefix("step-"))
            if records:
                label = f"{run.name}: training rollouts of step {step}"
                found.append(Group(label, _floor(run), records))
    return found


def _records(study: Study, file: Path) -> list[Record]:
    if not file.exists():
        return []
    try:
        records = read_lines(file)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return []
    for record in records:
        shown = [picture(study, str(path)) for path in record.get("images") or []]
        record["images"] = [each for each in shown if each]
    return records


def _is_shown(record: Record) -> bool:
    return bool(record.get("tokens")) and not record.get("error")


def _floor(run: Run) -> float | None:
    """The reward floor that training had in its last step."""
    try:
        lines = read_lines(run.directory.diagnostics_file)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    floor = lines[-1].get("floor") if lines else None
    return None if floor is None else float(floor)
