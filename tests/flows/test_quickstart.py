"""The main job in small, for real: run, interrupted, gone on, reused, reported."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PROGRAM = Path(sys.executable).with_name("reopold")

SMALL = [
    "name=small",
    "methods=[reopold, grpo]",
    "seeds=[5]",
    "micro={train_problems: 300, test_problems: 25, validation_problems: 10, teacher_width: 32, "
    "teacher_layers: 1, teacher_steps: 12, student_width: 16, student_layers: 1, "
    "student_steps: 8, sft_batch: 16}",
    "sampling={prompts_per_step: 4, rollouts_per_prompt: 2, max_new_tokens: 16}",
    "train={steps: 60, checkpoint_every: 15, micro_batch: 8}",
    "evaluation={samples: 2, max_new_tokens: 16}",
]
COMMAND = [str(PROGRAM), "quickstart", *(part for key in SMALL for part in ("--set", key))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


def environment(place: Path) -> dict[str, str]:
    (place / "home").mkdir(exist_ok=True)
    mine = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT")}
    return {**mine, "REOPOLD_HOME": str(place / ".reopold"), "HOME": str(place / "home")}


def run(place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *options], cwd=place, env=environment(place), capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_interrupted_gone_on_reused_and_reported(place: Path) -> None:
    study = place / ".reopold" / "studies" / "small"
    _interrupt_in_mid_training(place, study)

    done = run(place)
    assert "teacher: all stages, step 12/12, reused" in done.stderr
    assert "reopold" in done.stdout and "report:" in done.stdout
    _check_runs(study)
    _check_report(study)

    before = {p: p.read_bytes() for p in (study / "report").rglob("*") if p.is_file()}
    stamps = {p: p.stat().st_mtime_ns for p in (study / "runs").rglob("*.safetensors")}
    again = run(place)
    assert again.stderr.count("reused") == 5
    assert {p: p.read_bytes() for p in (study / "report").rglob("*") if p.is_file()} == before
    assert {p: p.stat().st_mtime_ns for p in (study / "runs").rglob("*.safetensors")} == stamps

    scripted = run(place, "--json")
    assert scripted.stderr == ""
    result = json.loads(scripted.stdout)
    assert result["tracking_run"] and result["compared"]["summary"]
    assert not list((place / "home").iterdir()), "something was written to the user's home"


def _interrupt_in_mid_training(place: Path, study: Path) -> None:
    """Ctrl-C once the first method is under way; everything must end, with a checkpoint."""
    with open(place / "first.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            COMMAND, cwd=place, env=environment(place), stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        metrics = study / "runs" / "reopold-s5" / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while not metrics.exists() or metrics.read_text().count("\n") < 5:
            assert process.poll() is None, (place / "first.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: Prefect's server gets it too
        code = process.wait(timeout=90)
    text = (place / "first.log").read_text()
    assert code == 130, text
    assert "Traceback" not in text
    listed = subprocess.run(
        ["ps", "-eo", "args"], capture_output=True, text=True, check=True
    ).stdout
    assert str(place) not in listed, "a child outlived the flow"


def _check_runs(study: Path) -> None:
    for name in ("teacher", "student", "reopold-s5", "grpo-s5"):
        manifest = json.loads((study / "runs" / name / "manifest.json").read_text())
        assert manifest["status"] == "finished", name
        steps = [
            json.loads(line)["step"]
            for line in (study / "runs" / name / "metrics.jsonl").read_text().splitlines()
        ]
        assert steps == list(range(manifest["steps"])), "a step is missing or logged twice"
    evaluated = sorted(p.name for p in (study / "runs" / "reopold-s5" / "eval").iterdir())
    assert evaluated == [f"step-{k:06d}" for k in (15, 30, 45, 60)]


def _check_report(study: Path) -> None:
    files = {p.name for p in (study / "report").iterdir()}
    assert files >= {"index.html", "report.md", "report.json", "scores.csv", "curves.csv"}
    verified = subprocess.run(
        [str(PROGRAM), "report", "verify", str(study / "report"), "--json"],
        env=environment(study.parents[2]), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stdout + verified.stderr
    checks = {each["check"]: each["verdict"] for each in json.loads(verified.stdout)["checks"]}
    assert checks == dict.fromkeys(("files", "evidence", "study", "samples", "report"), "pass")
    with open(study / "report" / "scores.csv", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == [
        "family", "method", "seed", "checkpoint_step", "benchmark", "metric", "n", "k", "value",
        "low", "high",
    ]  # fmt: skip
    assert {row["method"] for row in rows} == {"student", "teacher", "reopold", "grpo"}
    assert {row["family"] for row in rows} == {"maths"}
    html = (study / "report" / "index.html").read_text()
    assert "http://" not in html.replace("http://www.w3.org", "") and "<script src" not in html
