"""What MLflow's pages show of a study: saved views, links, the ranking and the rule."""

from __future__ import annotations

import base64
import json
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from reopold.config import TrainConfig
from reopold.study_config import StudyConfig
from tasks import tracking_records as records
from tasks.tracking import StudyReport, ship_run, ship_study

if TYPE_CHECKING:
    from mlflow import MlflowClient

MakeRun = Callable[..., Any]
SCORE = "eval/micro_maths/avg_at_4"


def client() -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


@pytest.fixture
def shipped(tracked_home: Path, make_run: MakeRun, study_dir: Path) -> StudyReport:
    """Two arms and the student, in MLflow."""
    for method, seed, final in (("reopold", 1, 0.5), ("reopold", 2, 0.6), ("grpo", 1, 0.4)):
        make_run(method, seed).whole(final)
    make_run("sft").whole(0.3).path.rename(study_dir / "runs" / "student")
    config = study_dir / "runs" / "student" / "config.json"
    config.write_text(config.read_text().replace("sft-s1", "student"))
    study = StudyConfig(
        name="micro", methods=["reopold", "grpo"], seeds=[1, 2], train=TrainConfig(steps=20)
    )
    (study_dir / "study.json").write_text(study.canonical_json())
    return ship_study(study_dir)


def experiment_tags(shipped: StudyReport) -> dict[str, str]:
    return dict(client().get_experiment(shipped.experiment_id).tags)


def view(shipped: StudyReport, key: str) -> dict[str, Any]:
    """As the page reads it: an envelope, and in it a deflated state."""
    envelope = json.loads(experiment_tags(shipped)[f"mlflow.sharedViewState.{key}"])
    assert isinstance(envelope["name"], str) and envelope["createdAt"] > 1_000_000_000_000
    head, _, packed = envelope["state"].partition(";")
    assert head == "deflate"
    return dict(json.loads(zlib.decompress(base64.b64decode(packed))))


def test_the_methods_view_draws_what_is_there(shipped: StudyReport) -> None:
    state = view(shipped, "methods")
    runs = client().search_runs([shipped.experiment_id], state["searchFilter"])
    assert {run.data.tags["arm"] for run in runs} == {"reopold", "grpo"} and len(runs) == 3
    grouped = state["groupBy"]["groupByKeys"][0]["groupByData"]
    assert {f"tag.{grouped}.{run.data.tags[grouped]}" for run in runs} == {*state["groupsExpanded"]}
    sections = {each["uuid"]: each["name"] for each in state["compareRunSections"]}
    there = runs[0].data.metrics.keys()
    for chart in state["compareRunCharts"]:
        assert chart["metricSectionId"] in sections
        assert chart["metricKey"] in there
        assert chart.get("selectedXAxisMetricKey", "samples") in there
    first = state["compareRunCharts"][0]
    assert (first["metricKey"], first["selectedXAxisMetricKey"]) == (SCORE, "eval/samples")
    assert sections[first["metricSectionId"]] == "Evaluation: micro_maths"


def test_a_line_of_scores_has_as_many_points_as_its_x_axis(shipped: StudyReport) -> None:
    """The page pairs them by their place in the history."""
    charts = view(shipped, "methods")["compareRunCharts"]
    run_id = shipped.runs[0].run_id
    for chart in (chart for chart in charts if chart["type"] == "LINE"):
        keys = (chart["metricKey"], chart["selectedXAxisMetricKey"])
        steps = [[p.step for p in client().get_metric_history(run_id, key)] for key in keys]
        assert steps[0] == steps[1]


def test_the_ranking_view_sorts_every_run_by_its_score(shipped: StudyReport) -> None:
    state = view(shipped, "ranking")
    order = f"{state['orderByKey']} {'ASC' if state['orderByAsc'] else 'DESC'}"
    runs = client().search_runs([shipped.experiment_id], state["searchFilter"], order_by=[order])
    names = [run.info.run_name for run in runs]
    assert names == ["reopold-s2", "reopold-s1", "grpo-s1", "student"]
    kinds = {"tags": {*runs[0].data.tags}, "metrics": {*runs[0].data.metrics}}
    columns = [re.fullmatch(r"(\w+)\.`(.+)`", each) for each in state["selectedColumns"]]
    missing = {c[2] for c in columns if c and c[2] not in kinds[c[1]]}
    assert all(columns) and missing == {"alarms", "origin", "caveat"}  # no run has one


