"""Shared fixtures: one tiny suite of real models, and run directories that train on it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reopold.config import (
    DISTILLATION_METHODS,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
)
from reopold.run_dir import RunDir
from reopold.study_config import MicroConfig, StudyConfig
from tasks import home
from tests.faults.zygote import Zygote

pytest.register_assert_rewrite("tests.faults.compare")

#: The comparison with other libraries has an environment of its own (`make conformance`).
collect_ignore = [] if importlib.util.find_spec("trl") else ["conformance"]

REPO = Path(__file__).resolve().parent.parent

# Before any library reads them: no network, no progress bars, one thread.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def benchmarks_dir() -> Path:
    """Real benchmark data: $REOPOLD_BENCHMARKS, or `shared/benchmarks` beside the tree."""
    folder = Path(os.environ.get("REOPOLD_BENCHMARKS", REPO.parent / "shared" / "benchmarks"))
    if not folder.is_dir():
        pytest.skip(f"benchmark data are absent: {folder} (set REOPOLD_BENCHMARKS)")
    return folder


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a state folder of its own."""
    state = tmp_path / "state"
    monkeypatch.setenv("REOPOLD_HOME", str(state))
    return state


@pytest.fixture
def fresh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home and an environment without settings; both are put back afterwards."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("PREFECT_", "MLFLOW_", "REOPOLD_")):
            del os.environ[name]
    os.environ["REOPOLD_HOME"] = str(tmp_path / "home")
    monkeypatch.setattr(home, "_ours", {})
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "home"
    os.environ.clear()
    os.environ.update(before)


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


@pytest.fixture(scope="session")
def three_families() -> StudyConfig:
    """A study of maths, pictures and dialogues with tiny models, on every family's own problems."""
    return StudyConfig.model_validate(
        {
            "name": "three",
            "methods": ["reopold"],
            "seeds": [1],
            "micro": {
                "families": ["maths", "visual", "tools"],
                "weights": [1, 2, 1],
                "train_problems": 50,
                "test_problems": 10,
                "validation_problems": 10,
                "teacher_width": 32,
                "student_width": 16,
                "student_steps": 2,
                "sft_batch": 8,
            },
            "sampling": {"prompts_per_step": 4, "rollouts_per_prompt": 2, "max_new_tokens": 24},
            "train": {"steps": 2, "micro_batch": 8},
            "evaluation": {
                "benchmark": "micro_maths",
                "also": ["micro_visual", "micro_tools"],
                "samples": 2,
                "max_new_tokens": 12,
            },
        }
    )


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory, three_families: StudyConfig) -> Path:
    """Its folder, with its suite and untrained models."""
    from reopold.micro.build import build_suite

    folder = tmp_path_factory.mktemp("three")
    build_suite(folder / "micro", three_families.micro)
    return folder


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Forks trainer processes that have nothing left to import."""
    with Zygote(["reopold.train", "reopold.trainer"]) as process:
        yield process


@pytest.fixture
def recipe(suite: Path) -> Callable[..., RunConfig]:
    """A small recipe on the tiny suite; keyword arguments replace whole sections."""

    def make(method: str = "reopold", **sections: Any) -> RunConfig:
        teacher = str(suite / "teacher-init") if method in DISTILLATION_METHODS else ""
        completions = suite / "micro_maths" / "sft-student.jsonl"
        data = completions if method == "sft" else suite / "micro_maths" / "train.jsonl"
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
            "evaluation": EvaluationConfig(
                data=str(suite / "micro_maths" / "test.jsonl"), max_new_tokens=12
            ),
        }
        return RunConfig(**{**fields, **sections})

    return make


@pytest.fixture
def run_dir(tmp_path: Path) -> Callable[..., RunDir]:
    """A run directory with its config.json."""

    def make(config: RunConfig, name: str = "run") -> RunDir:
        return RunDir(tmp_path / name).create(config)

    return make
