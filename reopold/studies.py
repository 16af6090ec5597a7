"""A study's folder, and the runs that its config expands to. Importable without torch."""

from __future__ import annotations

from pathlib import Path

from reopold.config import (
    DISTILLATION_METHODS,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    PromptSet,
    RunConfig,
    SamplingConfig,
    TrainConfig,
)
from reopold.run_dir import RunDir
from reopold.study_config import Arm, MicroTeacher, StudyConfig, run_name, teacher_role

#: Share of the supervised steps that warm the learning rate up, and Adam's second moment.
SFT_WARMUP, SFT_BETA2 = 0.05, 0.99


def micro_folder(study_dir: Path) -> Path:
    return study_dir / "micro"


def runs_folder(study_dir: Path) -> Path:
    return study_dir / "runs"


def supervised_roles(study: StudyConfig) -> list[str]:
    """Names of the runs that train the embedded suite's models, the student's last; no other name
    of a run is one of these. Empty where the models are given."""
    if not study.embedded:
        return []
    further = [teacher_role(each.name) for each in study.micro.teachers]
    return ["teacher", *further, "student"]


def model_folder(study: StudyConfig, study_dir: Path, role: str) -> Path:
    """Checkpoint of one of the study's trained teachers or of its untaught student."""
    return RunDir(runs_folder(study_dir) / role).checkpoint(_steps_and_lr(study, role)[0])


def plan_supervised(study: StudyConfig, study_dir: Path, role: str) -> RunConfig:
    """The run that trains one of :func:`supervised_roles` on worked solutions."""
    micro, suite = study.micro, micro_folder(study_dir)
    steps, lr = _steps_and_lr(study, role)
    solutions = "sft-student" if role == "student" else "sft-teacher"
    return RunConfig(
        name=role,
        method="sft",
        seed=micro.problems_seed,
        model=ModelConfig(student=_path(suite / f"{role}-init")),
        family=micro.families[0],
        data=_data(study, study_dir, solutions),
        sampling=SamplingConfig(prompts_per_step=micro.sft_batch, rollouts_per_prompt=1),
        optimizer=OptimizerConfig(
            lr=lr, beta2=SFT_BETA2, warmup_steps=round(SFT_WARMUP * steps), decay="cosine"
        ),
        train=TrainConfig(steps=steps, checkpoint_every=steps, micro_batch=micro.sft_batch),
        evaluation=_evaluation(study, study_dir),
    )


def plan_run(study: StudyConfig, study_dir: Path, arm: Arm, seed: int) -> RunConfig:
    """One arm x seed of the study, from the common student."""
    recipe = study.recipe(arm)
    update = {"name": run_name(arm, seed), "seed": seed}
    if not study.embedded:
        supervised = {"data": recipe.data.model_copy(update={"train": study.sft_data})}
        return recipe.model_copy(update=update | (supervised if arm.method == "sft" else {}))
    teacher = ""
    if arm.method in DISTILLATION_METHODS:
        teacher = _path(model_folder(study, study_dir, teacher_role(arm.teacher)))
    student = _path(model_folder(study, study_dir, "student"))
    models = recipe.model.model_copy(update={"student": student, "teacher": teacher})
    prompts = _data(study, study_dir, "sft-teacher" if arm.method == "sft" else "train")
    kept = {"weight", "mix", "train"}
    data = recipe.data.model_copy(update={name: getattr(prompts, name) for name in kept})
    evaluation = recipe.evaluation.model_copy(update={"data": _path(micro_folder(study_dir))})
    return recipe.model_copy(
        update={**update, "model": models, "data": data, "evaluation": evaluation}
    )


def plan_runs(study: StudyConfig, study_dir: Path) -> list[RunConfig]:
    """Of every arm and seed, in study order."""
    return [plan_run(study, study_dir, arm, seed) for arm in study.arms for seed in arm.seeds]


def _steps_and_lr(study: StudyConfig, role: str) -> tuple[int, float]:
    micro = study.micro
    if role == "student":
        return micro.student_steps, micro.student_lr
    further = {teacher_role(each.name): each for each in micro.teachers}
    chosen: MicroTeacher | None = further.get(role)
    return (chosen.steps, chosen.lr) if chosen else (micro.teacher_steps, micro.teacher_lr)


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
