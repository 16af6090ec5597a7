"""The scaling experiment as a stage of a study: made once, and only where it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from reopold.config import EvaluationConfig
from reopold.integrity import seal
from reopold.study_config import ScalingConfig, StudyConfig
from tasks import scaling
from tests.evals.scaling_study import STEPS, write_scaling_study


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """With problems and an untrained model of its own."""
    from reopold.micro.maths import draw
    from reopold.micro.models import build_model, save_model
    from reopold.micro.tokenizer import build_tokenizer

    problems = tmp_path / "test.jsonl"
    lines = [
        {"id": f"q{i}", "prompt": [{"role": "user", "content": p.question}], "answer": p.answer}
        for i, p in enumerate(draw("test", 6, 3))
    ]
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    tokenizer, checkpoint = build_tokenizer(), tmp_path / f"step-{STEPS:06d}"
    save_model(build_model(tokenizer, width=32, layers=1, seed=5), tokenizer, checkpoint)
    seal(checkpoint, STEPS)
    settings = EvaluationConfig(data=str(problems), max_new_tokens=6)
    return write_scaling_study(tmp_path / "study", checkpoint, settings)


def run(study: Path) -> str:
    with disable_run_logger():
        return scaling.run_scaling.fn(str(study))


@pytest.mark.slow
def test_a_process_of_its_own_makes_it_once(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(study) == str(study / "scaling")
    made = {file: file.stat().st_mtime_ns for file in study.glob("scaling/*/*/results.json")}
    assert len(made) == 4
    log = (study / "scaling/scaling.log").read_text()
    assert "reopold-s2 step 75 micro_maths: avg@4" in log

    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(scaling, "run_module", started)
    assert run(study) == str(study / "scaling")
    assert made == {file: file.stat().st_mtime_ns for file in made}
    (study / "scaling/teacher/micro_maths/results.json").unlink()
    with pytest.raises(AssertionError, match="a process was started"):
        run(study)


def test_a_study_that_asks_for_none_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = StudyConfig(name="study", methods=["grpo"], seeds=[1], scaling=ScalingConfig())
    (tmp_path / "study.json").write_text(config.model_dump_json())
    monkeypatch.setattr(scaling, "run_module", None)
    assert run(tmp_path) == ""
    assert not (tmp_path / "scaling").exists()
