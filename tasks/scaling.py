"""Prefect task of the test-time scaling experiment, in a process of its own."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger

from evals.scaling.stage import FOLDER, plan
from tasks.gpu import slot
from tasks.launch import run_module
from tasks.progress import Progress, show

STAGE = "test-time scaling"


@task(name="scaling", task_run_name=STAGE)
def run_scaling(study_dir: str) -> str:
    """Sample a study's last checkpoints many times a question; what is there is kept.

    It wants the machine to itself: times are measured.

    Returns:
        The folder of the results; "" where the study has no such experiment.
    """
    measured = plan(Path(study_dir))
    if not measured:
        return ""
    folder = Path(study_dir) / FOLDER
    reused = all(each.done() for each in measured)
    if not reused:
        show(Progress("study", STAGE))
        threads = {"OMP_NUM_THREADS": str(measured[0].config.train.threads)}
        with slot() as held:
            run_module(
                "evals.run",
                "--scaling",
                study_dir,
                log=folder / "scaling.log",
                env={**held.env, **threads},
                keep_open=held.handles,
            )
    get_run_logger().info("%d checkpoints sampled for test-time scaling", len(measured))
    show(Progress("study", STAGE, state="reused" if reused else "done"))
    return str(folder)