def test_the_first_line_of_the_description_leads_there(shipped: StudyReport) -> None:
    """That line is all one sees of it until it is opened."""
    tags = experiment_tags(shipped)
    first, *_ = tags["mlflow.note.content"].splitlines()
    links = dict(re.findall(r"\[([^]]+)\]\(#([^)]+)\)", first))
    assert set(links) == {
        "methods over samples",
        "runs by score",
        "checkpoints by score",
        "champion",
    }
    keys = [found[1] for link in links.values() if (found := re.search(r"ShareKey=(\w+)", link))]
    assert [f"mlflow.sharedViewState.{key}" in tags for key in keys] == [True, True]
    assert f"/runs/{shipped.run_id}?" in links["checkpoints by score"]
    assert all("workflowType=machine_learning" in link for link in links.values())
    assert len(tags["mlflow.note.content"]) < 5_000  # what older servers take


def test_checkpoints_are_ranked_on_the_page_of_the_study(shipped: StudyReport) -> None:
    note = client().get_run(shipped.run_id).data.tags["mlflow.note.content"]
    models = client().search_logged_models([shipped.experiment_id])
    ids = {model.name: model.model_id for model in models}
    rows = re.findall(r"\| (\d+) \| \[([\w-]+)\]\(\S+/models/([\w-]+)\?", note)
    assert [int(place) for place, _, _ in rows] == list(range(1, 17))
    assert rows[0][1:] == ("reopold-s2-step-000020", ids["reopold-s2-step-000020"])
    assert "| reference | 0.3000 [0.2800, 0.3200] |" in note


def test_the_same_study_twice_changes_no_page(shipped: StudyReport, study_dir: Path) -> None:
    before = experiment_tags(shipped)
    ship_study(study_dir)
    assert experiment_tags(shipped) == before


def test_the_registry_says_the_rule(shipped: StudyReport, study_dir: Path) -> None:
    said = client().get_registered_model("micro").description
    assert "`champion`" in said and "best avg@4 on `micro_maths`" in said
    assert "last checkpoints of reopold, grpo" in said
    study = json.loads((study_dir / "study.json").read_text())
    (study_dir / "study.json").write_text(
        json.dumps(study | {"champion": {"checkpoints": "any", "arms": ["grpo"]}})
    )
    ship_study(study_dir)
    assert "all checkpoints of grpo" in client().get_registered_model("micro").description
    crowned = client().get_model_version_by_alias("micro", "champion")
    assert (crowned.description or "").startswith("**grpo-s1**, step 20: avg@4 0.4000")


def test_pages_are_there_while_the_first_run_trains(
    tracked_home: Path, make_run: MakeRun, study_dir: Path
) -> None:
    """And published numbers before checkpoints: the page of models shows the newest first."""
    run = make_run().whole()
    study = StudyConfig(name="micro", methods=["reopold"], seeds=[1], published=["aime25"])
    (study_dir / "study.json").write_text(study.canonical_json())
    found = ship_run(run.path)
    tags = client().get_experiment(found.experiment_id).tags
    assert {"mlflow.sharedViewState.methods", "mlflow.sharedViewState.ranking"} <= tags.keys()
    assert "[methods over samples]" in tags["mlflow.note.content"]
    models = client().search_logged_models([found.experiment_id], max_results=100)
    roles = [m.tags["role"] for m in sorted(models, key=lambda each: each.creation_timestamp)]
    assert roles.count("arm") == 4 and roles[-4:] == ["arm"] * 4 and roles[0] == "published"
    assert all(model.tags["mlflow.note.content"] for model in models)  # of tags the page has none


@pytest.mark.parametrize("recipe", ["{", '{"name": "micro", "of another": "version"}'])
def test_a_recipe_that_cannot_be_read_keeps_no_numbers_back(
    tracked_home: Path, make_run: MakeRun, study_dir: Path, recipe: str
) -> None:
    run = make_run().whole()
    (study_dir / "study.json").write_text(recipe)
    assert ship_run(run.path).next_step == 20


def test_links_of_a_page_open_the_training_side() -> None:
    page = records.page("http://name:secret@host:5000/", "7", "abc")
    assert page == "http://host:5000/#/experiments/7/runs/abc?workflowType=machine_learning"
