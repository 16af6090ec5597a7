"""The test-time scaling experiment of a study: what is sampled, kept, and how it is timed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from evals.harness.journal import Generation, SampleKey
from evals.harness.sampler import Keep, Request
from evals.run import main
from evals.scaling.stage import plan
from evals.scaling.timed import WARM_UP, TimedSampler
from reopold.config import ConfigError, EvaluationConfig
from reopold.integrity import seal
from reopold.rollouts import SamplingParams
from reopold.study_config import ScalingConfig, StudyConfig
from tests.evals.scaling_study import STEPS, write_scaling_study


@pytest.fixture
def study(tmp_path: Path, checkpoint: Path, settings: EvaluationConfig) -> Path:
    return write_scaling_study(tmp_path / "study", checkpoint, settings)


def test_the_last_checkpoints_are_sampled_once(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = plan(study)
    assert [each.who for each in wanted] == ["student", "teacher", "reopold-s1", "reopold-s2"]
    assert not any(each.done() for each in wanted)
    assert main(["--scaling", str(study)]) == 0
    assert all(each.done() for each in plan(study))
    for each in wanted:
        frame = pd.read_parquet(each.output / "samples.parquet")
        assert each.output == study / "scaling" / each.who / "micro_maths"
        assert frame.groupby("question_id").size().to_list() == [4] * 5
        assert frame["seconds"].nunique() == 1  # one batch, shared out
        assert (frame["prompt_tokens"] > 0).all()
    capsys.readouterr()
    assert main(["--scaling", str(study)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("(kept)") for line in lines] == [True] * 4
    assert lines[2].startswith("reopold-s1 step 75 micro_maths: avg@4 ")
    other = study / "runs/reopold-s2/checkpoints" / f"step-{STEPS:06d}"
    with (other / "config.json").open("a", encoding="utf-8") as handle:
        handle.write("\n")
    seal(other, STEPS)
    assert [each.done() for each in plan(study)] == [True, True, True, False]


def test_nothing_is_sampled_before_all_is_there(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (study / f"runs/reopold-s2/checkpoints/step-{STEPS:06d}/COMPLETE").unlink()
    assert main(["--scaling", str(study)]) == 2
    error = capsys.readouterr().err
    assert f"reopold-s2 has no checkpoint of step {STEPS}" in error and "\n" not in error.strip()
    assert not (study / "scaling").exists()
    assert main(["--scaling", str(study / "runs")]) == 2
    with pytest.raises(SystemExit):
        main(["--scaling", str(study), str(study / "runs/student")])


def test_a_study_without_the_experiment_samples_nothing(study: Path) -> None:
    file = study / "study.json"
    config = StudyConfig.model_validate_json(file.read_text())
    file.write_text(config.model_copy(update={"scaling": ScalingConfig()}).model_dump_json())
    assert plan(study) == []
    shutil.rmtree(study / "runs")
    file.write_text(config.model_dump_json())
    with pytest.raises(ConfigError):
        plan(study)


class Sleeper:
    """Takes so long for a batch whatever is asked; says that every sample took no time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.batches: list[int] = []

    def sample(self, requests: Sequence[Request], params: SamplingParams, keep: Keep) -> None:
        self.batches.append(len(requests))
        time.sleep(self.seconds)
        for request in reversed(requests):
            keep(request.key, Generation("", [1], "stop", 1, 1, seconds=0.0))


def test_a_sample_takes_its_share_of_the_batch() -> None:
    kept: dict[SampleKey, Generation] = {}
    sleeper = Sleeper(0.05)
    requests = [Request(SampleKey("q", i), None, i) for i in range(WARM_UP + 36)]  # type: ignore[arg-type]
    timed = TimedSampler(sleeper, batch_size=80)
    timed.sample(requests, SamplingParams(max_new_tokens=1), kept.__setitem__)
    assert sleeper.batches == [WARM_UP, 80, 20]
    assert set(kept) == {request.key for request in requests}
    first, last = kept[SampleKey("q", 0)].seconds, kept[SampleKey("q", WARM_UP + 35)].seconds
    assert 0.05 / 80 <= first < 0.2 / 80 and 0.05 / 20 <= last < 0.2 / 20
    assert {each.seconds for each in kept.values()} == {first, last}


def test_given_models_are_sampled_where_they_lie(study: Path, checkpoint: Path) -> None:
    """No runs called student and teacher are there, and none are looked for."""
    file = study / "study.json"
    raw = json.loads(file.read_text())
    raw |= {"data": {"train": "./train.jsonl"}, "model": {"student": str(checkpoint)}}
    raw["evaluation"] = json.loads((study / "runs/student/config.json").read_text())["evaluation"]
    file.write_text(json.dumps(raw))
    for role in ("student", "teacher"):
        shutil.rmtree(study / "runs" / role)
    assert [each.who for each in plan(study)] == ["student", "reopold-s1", "reopold-s2"]
    raw["model"]["teacher"] = "~/teacher"
    file.write_text(json.dumps(raw))
    student, teacher, *runs = plan(study)
    assert (student.who, student.checkpoint, student.step) == ("student", checkpoint, None)
    assert (teacher.who, teacher.checkpoint) == ("teacher", Path("~/teacher").expanduser())
    assert (student.settings.samples, student.settings.limit) == (4, 5)
    assert [each.checkpoint for each in runs] == [
        study / f"runs/reopold-s{seed}/checkpoints/step-{STEPS:06d}" for seed in (1, 2)
    ]
    file.write_text(json.dumps(raw | {"model": {"student": str(checkpoint)}}))
    assert main(["--scaling", str(study)]) == 0
    assert all(each.done() for each in plan(study))
