"""A study: its models, its arms x seeds in parallel up to the slots, comparison and report."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel

from flows.distill import WAITING_STAGES, settle, submit_run
from reopold.config import DISTILLATION_METHODS, RunConfig
from reopold.run_dir import RunDir
from reopold.studies import (
    micro_folder,
    plan_run,
    plan_supervised,
    runs_folder,
    supervised_roles,
)
from reopold.study_config import REFERENCE_FOLDER, MicroConfig, StudyConfig, teacher_role
from tasks.alive import alive
from tasks.benchmark import evaluate_checkpoint
from tasks.launch import stopping_on_signals
from tasks.microscope import record_rollouts
from tasks.progress import Progress, show
from tasks.report import Compared, compare_study, track_study, write_report
from tasks.scaling import run_scaling
from tasks.train import build_micro


class StudyResult(BaseModel):
    """What a study leaves for the terminal and for scripts."""

    study: str
    report: str
    compared: Compared
    tracking_run: str


@flow(
    name="study",
    flow_run_name="{study.name}",
    task_runner=ThreadPoolTaskRunner(max_workers=WAITING_STAGES),  # type: ignore[arg-type]
)
def study(study: StudyConfig, study_dir: str) -> StudyResult:
    """Run a study in `study_dir`, which already belongs to it; what is there is reused."""
    with alive(study_dir), stopping_on_signals():
        settle(_submit_study(study, Path(study_dir)))
        if study.scaling.samples:
            run_scaling(study_dir)
        if study.microscope.prompts:
            record_rollouts(study_dir, study)
        compared = compare_study(study_dir)
        report = write_report(study_dir)
        tracking_run = track_study(study_dir)
    return StudyResult(
        study=study.name, report=report, compared=compared, tracking_run=tracking_run
    )


def _submit_study(study: StudyConfig, folder: Path) -> list[PrefectFuture[Any]]:
    futures, models = _submit_models(study, folder)
    # Longest chains first: a method with two phases has twice the processes to start.
    for arm in sorted(study.arms, key=lambda arm: arm.method != "reopold"):
        needed = [models["student"], models[teacher_role(arm.teacher)]] if models else []
        if arm.method not in DISTILLATION_METHODS:
            needed = needed[:1]
        for seed in arm.seeds:
            futures += _submit(folder, plan_run(study, folder, arm, seed), needed)
    return futures


def _submit_models(
    study: StudyConfig, folder: Path
) -> tuple[list[PrefectFuture[Any]], dict[str, PrefectFuture[Any]]]:
    """The embedded suite and its models: all futures, and the last one of each model. Given models
    are only evaluated."""
    if not study.embedded:
        return _submit_references(study, folder), {}
    suite = _submit_micro(folder, study.micro)
    futures, models = [suite], {}
    for role in supervised_roles(study):
        own = _submit(folder, plan_supervised(study, folder, role), [suite])
        futures += own
        models[role] = own[-1]
    return futures, models


def _submit_references(study: StudyConfig, folder: Path) -> list[PrefectFuture[Any]]:
    """Student and teacher as they are, on the benchmarks of the runs."""
    settings = study.recipe(study.compared[0]).with_paths(os.path.expanduser).evaluations
    return [
        evaluate_checkpoint.submit(
            path, str(folder / REFERENCE_FOLDER / role), settings, study.model.dtype,
            study.model.device,
        )
        for role, path in study.given_models.items()
    ]  # fmt: skip


def _submit_micro(folder: Path, micro: MicroConfig) -> Any:
    from reopold.micro.build import is_built

    digest = hashlib.sha256(micro.canonical_json().encode()).hexdigest()
    out = micro_folder(folder)
    reuse = is_built(out, micro)
    if reuse:
        show(Progress("micro", "problems and models", state="reused"))
    return build_micro.with_options(refresh_cache=not reuse).submit(str(out), digest, micro)


def _submit(folder: Path, config: RunConfig, parents: list[Any]) -> list[PrefectFuture[Any]]:
    run = RunDir(runs_folder(folder) / config.name).create(config)
    return submit_run(run.path, parents)
