"""One distillation run as a flow: each phase and each evaluation is a task of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import allow_failure, flow
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from reopold.config import RunConfig
from reopold.run_dir import RunDir
from tasks.alive import alive
from tasks.benchmark import evaluate_run, evaluated
from tasks.launch import stopping_on_signals
from tasks.progress import Progress, show
from tasks.report import track_run
from tasks.stages import span_done, spans
from tasks.train import train_span

#: Stages that wait cost a thread each; what runs at once is decided by the slots (tasks/gpu.py).
WAITING_STAGES = 64


def submit_run(run_dir: Path, parents: list[Any]) -> list[PrefectFuture[Any]]:
    """Submit the stages of a run that has its config.json; what is on disk comes from the cache.

    Args:
        parents: results or futures of the stages that made the run's models.

    Returns:
        Futures of all its stages; the last one is that of the final checkpoint.
    """
    run = RunDir(run_dir)
    config = run.config()
    name, digest = run_dir.name, run.digest()
    futures: list[PrefectFuture[Any]] = []
    reused = True
    for span in spans(config, run.missed_checkpoints(config)):
        reuse = span_done(run, span.until)
        trained = train_span.with_options(refresh_cache=not reuse).submit(
            str(run_dir), name, span.label, span.until, digest, parents
        )
        parents = [trained]
        steps = list(span.checkpoints)
        reuse = reuse and evaluated(run, steps)
        reused &= reuse
        evaluation = evaluate_run.with_options(refresh_cache=not reuse).submit(
            str(run_dir), name, steps, digest, parents
        )
        futures += [trained, evaluation]
    if reused:
        show(Progress(name, "all stages", config.train.steps, config.train.steps, state="reused"))
    # A run that failed is shown as failed in MLflow, too.
    tracked = track_run.submit(
        str(run_dir),
        name,
        wait_for=[allow_failure(future) for future in futures],
        return_state=False,
    )
    return [*futures, tracked, *parents]


def settle(futures: list[PrefectFuture[Any]]) -> list[Any]:
    """Results of all futures, once all have ended; the first failure is raised after that."""
    for future in futures:
        future.wait()
    return [future.result() for future in futures]


@flow(
    name="distill",
    flow_run_name="{run_dir}",
    task_runner=ThreadPoolTaskRunner(max_workers=WAITING_STAGES),  # type: ignore[arg-type]
)
def distill(config: RunConfig, run_dir: str, accept: list[str] | None = None) -> str:
    """Train, evaluate and track one run; returns the folder of its final checkpoint.

    Args:
        accept: fields, or sections, in which the recipe may differ from that of the run there.
    """
    with alive(run_dir), stopping_on_signals():
        RunDir(Path(run_dir)).create(config, accept or [])
        done = settle(submit_run(Path(run_dir), []))[-1]
    return str(done.path)
