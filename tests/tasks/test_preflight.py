"""Before any work: what is missing, full or somebody else's is said, and nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from reopold.config import (
    ConfigError,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from reopold.recipes import load_recipe
from reopold.run_dir import RunDir
from reopold.study_config import StudyConfig
from tasks.preflight import (
    check_evaluations,
    check_run,
    check_study,
    claim_run,
    claim_study,
    preflight,
)
from tests.conftest import REPO

Recipe = Callable[..., RunConfig]


def test_a_good_recipe_is_accepted_and_nothing_is_written(recipe: Recipe, tmp_path: Path) -> None:
    check_run(recipe(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_each_fault_of_a_run_is_named_and_nothing_is_written(
    recipe: Recipe, tmp_path: Path, suite: Path
) -> None:
    student, teacher = str(suite / "student-init"), str(suite / "teacher-init")
    test = str(suite / "micro_maths" / "test.jsonl")
    faults = {
        "no student checkpoint": {"model": ModelConfig(student="./none", teacher=teacher)},
        "no teacher checkpoint": {"model": ModelConfig(student=student, teacher="./none")},
        "no prompts at": {"data": DataConfig(train="./none.jsonl")},
        "data.train must be a local file": {"data": DataConfig(train="org/name")},
        "evaluation.data must be a local file": {"evaluation": EvaluationConfig(data="org/name")},
        "micro_maths has no data here": {"evaluation": EvaluationConfig()},
        "micro_maths": {"evaluation": EvaluationConfig(benchmark="micro_math", data=test)},
        "greedy": {"evaluation": EvaluationConfig(temperature=0.0, data=test)},
        "no disk space": {"train": TrainConfig(steps=4_000_000, checkpoint_every=1)},
    }
    for message, sections in faults.items():
        with pytest.raises(ConfigError, match=message):
            check_run(recipe(**sections), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tokenizers_that_differ_are_refused(recipe: Recipe, tmp_path: Path, suite: Path) -> None:
    from transformers import AutoTokenizer

    shutil.copytree(suite / "teacher-init", tmp_path / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    tokenizer.add_tokens(["x"])
    tokenizer.save_pretrained(tmp_path / "teacher")
    model = ModelConfig(student=str(suite / "student-init"), teacher=str(tmp_path / "teacher"))
    with pytest.raises(ConfigError, match="different tokenizers"):
        check_run(recipe(model=model), tmp_path / "run")


def test_a_folder_of_another_recipe_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    claim_run(recipe(), tmp_path / "run")
    claim_run(recipe(), tmp_path / "run")
    with pytest.raises(ConfigError, match="belongs to another config"):
        claim_run(recipe(seed=4), tmp_path / "run")


def test_a_study_claims_its_folder_unless_it_is_anothers_or_the_disk_is_full(
    tmp_path: Path,
) -> None:
    path = REPO / "deployments" / "recipes" / "quickstart.yaml"
    study = load_recipe(path, StudyConfig)
    check_study(study, tmp_path / "study")
    assert not (tmp_path / "study").exists()
    claim_study(study, tmp_path / "study")
    check_study(study, tmp_path / "study")
    check_study(load_recipe(path, StudyConfig, ["seeds=[7]"]), tmp_path / "study")
    with pytest.raises(ConfigError, match="belongs to another config"):
        check_study(load_recipe(path, StudyConfig, ["train.steps=7"]), tmp_path / "study")
    huge = load_recipe(path, StudyConfig, ["train.steps=200000", "train.checkpoint_every=1"])
    with pytest.raises(ConfigError, match="no disk space"):
        check_study(huge, tmp_path / "huge")
    assert not (tmp_path / "huge").exists()


def test_a_checkpoint_to_evaluate_must_be_there(tmp_path: Path, suite: Path) -> None:
    settings = EvaluationConfig(data=str(suite / "micro_maths" / "test.jsonl"))
    check_evaluations(suite / "student-init", [settings], tmp_path / "out")
    check_evaluations(suite / "student-init", [settings], tmp_path / "out")
    with pytest.raises(ConfigError, match="belongs to another config"):
        check_evaluations(suite / "teacher-init", [settings], tmp_path / "out")
    with pytest.raises(ConfigError, match="no checkpoint at"):
        check_evaluations(tmp_path, [settings], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_home_relative_path_is_found(
    recipe: Recipe, tmp_path: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(suite))
    config = recipe("grpo", data=DataConfig(train="~/micro_maths/train.jsonl"))
    check_run(config, tmp_path / "run")
    claim_run(config, tmp_path / "run")
    assert Path(RunDir(tmp_path / "run").config().data.train).exists()


def test_the_table_holds_disk_and_trackers(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe()
    found = {check.name: check.status for check in preflight(config, tmp_path / "run")}
    assert set(found.values()) == {"pass"}
    assert {"disk", "MLflow", "Prefect", "reward 0"} <= set(found)
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]
    found = {check.name: check.status for check in preflight(config, tmp_path / "run")}
    assert {name for name, status in found.items() if status == "fail"} == {"disk", "Prefect"}
    assert found["MLflow"] == "warn"  # training goes on without it
