"""Shared fixtures: one tiny suite of real models, and run directories that train on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reopold.config import (
    DataConfig,
    EvaluationConfig,
    MicroConfig,
    ModelConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
)
from reopold.run_dir import RunDir

REPO = Path(__file__).resolve().parent.parent

# Before any library reads them: no network, no progress bars, one thread.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a state folder of its own."""
    home = tmp_path / "state"
    monkeypatch.setenv("REOPOLD_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A micro suite with tiny untrained models of two sizes."""
    from reopold.micro.build import build_suite

    out = tmp_path_factory.mktemp("suite") / "micro"
    config = MicroConfig(
        problems_seed=7,
        train_problems=200,
        test_problems=20,
        validation_problems=20,
        teacher_width=32,
        teacher_layers=2,
        student_width=16,
        student_layers=1,
    )
    build_suite(out, config)
    return out


@pytest.fixture
def recipe(suite: Path) -> Callable[..., RunConfig]:
    """A small recipe on the tiny suite; keyword arguments replace whole sections."""

    def make(method: str = "reopold", **sections: Any) -> RunConfig:
        teacher = str(suite / "teacher-init") if method in ("reopold", "opd") else ""
        completions = suite / "sft-student.jsonl"
        data = completions if method == "sft" else suite / "train.jsonl"
        fields: dict[str, Any] = {
            "name": f"{method}-s3",
            "method": method,
            "seed": 3,
            "model": ModelConfig(student=str(suite / "student-init"), teacher=teacher),
            "data": DataConfig(train=str(data)),
            "sampling": SamplingConfig(
                prompts_per_step=3, rollouts_per_prompt=2, max_new_tokens=12
            ),
            "train": TrainConfig(steps=6, checkpoint_every=2, micro_batch=4, keep_rollouts=2),
            "evaluation": EvaluationConfig(data=str(suite / "test.jsonl"), max_new_tokens=12),
        }
        return RunConfig(**{**fields, **sections})

    return make


@pytest.fixture
def run_dir(tmp_path: Path) -> Callable[..., RunDir]:
    """A run directory with its config.json."""

    def make(config: RunConfig, name: str = "run") -> RunDir:
        return RunDir(tmp_path / name).create(config)

    return make
