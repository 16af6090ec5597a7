"""Training a run of a report again: the same bits, or by how much not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.report.verify import Checked
from reopold.config import ConfigError, RunConfig, TrainConfig
from reopold.provenance import checkpoint_digest
from reopold.run_dir import RunDir
from reopold.study_config import StudyConfig
from tasks.rerun import _chain, _compared, rerun_check
from tests.faults.zygote import Zygote

Recipe = Callable[..., RunConfig]


@pytest.fixture
def twice(tmp_path: Path, recipe: Recipe, zygote: Zygote) -> list[RunDir]:
    """The same run trained in two folders; the first one's last checkpoint is evaluated."""
    config = recipe(train=TrainConfig(steps=2, checkpoint_every=2, micro_batch=4))
    runs = [RunDir(tmp_path / place / config.name).create(config) for place in ("a", "b")]
    for run in runs:
        assert zygote.run("reopold.train", str(run.path), log=run.path / "log") == 0
    results = runs[0].path / "eval" / "step-000002" / "micro_maths" / "results.json"
    results.parent.mkdir(parents=True)
    digest = checkpoint_digest(runs[0].checkpoint(2))
    results.write_text(json.dumps({"checkpoint_digest": digest}), encoding="utf-8")
    return runs


def only(found: list[Checked]) -> Checked:
    (check,) = found
    return check


def test_the_same_bits(twice: list[RunDir]) -> None:
    check = only(_compared(*twice))
    assert check.verdict == "pass" and "bit-identical: 1 evaluated checkpoints" in check.found


def test_another_metric_is_named_with_its_size(twice: list[RunDir]) -> None:
    lines = [json.loads(line) for line in twice[1].metrics_file.read_text("utf-8").splitlines()]
    lines[1]["train/loss"] = 1.5 * float(lines[1]["train/loss"])
    lines[0]["perf/seconds_total"] = 1e9  # a clock is no difference
    text = "".join(json.dumps(line) + "\n" for line in lines)
    twice[1].metrics_file.write_text(text, encoding="utf-8")
    check = only(_compared(*twice))
    assert check.verdict == "fail"
    assert "0 of 1 evaluated checkpoints differ" in check.found
    assert "is 0.5 (train/loss at step 1)" in check.found


def test_another_checkpoint_is_counted(twice: list[RunDir]) -> None:
    results = twice[0].path / "eval" / "step-000002" / "micro_maths" / "results.json"
    results.write_text(json.dumps({"checkpoint_digest": "0" * 64}), encoding="utf-8")
    twice[0].update_manifest(versions={"torch": "1.0"})
    check = only(_compared(*twice))
    assert check.verdict == "fail" and "1 of 1 evaluated checkpoints differ" in check.found
    assert "torch 1.0 then" in check.found  # the likely reason


def test_a_metric_that_is_gone_is_infinitely_far(twice: list[RunDir]) -> None:
    lines = [json.loads(line) for line in twice[1].metrics_file.read_text("utf-8").splitlines()]
    del lines[0]["train/loss"]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    twice[1].metrics_file.write_text(text, encoding="utf-8")
    assert "is inf (train/loss at step 0)" in only(_compared(*twice)).found


def test_a_run_that_is_none_of_the_study_is_refused(tmp_path: Path) -> None:
    raw: dict[str, Any] = {"name": "s", "methods": ["opd", "grpo"], "seeds": [1, 2]}
    study = StudyConfig.model_validate(raw)
    with pytest.raises(ConfigError, match="no run 'opd-s9' in the study: one of opd-s1, opd-s2"):
        list(_chain(study, tmp_path / "again", "opd-s9"))
    (tmp_path / "report").mkdir()
    with pytest.raises(ConfigError, match="there is no opd-s1 to compare with"):
        rerun_check(tmp_path / "report", "opd-s1", lambda text: None)
