"""A study whose runs are finished, with one untrained model for all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

from reopold.config import DataConfig, EvaluationConfig, ModelConfig, RunConfig, TrainConfig
from reopold.run_dir import RunDir
from reopold.study_config import ScalingConfig, StudyConfig

STEPS = 75


def write_scaling_study(folder: Path, checkpoint: Path, settings: EvaluationConfig) -> Path:
    """Four samples a question of reopold's two seeds; nobody asks what more buy grpo's.

    Args:
        checkpoint: complete, of STEPS steps.
    """
    config = StudyConfig(
        name="study",
        methods=["reopold", "grpo"],
        seeds=[1, 2],
        scaling=ScalingConfig(samples=4, methods=["reopold", "opd"], limit=5),
    )
    for name in ("student", "teacher", "reopold-s1", "reopold-s2", "grpo-s1"):
        run = RunDir(folder / "runs" / name).create(
            RunConfig(
                name=name,
                method="sft",
                model=ModelConfig(student="student"),
                data=DataConfig(train="train.jsonl"),
                train=TrainConfig(steps=STEPS, checkpoint_every=STEPS),
                evaluation=settings,
            )
        )
        shutil.copytree(checkpoint, run.checkpoint(STEPS))
    (folder / "study.json").write_text(config.model_dump_json(), encoding="utf-8")
    return folder
