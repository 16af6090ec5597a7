"""A study's folder, and the runs that its config expands to. Importable without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from reopold.config import (
    DISTILLATION_METHODS,
    DataConfig,
    EvaluationConfig,
    Method,
    ModelConfig,
    OptimizerConfig,
    PromptSet,
    RunConfig,
    SamplingConfig,
    StudyConfig,
    TeacherConfig,
    TrainConfig,
)
from reopold.run_dir import RunDir

#: Share of the supervised steps that warm the learning rate up, and Adam's second moment.
SFT_WARMUP, SFT_BETA2 = 0.05, 0.99


def micro_folder(study_dir: Path) -> Path:
    return study_dir / "micro"


def runs_folder(study_dir: Path) -> Path:
    return study_dir / "runs"


def model_folder(study: StudyConfig, study_dir: Path, role: Literal["teacher", "student"]) -> Path:
    """Checkpoint of the study's trained teacher or untaught student."""
    steps = study.micro.teacher_steps if role == "teacher" else study.micro.student_steps
    return RunDir(runs_folder(study_dir) / role).checkpoint(steps)


def plan_supervised(
    study: StudyConfig, study_dir: Path, role: Literal["teacher", "student"]
) -> RunConfig:
    """The run that trains the study's teacher or student on worked solutions."""
    micro, suite = study.micro, micro_folder(study_dir)
    steps = micro.teacher_steps if role == "teacher" else micro.student_steps
    lr = micro.teacher_lr if role == "teacher" else micro.student_lr
    return RunConfig(
        name=role,
        method="sft",
        seed=micro.problems_seed,
        model=ModelConfig(student=_path(suite / f"{role}-init")),
        family=micro.families[0],
        data=_data(study, study_dir, f"sft-{role}"),
        sampling=SamplingConfig(prompts_per_step=micro.sft_batch, rollouts_per_prompt=1),
        optimizer=OptimizerConfig(
            lr=lr, beta2=SFT_BETA2, warmup_steps=round(SFT_WARMUP * steps), decay="cosine"
        ),
        train=TrainConfig(steps=steps, checkpoint_every=steps, micro_batch=micro.sft_batch),
        evaluation=_evaluation(study, study_dir),
    )


def plan_run(study: StudyConfig, study_dir: Path, method: Method, seed: int) -> RunConfig:
    """One method x seed of the study, from the common student."""
    needs_teacher = method in DISTILLATION_METHODS
    teacher = _path(model_folder(study, study_dir, "teacher")) if needs_teacher else ""
    return RunConfig(
        name=f"{method}-s{seed}",
        method=method,
        family=study.micro.families[0],
        seed=seed,
        model=ModelConfig(
            student=_path(model_folder(study, study_dir, "student")), teacher=teacher
        ),
        data=_data(study, study_dir, "train"),
        sampling=study.sampling,
        engine=study.engine,
        teacher=study.teacher if needs_teacher else TeacherConfig(),
        objective=study.objective,
        optimizer=study.optimizer,
        train=study.train,
        health=study.health,
        evaluation=_evaluation(study, study_dir),
    )


def _data(study: StudyConfig, study_dir: Path, file: str) -> DataConfig:
    """A file of every family, each with its weight."""
    micro, suite = study.micro, micro_folder(study_dir)
    weights = micro.weights or [1.0] * len(micro.families)
    sets = [
        PromptSet(train=_path(suite / name / f"{file}.jsonl"), family=family, weight=weight)
        for name, family, weight in zip(micro.benchmarks, micro.families, weights, strict=True)
    ]
    return DataConfig(train=sets[0].train, weight=sets[0].weight, mix=sets[1:])


def _evaluation(study: StudyConfig, study_dir: Path) -> EvaluationConfig:
    """On the test problems of every family."""
    return study.evaluation.model_copy(update={"data": _path(micro_folder(study_dir))})


def _path(path: Path) -> str:
    """A local path as recipes write it: absolute, or starting with a dot."""
    return str(path) if path.is_absolute() or str(path).startswith(".") else f"./{path}"
