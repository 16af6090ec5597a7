"""Published numbers beside a study's checkpoints, in a real MLflow on SQLite."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evals import published as numbers
from evals.published import PublishedScore, published_on
from reopold.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from reopold.study_config import StudyConfig
from tasks.tracking import best_checkpoint, published, ship_study

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

MakeRun = Callable[..., Any]


def client() -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def models() -> dict[tuple[str, str, str, str], LoggedModel]:
    """The external ones by method, model, teacher and origin."""
    experiment = client().get_experiment_by_name("micro")
    assert experiment is not None
    found = client().search_logged_models([experiment.experiment_id], max_results=200)
    keys = ("method", "model", "teacher", "origin")
    external = [model for model in found if model.tags["role"] == "published"]
    by_whose = {tuple(model.tags[key] for key in keys): model for model in external}
    assert len(by_whose) == len(external)
    return by_whose  # type: ignore[return-value]


def study_json(folder: Path, **fields: Any) -> StudyConfig:
    study = StudyConfig(
        name="micro", methods=["reopold"], seeds=[1], train=TrainConfig(steps=20), **fields
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(study.canonical_json())
    return study


def test_each_is_one_external_model_that_says_whose_it_is(
    tracked_home: Path, make_run: MakeRun, study_dir: Path
) -> None:
    make_run().whole()
    study_json(study_dir, published=["aime24", "livecodebench"])
    for _ in range(2):  # the second time it finds them
        ship_study(study_dir)
    wanted = {
        (score.method, score.model, score.teacher or "none", score.origin)
        for score in published_on(["aime24", "livecodebench"])
    }
    found = models()
    assert set(found) == wanted
    key = ("OPD (K1)", "DeepSeek-R1-Distill-Qwen-1.5B", "Skywork-OR1-Math-7B")
    model = found[*key, "re-run by the TrOPD paper"]
    assert model.name == "OPD-K1-re-run-by-the-TrOPD-paper"
    assert (str(model.status), model.model_type) == ("READY", "published")
    assert model.tags["mlflow.model.isExternal"] == "true"
    assert model.tags["status"] == "not reproduced here: needs GPU and weights"
    assert model.tags["source"].startswith("arXiv 2606.01249") and model.tags["caveat"]
    runs = client().search_runs([model.experiment_id], "tags.role = 'published'")
    assert len(runs) == len(wanted) and {run.info.status for run in runs} == {"FINISHED"}


def test_a_score_has_our_name_where_its_samples_are_stated(
    tracked_home: Path, make_run: MakeRun, study_dir: Path
) -> None:
    make_run().whole()
    study_json(study_dir, published=["aime24", "livecodebench"])
    ship_study(study_dir)
    key = ("DeepSeek-R1-Distill-Qwen-1.5B", "Skywork-OR1-Math-7B", "re-run by the TrOPD paper")
    model = models()["REOPOLD, clip only", *key]
    (point,) = model.metrics or []
    assert (point.key, point.dataset_name) == ("eval/aime24/avg_at_32", "aime24")
    assert point.value == pytest.approx(0.3697)
    assert model.tags["k_not_stated"] == "LiveCodeBench v6 18.29 %"


def test_they_rank_beside_ours_and_are_never_chosen(
    tracked_home: Path, make_run: MakeRun, study_dir: Path
) -> None:
    run = make_run().whole()
    scores = run.dir.evaluation(20, "micro_maths") / "results.json"
    results = json.loads(scores.read_text())
    results["scores"] = [{**each, "k": 32} for each in results["scores"]]
    file = run.dir.evaluation(20, "aime24") / "results.json"
    file.parent.mkdir()
    file.write_text(json.dumps({**results, "benchmark": "aime24"}))  # ours: 0.5
    study_json(
        study_dir,
        evaluation=EvaluationConfig(benchmark="aime24", samples=32),
        model=ModelConfig(student="student", teacher="teacher"),
        data=DataConfig(train="train.jsonl"),
    )
    shipped = ship_study(study_dir)
    best = best_checkpoint("micro", "aime24", "avg@32")
    assert best is not None and best.run == "reopold-s1"
    assert best_checkpoint("micro", "aime24", "avg@32", arms=["teacher"]) is None
    assert shipped.champion == best.checkpoint
    ranking = client().get_run(shipped.run_id).data.tags["mlflow.note.content"].splitlines()
    rows = [line for line in ranking if line.startswith("| ")]
    assert "teacher-re-run" in rows[1] and "0.6614" in rows[1]  # rows[0]: the names of the columns
    ours = next(number for number, row in enumerate(rows) if "reopold-s1-step-000020" in row)
    assert "0.5000 [0.4800, 0.5200]" in rows[ours]
    above = [float(row.rsplit("|", 2)[1].split()[0]) for row in rows[1:ours]]
    assert above == sorted(above, reverse=True) and min(above) >= 0.5
    assert client().get_model_version_by_alias("micro", "champion").tags["run"] == "reopold-s1"


def test_a_corrected_number_replaces_the_old_one(
    tracked_home: Path, make_run: MakeRun, study_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run().whole()
    study_json(study_dir, published=["aime25"])
    ship_study(study_dir)
    before = models()

    def corrected(score: PublishedScore) -> PublishedScore:
        return score.model_copy(update={"value": 25.0}) if score.method == "student" else score

    changed = tuple(map(corrected, numbers.published()))
    monkeypatch.setattr(numbers, "published", lambda: changed)
    ship_study(study_dir)
    after = models()
    assert set(after) == set(before)
    (student,) = (key for key in after if key[0] == "student")
    (point,) = after[student].metrics or []
    assert point.value == pytest.approx(0.25)
    others = set(after) - {student}
    assert {after[key].model_id for key in others} == {before[key].model_id for key in others}


def test_what_is_shown_no_more_goes(tracked_home: Path, make_run: MakeRun, study_dir: Path) -> None:
    make_run().whole()
    study_json(study_dir, published=["aime25"])
    ship_study(study_dir)
    study_json(study_dir)
    shipped = ship_study(study_dir)
    assert models() == {}
    runs = client().search_runs([shipped.experiment_id])
    assert {run.info.run_name for run in runs} == {"micro", "reopold-s1"}


def test_the_choice_is_the_report_s(tracked_home: Path, make_run: MakeRun, study_dir: Path) -> None:
    """What is measured, planned or not, and what the recipe names."""
    run = make_run().whole()
    run.evaluate(20, 0.3, "amc23")
    study = study_json(study_dir, published=["mmlu", "aime25"])
    assert {each.benchmark for each in published.shown(study, study_dir)} == {"amc23", "aime25"}
    (study_dir / "runs").rename(study_dir / "elsewhere")
    assert {each.benchmark for each in published.shown(study, study_dir)} == {"aime25"}
