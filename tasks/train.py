"""Prefect tasks that build the micro suite and train, each in a process of its own."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import cast
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from reopold.provenance import checkpoint_digest
from reopold.run_dir import RunDir, write_atomic
from reopold.study_config import MicroConfig
from tasks.alarms import AlarmWatcher
from tasks.cache import stage_key
from tasks.gpu import slot
from tasks.launch import run_module
from tasks.live_tracking import shipping
from tasks.progress import MetricsWatcher, Progress, show
from tasks.stages import Done, span_done

#: Seconds between updates of the progress bar on Prefect's page.
ARTIFACT_SECONDS = 5.0


@task(
    name="micro-suite",
    task_run_name="micro suite",
    cache_key_fn=stage_key("micro"),
    persist_result=True,
)
def build_micro(folder: str, digest: str, config: MicroConfig) -> Done:
    """Problems and untrained models; `digest` names the MicroConfig."""
    show(Progress("micro", "problems and models"))
    recipe = Path(folder).with_suffix(".config.json")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(recipe, config.canonical_json())
    with slot() as held:
        run_module(
            "reopold.micro",
            folder,
            str(recipe),
            log=recipe.with_suffix(".log"),
            env=held.env,
            keep_open=held.handles,
        )
    show(Progress("micro", "problems and models", state="done"))
    return Done(name="micro", path=folder, digest=digest)


@task(
    name="train",
    task_run_name="{name} · {label}",
    cache_key_fn=stage_key("train"),
    persist_result=True,
)
def train_span(
    run_dir: str, name: str, label: str, until: int, digest: str, parents: list[Done]
) -> Done:
    """Train a run up to `until` completed steps.

    Args:
        digest: of the run's config.json; with `parents` it is the key of this stage.
        parents: the stages this one is built on (models, or the span before).
    """
    run = RunDir(Path(run_dir))
    if span_done(run, until):
        state = "reused"
    else:
        _launch(run, label, until)
        state = "done"
    show(Progress(name, label, until, until, _last_reward(run, until), state=state))
    return Done(
        name=name, path=str(run.checkpoint(until)), digest=checkpoint_digest(run.checkpoint(until))
    )


def _launch(run: RunDir, label: str, until: int) -> None:
    first = run.last_step()
    watcher, alarms = MetricsWatcher(run, label, first, until), AlarmWatcher(run)
    bar = _ProgressBar(f"{run.path.name}: {label}, steps {first} to {until}")

    def on_poll() -> None:
        progress = watcher.poll()
        if progress is not None:
            show(progress)
            bar.update((progress.step - first) / max(1, until - first))
        alarms.poll()

    logger = get_run_logger()
    # The slot is free before the last shipment is made.
    with shipping(run.path, logger), slot(run.config().gpus) as held:
        logger.info("%s: %s from step %d; its log is %s", run.path.name, label, first, run.log_file)
        run_module(
            "reopold.train",
            str(run.path),
            "--until",
            str(until),
            log=run.log_file,
            env={**held.env, "OMP_NUM_THREADS": str(run.config().train.threads)},
            keep_open=held.handles,
            on_poll=on_poll,
        )
    bar.update(1.0)
    logger.info("%s: %s reached step %d", run.path.name, label, until)


class _ProgressBar:
    """A progress artifact on Prefect's page, written every few seconds at most.

    One that cannot be drawn must not end the training: a server that is away is asked again.
    """

    def __init__(self, description: str) -> None:
        self.description, self.written = description, -math.inf
        self.artifact: UUID | None = None
        self.update(0.0)

    def update(self, share: float) -> None:
        if share < 1.0 and time.monotonic() - self.written < ARTIFACT_SECONDS:
            return
        self.written = time.monotonic()
        try:
            if self.artifact is None:
                made = create_progress_artifact(100.0 * share, description=self.description)
                self.artifact = cast(UUID, made)
            else:
                update_progress_artifact(self.artifact, progress=100.0 * share)
        except Exception as error:
            get_run_logger().warning("the progress bar was not updated: %s", error)


def _last_reward(run: RunDir, until: int) -> float | None:
    rewards = [line.get("rollout/reward") for line in run.metrics() if line["step"] < until]
    return rewards[-1] if rewards else None
