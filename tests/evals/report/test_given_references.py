"""A study whose models are given: what the report says of models that nobody trained here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from synthetic import Synthetic, write_study

from evals.report import build_report
from evals.report.analysis import score_table
from evals.report.study import load_study


def given(folder: Path, *roles: str) -> Path:
    """A synthetic study as if its models had been given: no runs of theirs, only evaluations."""
    write_study(folder, Synthetic(methods=("opd", "grpo"), seeds=(1,), questions=12, steps=4))
    file = folder / "study.json"
    raw = json.loads(file.read_text()) | {"data": {"train": "./train.jsonl"}}
    raw["model"] |= {role: f"./models/{role}" for role in roles}
    file.write_text(json.dumps(raw), encoding="utf-8")
    for role in ("student", "teacher"):
        if role in roles:
            target = folder / "references" / role
            shutil.copytree(folder / "runs" / role / "eval" / "step-000004", target)
        shutil.rmtree(folder / "runs" / role)
    return folder


def test_given_models_have_scores_and_no_training(tmp_path: Path) -> None:
    folder = given(tmp_path / "study", "student", "teacher")
    study = load_study(folder)
    assert study.notes == []
    assert [(run.name, run.steps, run.given) for run in study.everyone] == [
        ("student", 0, True),
        ("teacher", 0, True),
        ("opd-s1", 4, False),
        ("grpo-s1", 4, False),
    ]
    own = json.loads((folder / "references/teacher/micro_maths/results.json").read_text())
    (average,) = [each["value"] for each in own["scores"] if each["metric"] == "avg@k"]
    table = score_table(study)
    rows = table[(table["method"] == "teacher") & (table["metric"] == "avg@k")]
    assert rows["checkpoint_step"].to_list() == [0]
    assert rows["value"].to_list() == pytest.approx([average])


def test_the_report_tells_no_run_of_them(tmp_path: Path) -> None:
    folder = given(tmp_path / "study", "student", "teacher")
    html = build_report(folder).read_text(encoding="utf-8")
    assert "No alarms: none of 2 runs raised one." in html
    assert "alarms are not known" not in html and "differs: " not in html
    runs = json.loads((folder / "report/report.json").read_text())["runs"]
    told = {run["run"]: (run["status"], run["steps"], run["config_digest"] == "") for run in runs}
    assert told["student"] == told["teacher"] == ("given", 0, True)
    assert told["opd-s1"] == ("finished", 4, False)


def test_no_teacher_is_missed_where_none_was_given(tmp_path: Path) -> None:
    study = load_study(given(tmp_path / "study", "student"))
    assert list(study.references) == ["student"]
    assert study.notes == []


def test_a_reference_that_is_not_evaluated_yet_is_named(tmp_path: Path) -> None:
    folder = given(tmp_path / "study", "student", "teacher")
    shutil.rmtree(folder / "references/teacher")
    notes = load_study(folder).notes
    assert notes == ["Run teacher has no evaluation on micro_maths yet."]
