"""Small runs for faults: every kind of state that a checkpoint may have to hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reopold.config import DISTILLATION_METHODS, ModelConfig, RunConfig, SamplingConfig, TrainConfig
from reopold.run_dir import RunDir
from tests.faults.zygote import Zygote

MakeRecipe = Callable[..., RunConfig]
Straight = Callable[[RunConfig], RunDir]


@pytest.fixture(scope="session")
def small(suite: Path) -> MakeRecipe:
    """Six steps with two updates each; a checkpoint every step, of which every other stays."""

    def make(method: str = "reopold", **sections: Any) -> RunConfig:
        teacher = str(suite / "teacher-init") if method in DISTILLATION_METHODS else ""
        data = suite / "micro_maths" / ("sft-student.jsonl" if method == "sft" else "train.jsonl")
        train: dict[str, Any] = {"steps": 6, "checkpoint_every": 2, "save_every": 1}
        train |= {"micro_batch": 4, "keep_rollouts": 2, "updates_per_step": 2}
        fields: dict[str, Any] = {
            "name": f"{method}-s3",
            "method": method,
            "seed": 3,
            "model": ModelConfig(student=str(suite / "student-init"), teacher=teacher),
            "data": {"train": str(data)},
            "sampling": SamplingConfig(
                prompts_per_step=3, rollouts_per_prompt=2, max_new_tokens=12
            ),
        }
        train |= sections.pop("train", {})
        return RunConfig(**{**fields, "train": TrainConfig(**train), **sections})

    return make


@pytest.fixture(scope="session")
def straight(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """The run of a recipe that nothing ever happened to."""
    made: dict[str, RunDir] = {}

    def run(config: RunConfig) -> RunDir:
        key = config.canonical_json()
        if key not in made:
            folder = tmp_path_factory.mktemp("straight")
            made[key] = RunDir(folder / "run").create(config)
            log = folder / "log"
            code = zygote.run("reopold.train", str(made[key].path), log=log)
            assert code == 0, log.read_text()
        return made[key]

    return run
