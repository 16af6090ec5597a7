"""Prefect task that records rollouts to read token by token, each run in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

from prefect import task

from reopold.config import DISTILLATION_METHODS
from reopold.microscope import ABOUT, about
from reopold.run_dir import RunDir
from reopold.studies import runs_folder
from reopold.study_config import MicroscopeConfig, StudyConfig, run_name
from tasks.gpu import slot
from tasks.launch import run_module
from tasks.progress import Progress, show

FOLDER, STAGE = "microscope", "rollouts to read"


@task(name="microscope", task_run_name=STAGE)
def record_rollouts(study_dir: str, study: StudyConfig) -> str:
    """Record what `study.microscope` asks for; what is there is kept. Returns the folder, or ""."""
    runs = microscoped(study, Path(study_dir))
    if not runs:
        return ""
    folder, settings = Path(study_dir) / FOLDER, study.microscope
    reused = True
    show(Progress("study", STAGE))
    for run in runs:
        out = folder / run.path.name
        if recorded(run, settings, out):
            continue
        reused = False
        with slot() as held:
            run_module(
                "reopold.microscope",
                str(run.path),
                str(out),
                settings.model_dump_json(),
                log=folder / f"{run.path.name}.log",
                env={**held.env, "OMP_NUM_THREADS": str(run.config().train.threads)},
                keep_open=held.handles,
            )
    show(Progress("study", STAGE, state="reused" if reused else "done"))
    return str(folder)


def microscoped(study: StudyConfig, folder: Path) -> list[RunDir]:
    """Runs whose rollouts are recorded: the first seed of every arm that has a teacher."""
    if not study.microscope.prompts:
        return []
    arms = [arm for arm in study.compared if arm.name in study.microscope.arms]
    return [
        RunDir(runs_folder(folder) / run_name(arm, arm.seeds[0]))
        for arm in arms
        if arm.method in DISTILLATION_METHODS
    ]


def recorded(run: RunDir, settings: MicroscopeConfig, out: Path) -> bool:
    """Whether disk holds the records of the models and settings of today."""
    try:
        there = json.loads((out / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(there == about(run, settings))
