"""What is reused is judged by the disk: models, prompts, settings and status of today."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evals.benchmarks import find
from reopold.config import EvaluationConfig, RunConfig
from reopold.provenance import check_parents
from reopold.run_dir import RunDir
from tasks.benchmark import evaluated
from tasks.stages import span_done

Recipe = Callable[..., RunConfig]


@pytest.fixture
def finished(recipe: Recipe, tmp_path: Path, suite: Path) -> RunDir:
    """A run directory as a trainer leaves it, on prompts and problems of its own."""
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copyfile(suite / "micro_maths" / name, tmp_path / name)
    config = recipe(
        "grpo",
        data={"train": str(tmp_path / "train.jsonl")},
        evaluation=EvaluationConfig(data=str(tmp_path / "test.jsonl"), samples=2),
    )
    run = RunDir(tmp_path / "run").create(config)
    for step in (2, 4, 6):
        run.checkpoint(step).mkdir(parents=True)
        (run.checkpoint(step) / "COMPLETE").write_text(
            json.dumps({"step": step, "digest": f"d{step}"})
        )
    run.update_manifest(status="finished", step=6, parents=check_parents(run, run.config()))
    return run


def results(run: RunDir, **change: object) -> None:
    from evals.benchmarks.problems import load_problems
    from evals.results import generation_settings, grader_identity

    settings = run.config().evaluation
    record = {
        "schema": 2,
        "benchmark": "micro_maths",
        "grader": grader_identity(settings).model_dump(),
        "family": "maths",
        "checkpoint_step": 6,
        "checkpoint_digest": "d6",
        "n": 20,
        "k": 2,
        "parameters": 10,
        "metric": "avg@k",
        "scores": [],
        "statuses": {},
        "tokens": 0,
        "isolation": "",
        "truncated_fraction": 0.0,
        "no_answer_fraction": 0.0,
        "seconds": 1.0,
        "dtype": "float32",
        "generation": generation_settings(settings).model_dump(),
        "dataset": {
            "path": settings.data,
            "revision": None,
            "digest": load_problems(find("micro_maths"), settings.data).digest,
            "limit": 0,
        },
        "versions": {},
        **change,
    }
    folder = run.evaluation(6, "micro_maths")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "samples.parquet").touch()
    (folder / "results.json").write_text(json.dumps(record))


def test_a_finished_span_is_reused(finished: RunDir) -> None:
    assert span_done(finished, 6) and span_done(finished, 4)
    assert not span_done(finished, 5)


def test_a_run_whose_trainer_died_at_the_very_end_is_started_once_more(finished: RunDir) -> None:
    finished.update_manifest(status="running")
    assert not span_done(finished, 6)
    assert span_done(finished, 4)


def test_prompts_that_changed_are_noticed(finished: RunDir, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text((tmp_path / "train.jsonl").read_text() + "\n")
    assert not span_done(finished, 6)


def test_results_of_today_are_kept(finished: RunDir) -> None:
    assert not evaluated(finished, [6])
    results(finished)
    assert evaluated(finished, [6])
    assert not evaluated(finished, [4, 6])


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint_digest": "d5"},
        {"grader": {"name": "final_answer", "rule": "sound", "version": 0}},
        {"dtype": "bfloat16"},
        {"k": 4},
        {
            "generation": {
                "engine": "hf",
                "temperature": 0.5,
                "top_p": 1.0,
                "max_new_tokens": 12,
                "max_turns": 1,
                "seed": 1234,
                "thinking_tokens": 0,
                "ignore_end": 0,
            }
        },
    ],
    ids=lambda change: next(iter(change)),
)
def test_results_of_something_else_are_made_again(
    change: dict[str, object], finished: RunDir
) -> None:
    results(finished, **change)
    assert not evaluated(finished, [6])


def test_results_on_other_problems_are_made_again(finished: RunDir, tmp_path: Path) -> None:
    results(finished)
    lines = (tmp_path / "test.jsonl").read_text().splitlines()
    (tmp_path / "test.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert not evaluated(finished, [6])
