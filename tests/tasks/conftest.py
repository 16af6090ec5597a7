"""Synthetic run directories that follow docs/design/run-directory.md to the letter."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from reopold.config import (
    DataConfig,
    EvaluationConfig,
    Method,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from reopold.run_dir import RunDir, append_line, write_atomic
from tasks import home

#: Unix seconds at which every synthetic run starts.
START = 1_790_000_000.0
METRICS = [
    "train/loss",
    "train/grad_norm",
    "train/lr",
    "train/kept_fraction",
    "train/clip_fraction",
    "train/ratio_max",
    "rollout/reward",
    "rollout/entropy",
    "rollout/length",
    "rollout/truncated_fraction",
    "rollout/sampler_gap",
    "teacher/reward",
    "teacher/reward_min",
    "perf/seconds_sample",
    "perf/seconds_score",
    "perf/seconds_update",
    "perf/seconds_total",
    "perf/tokens_per_second",
]


class SyntheticRun:
    """A run directory that a trainer and an evaluation could have written."""

    def __init__(self, study_dir: Path, method: Method = "reopold", seed: int = 1, steps: int = 20):
        self.config = RunConfig(
            name=f"{method}-s{seed}",
            method=method,
            seed=seed,
            model=ModelConfig(student="runs/student", teacher="runs/teacher"),
            data=DataConfig(train="micro/train.jsonl"),
            train=TrainConfig.model_validate(
                {"steps": steps, "checkpoint_every": max(steps // 4, 1)}
            ),
            evaluation=EvaluationConfig.model_validate({"data": "micro/test.jsonl"}),
        )
        self.dir = RunDir(study_dir / "runs" / self.config.name).create(self.config)
        self.path = self.dir.path
        self.clock = START + seed
        self.identity = uuid.uuid4().hex
        self.held = ExitStack()

    def status(self, status: str, step: int = 0, message: str = "", **fields: Any) -> None:
        """A manifest; a run that is running is held as its trainer would hold it."""
        self.held.close()
        if status == "running":
            self.held.enter_context(self.dir.lock())
        self.dir.update_manifest(
            status=status,
            step=step,
            steps=self.config.train.steps,
            config_digest=self.dir.digest(),
            git_commit="0123456789abcdef",
            versions={"torch": "2.13.0"},
            hardware={"device": "cpu", "threads": 1},
            parents={"student": "aa", "teacher": "bb"},
            started_at=START,
            identity=self.identity,
            seconds=12.5,
            message=message,
            **fields,
        )

    def train(self, first: int, last: int, **override: float) -> None:
        """Steps first (from 0) to last (not included); every call has later times."""
        for step in range(first, last):
            self.clock += 1.0
            samples = (step + 1) * self.config.samples_per_step
            line: dict[str, Any] = {
                "step": step,
                "phase": self.config.phase(step),
                "time": self.clock,
                "samples": samples,
                "tokens": samples * 30,
            }
            line |= {name: math.exp(-step / 50) + i for i, name in enumerate(METRICS)}
            append_line(self.dir.metrics_file, line | override)

    def checkpoint(self, step: int) -> None:
        folder = self.dir.checkpoint(step)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        write_atomic(folder / "COMPLETE", json.dumps({"step": step, "digest": self.digest(step)}))

    def digest(self, step: int) -> str:
        return f"{self.config.name}-{step:06d}".ljust(64, "0")

    def evaluate(self, step: int, value: float, benchmark: str = "micro_maths") -> None:
        scores = [
            {"metric": m, "k": 4, "n": 500, "value": v, "low": v - 0.02, "high": v + 0.02}
            | {"question_se": 0.01, "seed_se": 0.005}
            for m, v in (("avg@k", value), ("pass@k", value + 0.1), ("maj@k", value + 0.05))
        ]
        results = {
            "schema": 2,
            "benchmark": benchmark,
            "grader": {"name": "final_answer", "rule": "sound", "version": 1},
            "parameters": 1000,
            "metric": "avg@k",
            "statuses": {"ok": 2000},
            "tokens": 20000,
            "isolation": "",
            "dtype": "float32",
            "family": "maths",
            "checkpoint_step": step,
            "checkpoint_digest": self.digest(step),
            "n": 500,
            "k": 4,
            "scores": scores,
            "truncated_fraction": 0.01,
            "no_answer_fraction": 0.02,
            "seconds": 1.5,
            "generation": {
                "engine": "hf",
                "temperature": 1.0,
                "top_p": 1.0,
                "max_new_tokens": 48,
                "max_turns": 1,
                "thinking_tokens": 0,
                "ignore_end": 0,
                "seed": 1234,
            },
            "dataset": {
                "path": "micro/test.jsonl",
                "revision": None,
                "digest": "d" * 64,
                "limit": 0,
            },
            "versions": {},
        }
        folder = self.dir.evaluation(step, benchmark)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "results.json", json.dumps(results))

    def whole(self, final: float = 0.5) -> Self:
        """Train, check-point and evaluate to the end, the score rising to `final`."""
        self.status("running")
        self.train(0, self.config.train.steps)
        for step in self.config.checkpoint_steps():
            self.checkpoint(step)
            self.evaluate(step, final * step / self.config.train.steps)
        self.status("finished", self.config.train.steps)
        return self


def write_report(study_dir: Path, scores: list[tuple[str, int, int, float]]) -> None:
    """report/ with an avg@k row for each (method, seed, checkpoint step, value)."""
    report = study_dir / "report"
    report.mkdir(parents=True, exist_ok=True)
    (report / "index.html").write_text("<h1>Report</h1>", encoding="utf-8")
    with (report / "scores.csv").open("w", newline="", encoding="utf-8") as handle:
        rows = csv.writer(handle)
        columns = "family method seed checkpoint_step benchmark metric n k value low high"
        rows.writerow(columns.split())
        for method, seed, step, value in scores:
            row = ["maths", method, seed, step, "micro_maths", "avg@k", 500, 4, value]
            rows.writerow([*row, value - 0.02, value + 0.02])


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: that takes two seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}")
    return file


@pytest.fixture
def tracked_home(fresh_home: Path, empty_database: Path) -> Path:
    """A fresh home whose MLflow database is there and empty."""
    home.configure_mlflow()
    shutil.copy(empty_database, fresh_home / "mlflow" / "mlflow.db")
    return fresh_home


@pytest.fixture
def child_env(fresh_home: Path) -> dict[str, str]:
    """Environment of a Python process that imports this checkout and shares the fresh home."""
    root = str(Path(home.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def study_dir(fresh_home: Path) -> Path:
    return fresh_home / "studies" / "micro"


@pytest.fixture
def make_run(study_dir: Path) -> Callable[..., SyntheticRun]:
    """`make_run(method, seed, steps)`: a run directory of the study."""

    def make(method: Method = "reopold", seed: int = 1, steps: int = 20) -> SyntheticRun:
        return SyntheticRun(study_dir, method, seed, steps)

    return make


@pytest.fixture
def report(study_dir: Path) -> Callable[[list[tuple[str, int, int, float]]], None]:
    """Write the study's report folder from (method, seed, checkpoint step, avg@4) rows."""
    return lambda scores: write_report(study_dir, scores)
