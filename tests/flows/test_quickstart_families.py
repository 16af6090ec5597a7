"""The quickstart of three families in small: each of them trained, evaluated and reported."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(900)]

PROGRAM = Path(sys.executable).with_name("reopold")
BENCHMARKS = ["micro_maths", "micro_tools", "micro_visual"]

SMALL = [
    "name=small",
    "methods=[reopold, grpo]",
    "seeds=[5]",
    "micro={families: [maths, visual, tools], weights: [1, 2, 1], train_problems: 60, "
    "test_problems: 8, validation_problems: 8, teacher_width: 32, teacher_layers: 1, "
    "teacher_steps: 6, student_width: 16, student_layers: 1, student_steps: 4, sft_batch: 8}",
    "sampling={prompts_per_step: 4, rollouts_per_prompt: 2, max_new_tokens: 24}",
    "train={steps: 4, checkpoint_every: 2, micro_batch: 8}",
    "evaluation.samples=2",
    "evaluation.max_new_tokens=24",
    "scaling={samples: 4, methods: [reopold, opd]}",
]
COMMAND = [str(PROGRAM), "quickstart", "--family", "all"]


def run(place: Path) -> subprocess.CompletedProcess[str]:
    mine = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT")}
    done = subprocess.run(
        [*COMMAND, *(part for key in SMALL for part in ("--set", key))],
        cwd=place,
        env={**mine, "REOPOLD_HOME": str(place / ".reopold")},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_three_families_from_nothing_to_the_report(tmp_path: Path) -> None:
    run(tmp_path)
    study = tmp_path / ".reopold" / "studies" / "small"
    for name in ("reopold-s5", "grpo-s5"):
        folder = study / "runs" / name
        lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        families = {key.split("/")[1] for key in lines[0] if key.startswith("family/")}
        assert families == {"maths", "visual", "tools"}
        for step in (2, 4):
            there = sorted(path.name for path in (folder / "eval" / f"step-{step:06d}").iterdir())
            assert there == BENCHMARKS
    scaled = {path.parent.parent.name for path in study.glob("scaling/*/*/results.json")}
    assert scaled == {"student", "teacher", "reopold-s5"}
    with open(study / "report" / "scores.csv", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["benchmark"] for row in rows} == set(BENCHMARKS)
    assert {row["family"] for row in rows} == {"maths", "visual", "tools"}

    before = {p: p.stat().st_mtime_ns for p in study.rglob("*.safetensors")}
    again = run(tmp_path)
    assert "test-time scaling, reused" in again.stderr
    assert {p: p.stat().st_mtime_ns for p in study.rglob("*.safetensors")} == before
