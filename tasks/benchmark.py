"""Prefect task that evaluates checkpoints, in a process of its own."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger

from evals.benchmarks import find
from evals.benchmarks.problems import load_problems
from evals.results import Results, read_results
from reopold.config import ConfigError, EvaluationConfig, RunConfig
from reopold.provenance import checkpoint_digest
from reopold.retention import prune
from reopold.run_dir import RunDir, write_atomic
from tasks.cache import stage_key
from tasks.gpu import slot
from tasks.launch import run_module
from tasks.progress import Progress, show
from tasks.stages import Done


@task(
    name="evaluate",
    task_run_name="{name} · evaluation at {steps}",
    cache_key_fn=stage_key("evaluate"),
    persist_result=True,
)
def evaluate_run(
    run_dir: str, name: str, steps: list[int], digest: str, parents: list[Done]
) -> Done:
    """Evaluate a run's checkpoints after `steps` completed steps; what is there is kept."""
    run = RunDir(Path(run_dir))
    stage = f"evaluation at {steps[-1]}"
    reused = evaluated(run, steps)
    if not reused:
        show(Progress(name, stage))
        wanted = ",".join(map(str, steps))
        with slot() as held:
            threads = {"OMP_NUM_THREADS": str(run.config().train.threads)}
            run_module(
                "evals.run",
                run_dir,
                "--steps",
                wanted,
                log=run.path / "eval.log",
                env={**held.env, **threads},
                keep_open=held.handles,
            )
        with suppress(ConfigError), run.lock(0.0):  # held by a trainer: it does it at its next save
            prune(run, run.config())
    last = run.evaluation(steps[-1], run.config().evaluation.benchmark)
    results = _results(last)
    for each in run.config().evaluations:
        line = _results(run.evaluation(steps[-1], each.benchmark)).headline()
        get_run_logger().info("%s after %d steps, %s: %s", name, steps[-1], each.benchmark, line)
    show(
        Progress(name, stage, reward=results.scores[0].value, state="reused" if reused else "done")
    )
    return Done(name=name, path=str(last), digest=results.checkpoint_digest)


@task(name="evaluate-checkpoint", task_run_name="evaluate {checkpoint}")
def evaluate_checkpoint(
    checkpoint: str, output: str, settings: list[EvaluationConfig], dtype: str, device: str
) -> list[Results]:
    """Evaluate one bare Hugging Face folder into `output`, a folder a benchmark."""
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "evaluations.json"
    write_atomic(recipe, json.dumps([each.model_dump(mode="json") for each in settings], indent=2))
    show(Progress(Path(checkpoint).name, "evaluation"))
    arguments = ["--checkpoint", checkpoint, "--config", str(recipe), "--output", output]
    with slot() as held:
        run_module(
            "evals.run",
            *arguments,
            "--dtype",
            dtype,
            "--device",
            device,
            log=folder / "eval.log",
            env=held.env,
            keep_open=held.handles,
        )
    return [_results(folder / each.benchmark) for each in settings]


def evaluated(run: RunDir, steps: list[int]) -> bool:
    """Whether disk holds results for the checkpoints, test problems and settings of today."""
    config = run.config()
    if not set(steps) <= set(run.passed_checkpoints()):
        return False
    return all(_answered(run, config, settings, steps) for settings in config.evaluations)


def _answered(run: RunDir, config: RunConfig, settings: EvaluationConfig, steps: list[int]) -> bool:
    found = [read_results(run.evaluation(step, settings.benchmark)) for step in steps]
    if None in found:
        return False
    problems = load_problems(find(settings.benchmark), settings.data or None).digest
    return all(
        results is not None
        and results.answers(
            checkpoint_digest(run.checkpoint(step)), problems, settings, config.model.dtype
        )
        for step, results in zip(steps, found, strict=True)
    )


def _results(folder: Path) -> Results:
    results = read_results(folder)
    if results is None:
        raise ConfigError(f"{folder} holds no complete results")
    return results
