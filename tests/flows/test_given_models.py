"""A study of models that are given, through the command: plan, references, arms, report, verify."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evals.results import Results, read_results
from reopold.provenance import checkpoint_digest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

PROGRAM = Path(sys.executable).with_name("reopold")

STUDY = """
name: given
methods: [opd, sft]
baseline: sft
seeds: [5]
model: {{student: ./models/student, teacher: {models}/teacher}}
data: {{train: ./prompts.jsonl}}
sft_data: {solutions}
sampling: {{prompts_per_step: 4, rollouts_per_prompt: 2, max_new_tokens: 8}}
train: {{steps: 4, checkpoint_every: 4, micro_batch: 8}}
evaluation: {{data: ./test.jsonl, samples: 2, max_new_tokens: 8}}
scaling: {{samples: 3, methods: [opd]}}
microscope: {{prompts: 2, arms: [opd]}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, suite: Path) -> Path:
    """A folder with models, prompts and test problems of its own, and the study file."""
    place = tmp_path_factory.mktemp("given")
    (place / "home").mkdir()
    (place / "models").mkdir()
    for role in ("student", "teacher"):
        (place / "models" / role).symlink_to(suite / f"{role}-init")
    problems = suite / "micro_maths"
    for ours, theirs in (("prompts", "train"), ("test", "test")):
        (place / f"{ours}.jsonl").write_bytes((problems / f"{theirs}.jsonl").read_bytes())
    text = STUDY.format(models=place / "models", solutions=problems / "sft-student.jsonl")
    (place / "study.yaml").write_text(text, encoding="utf-8")
    return place


def reopold(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    mine = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT")}
    home = {"REOPOLD_HOME": str(place / ".reopold"), "HOME": str(place / "home")}
    return subprocess.run(
        [str(PROGRAM), *arguments], cwd=place, env=mine | home, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def answer(place: Path, *arguments: str) -> Any:
    done = reopold(place, *arguments, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


@pytest.mark.slow
def test_planned_run_reported_verified_and_reused(place: Path) -> None:
    study = place / ".reopold" / "studies" / "given"
    plan = answer(place, "study", "study.yaml", "--dry-run")["plan"]
    assert [(row["arm"], row["samples"]) for row in plan["rows"]] == [("opd", 32), ("sft", 32)]
    assert plan["estimated"] == " (estimated, h100)"
    assert not study.exists()

    assert reopold(place, "study", "study.yaml").returncode == 0
    check_references(place, study)
    check_scaling(place, study)
    check_report(study)
    check_verified(place, study)

    stamps = {file: file.stat().st_mtime_ns for file in study.glob("*/**/results.json")}
    report = {f: f.read_bytes() for f in (study / "report").rglob("*") if f.is_file()}
    assert reopold(place, "study", "study.yaml").returncode == 0
    assert stamps == {file: file.stat().st_mtime_ns for file in study.glob("*/**/results.json")}
    assert report == {f: f.read_bytes() for f in (study / "report").rglob("*") if f.is_file()}


def results(folder: Path) -> Results:
    found = read_results(folder / "micro_maths")
    assert found is not None
    return found


def check_references(place: Path, study: Path) -> None:
    """Student and teacher are evaluated as they are, and the arms begin with the same student."""
    for role in ("student", "teacher"):
        digest = checkpoint_digest(place / "models" / role)
        assert results(study / "references" / role).checkpoint_digest == digest
    assert sorted(run.name for run in (study / "runs").iterdir()) == ["opd-s5", "sft-s5"]
    for run in (study / "runs").iterdir():
        manifest = json.loads((run / "manifest.json").read_text())
        parents = manifest["parents"]
        assert (manifest["status"], manifest["step"]) == ("finished", 4)
        assert parents["student"] == checkpoint_digest(place / "models" / "student")
        teacher = checkpoint_digest(place / "models" / "teacher")
        assert parents.get("teacher") == (teacher if run.name == "opd-s5" else None)
        solved = json.loads((run / "config.json").read_text())["data"]["train"]
        assert (
            Path(solved).name == ("sft-student" if run.name[:3] == "sft" else "prompts") + ".jsonl"
        )


def check_scaling(place: Path, study: Path) -> None:
    """The given models themselves are sampled, beside the last checkpoint of the arm."""
    sampled = {
        folder.name: results(folder) for folder in (study / "scaling").iterdir() if folder.is_dir()
    }
    assert sorted(sampled) == ["opd-s5", "student", "teacher"]
    assert {each.k for each in sampled.values()} == {3}
    for role in ("student", "teacher"):
        assert sampled[role].checkpoint_digest == checkpoint_digest(place / "models" / role)


def check_report(study: Path) -> None:
    report = study / "report"
    with open(report / "scores.csv", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    steps = {(row["method"], row["checkpoint_step"]) for row in rows}
    assert steps == {
        ("student", "0"),
        ("teacher", "0"),
        ("opd", "4"),
        ("sft", "4"),
    }
    summary = json.loads((report / "report.json").read_text())
    runs = {run["run"]: run for run in summary["runs"]}
    assert (runs["student"]["status"], runs["student"]["config_digest"]) == ("given", "")
    html = (report / "index.html").read_text(encoding="utf-8")
    assert "is not finished" not in html and "alarms are not known" not in html
    assert "differs: " not in html and "has no evaluation" not in html
    assert (report / "microscope.html").exists()


def check_verified(place: Path, study: Path) -> None:
    """The test problems lie where the study file has them: its samples are graded again, too."""
    checks = answer(place, "report", "verify", str(study / "report"))["checks"]
    wanted = dict.fromkeys(("files", "evidence", "study", "samples", "report"), "pass")
    assert {each["check"]: each["verdict"] for each in checks} == wanted


def test_a_teacher_that_is_not_there_is_refused_first(place: Path, tmp_path: Path) -> None:
    done = reopold(place, "study", "study.yaml", "--set", "name=none", "--set",
                   f"model.teacher={tmp_path}/nothing")  # fmt: skip
    assert done.returncode == 2 and "no teacher checkpoint at" in done.stderr
    assert not (place / ".reopold" / "studies" / "none").exists()
