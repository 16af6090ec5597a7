"""Shipping to a real MLflow: SQLite files, and servers that are killed and started again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from reopold.config import ConfigError, TrainConfig
from reopold.study_config import ChampionConfig, StudyConfig
from tasks import home
from tasks import tracking_records as records
from tasks.tracking import TrackingUnavailable, best_checkpoint, ship_run, ship_study, state

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

MakeRun = Callable[..., Any]
Report = Callable[[list[tuple[str, int, int, float]]], None]
LOSS, SCORE = "train/loss", "eval/micro_maths/avg_at_4"


def client() -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def experiment_id() -> str:
    experiment = client().get_experiment_by_name("micro")
    assert experiment is not None
    return str(experiment.experiment_id)


def runs() -> list[Run]:
    return list(client().search_runs([experiment_id()]))


def models() -> list[LoggedModel]:
    return list(client().search_logged_models([experiment_id()]))


def steps_of(run_id: str, key: str = LOSS) -> list[int]:
    return sorted(point.step for point in client().get_metric_history(run_id, key))


def test_a_whole_run_arrives(tracked_home: Path, make_run: MakeRun) -> None:
    run = make_run().whole()
    report = ship_run(run.path)

    assert (report.next_step, report.evaluations_sent, report.status) == (20, 4, "FINISHED")
    shipped = client().get_run(report.run_id)
    assert steps_of(report.run_id) == list(range(20))
    assert steps_of(report.run_id, "tokens") == list(range(20))
    assert steps_of(report.run_id, SCORE) == [5, 10, 15, 20]
    point = client().get_metric_history(report.run_id, LOSS)[0]
    assert (point.timestamp, point.value) == ((1_790_000_002) * 1000, 1.0)
    assert shipped.data.metrics[f"{SCORE}_low"] == pytest.approx(0.48)
    assert shipped.data.metrics["eval/micro_maths/pass_at_4"] == pytest.approx(0.6)
    wanted = {
        "method": "reopold",
        "phase": "refinement",
        "seed": "1",
        "family": "maths",
        "git_commit": "0123456789abcdef",
        "reopold.config_digest": run.dir.digest(),
        "reopold.run_dir": "studies/micro/runs/reopold-s1",
    }
    assert wanted.items() <= shipped.data.tags.items()
    assert shipped.data.params["objective.lam"] == "0.3"
    names = {file.path for file in client().list_artifacts(report.run_id)}
    assert names == {"config.json", "manifest.json"}
    assert shipped.info.run_name == "reopold-s1"
    assert shipped.info.end_time == int(run.dir.manifest()["updated_at"] * 1000)
    parent = client().get_run(shipped.data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == "micro"
    assert {file.name for file in tracked_home.parent.iterdir()} == {"home"}  # no ./mlruns


def test_evaluated_checkpoints_are_ready_models(tracked_home: Path, make_run: MakeRun) -> None:
    run = make_run().whole()
    report = ship_run(run.path)

    found = {model.name: model for model in models()}
    assert sorted(found) == [f"reopold-s1-step-{step:06d}" for step in (5, 10, 15, 20)]
    model = found["reopold-s1-step-000015"]
    assert (str(model.status), model.source_run_id) == ("READY", report.run_id)
    assert model.params == {"step": "15", "samples": str(15 * run.config.samples_per_step)}
    assert model.tags["digest"] == run.digest(15)
    where = "studies/micro/runs/reopold-s1/checkpoints/step-000015"
    assert model.tags["checkpoint"] == where
    scores = {m.key: (m.dataset_name, m.dataset_digest, m.step) for m in model.metrics or []}
    assert scores[SCORE] == ("micro_maths", "d" * 36, 15)
    inputs = client().get_run(report.run_id).inputs
    assert inputs is not None
    (dataset,) = inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.tags[0].value) == ("micro_maths", "eval")
    assert not list(home.artifact_root().rglob("*.safetensors"))


def test_scores_have_samples_of_their_own_for_an_x_axis(
    tracked_home: Path, make_run: MakeRun
) -> None:
    """The page pairs the n-th points of a score and of its x axis: there must be as many."""
    run = make_run().whole()
    run_id = ship_run(run.path).run_id
    axis = client().get_metric_history(run_id, "eval/samples")
    drawn = run.config.samples_per_step
    assert [(point.step, point.value) for point in axis] == [
        (step, step * drawn) for step in (5, 10, 15, 20)
    ]
    scores = client().get_metric_history(run_id, SCORE)
    assert [point.step for point in scores] == [point.step for point in axis]


def test_only_complete_checkpoints_with_their_own_evaluation(
    tracked_home: Path, make_run: MakeRun
) -> None:
    run = make_run()
    run.status("running")
    run.train(0, 10)
    run.checkpoint(5)  # not evaluated
    run.evaluate(10, 0.3)  # evaluated, its checkpoint not complete
    run.checkpoint(15)
    run.evaluate(15, 0.3)
    (run.dir.checkpoint(15) / "COMPLETE").write_text('{"step": 15, "digest": "other weights"}')
    assert ship_run(run.path).evaluations_sent == 0
    assert models() == []


def test_it_goes_on_where_it_stopped(tracked_home: Path, make_run: MakeRun) -> None:
    run = make_run()
    run.status("running")
    first = ship_run(run.path)
    assert (first.status, first.next_step, first.metrics_sent) == ("RUNNING", 0, 0)
    assert client().get_run(first.run_id).data.tags["phase"] == "exploration"
    run.train(0, 7)
    assert ship_run(run.path).metrics_sent == 7 * 20
    assert ship_run(run.path).metrics_sent == 0
    run.train(7, 9)
    run.checkpoint(5)
    run.evaluate(5, 0.1)
    second = ship_run(run.path)
    assert (second.run_id, second.next_step, second.evaluations_sent) == (first.run_id, 9, 1)
    assert ship_run(run.path).evaluations_sent == 0
    assert steps_of(first.run_id) == list(range(9))


def test_a_lost_cursor_finds_the_run_again(tracked_home: Path, make_run: MakeRun) -> None:
    run = make_run().whole()
    first = ship_run(run.path)
    for damage in ("", "{", '{"tracking_uri": "elsewhere", "run_id": "nonsense"}', "[]"):
        (run.path / "tracking.json").write_text(damage)
        again = ship_run(run.path)
        assert (again.run_id, again.next_step, again.metrics_sent) == (first.run_id, 20, 0)
    assert len(runs()) == 2 and len(models()) == 4
    assert steps_of(first.run_id) == list(range(20))
    assert steps_of(first.run_id, SCORE) == [5, 10, 15, 20]


@pytest.mark.parametrize("cursor_lost", [False, True])
def test_steps_run_again_after_a_resume_are_not_sent_twice(
    tracked_home: Path, make_run: MakeRun, cursor_lost: bool
) -> None:
    run = make_run()
    run.status("running")
    run.train(0, 13)
    run_id = ship_run(run.path).run_id
    run.dir.cut_back(10)
    if cursor_lost:
        (run.path / "tracking.json").unlink()
    assert ship_run(run.path).metrics_sent == 0
    run.train(10, 16)  # with later times than those sent
    report = ship_run(run.path)
    assert (report.run_id, report.metrics_sent, report.next_step) == (run_id, 3 * 20, 16)
    assert steps_of(run_id) == list(range(16))


def test_a_crash_between_sending_and_noting_it(
    tracked_home: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(steps=120)
    run.status("running")
    run.train(0, 120)
    save = state.Cursor.save

    def crash(cursor: state.Cursor, **fields: Any) -> None:
        if fields.get("sending") == []:
            raise KeyboardInterrupt
        save(cursor, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(state.Cursor, "save", crash)
        with pytest.raises(KeyboardInterrupt):
            ship_run(run.path)
    run.dir.cut_back(30)  # and the trainer went back before the next call
    run.train(30, 120)
    report = ship_run(run.path)
    assert len(runs()) == 2
    assert steps_of(report.run_id) == list(range(120))


def test_numbers_that_are_none_become_a_tag(tracked_home: Path, make_run: MakeRun) -> None:
    run = make_run()
    run.status("running")
    run.train(0, 2)
    run.train(2, 3, **{LOSS: float("nan"), "train/grad_norm": float("inf")})
    run_id = ship_run(run.path).run_id
    run.train(3, 4, **{LOSS: float("-inf")})
    run.train(4, 5)
    ship_run(run.path)
    shipped = client().get_run(run_id)
    noted = f"{LOSS}@2, train/grad_norm@2, {LOSS}@3"
    assert shipped.data.tags["reopold.non_finite"] == noted
    assert steps_of(run_id) == [0, 1, 4]
    assert steps_of(run_id, "rollout/reward") == [0, 1, 2, 3, 4]


def test_the_status_follows_the_manifest(tracked_home: Path, make_run: MakeRun) -> None:
    run = make_run()
    seen = []
    for status, message in (
        ("new", ""),
        ("running", ""),
        ("stopped", "asked to"),
        ("running", ""),
        ("failed", "the loss is not finite"),
        ("finished", ""),
    ):
        if status != "new":
            run.status(status, message=message)
        report = ship_run(run.path)
        shipped = client().get_run(report.run_id)
        assert shipped.info.status == report.status
        assert shipped.data.tags.get("reopold.message", "") == message
        seen.append(report.status)
    assert seen == ["SCHEDULED", "RUNNING", "KILLED", "RUNNING", "FAILED", "FINISHED"]


def test_few_and_whole_batches(
    tracked_home: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    run = make_run(steps=150).whole()
    log_batch, sizes = MlflowClient.log_batch, []

    def count(self: MlflowClient, run_id: str, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(kwargs.get("metrics", ())))
        return log_batch(self, run_id, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", count)
    started = time.perf_counter()
    assert ship_run(run.path).metrics_sent == 150 * 20
    assert time.perf_counter() - started < 6.0  # 0.6 s on a free core
    assert max(sizes) <= 1000 and sum(size > 100 for size in sizes) == 4


def test_a_batch_never_splits_a_step() -> None:
    lines = [{"step": step, "a": 0.0, "b": 0.0} for step in range(10)]
    batches = list(records.step_batches(lines, limit=7))
    assert [len(batch) for batch in batches] == [2] * 5
    assert [line for batch in batches for line in batch] == lines


def test_names_and_parameters_are_legal() -> None:
    assert records.score_name("aime-25 (en)", "avg@k", 16) == "eval/aime-25 _en_/avg_at_16"
    flat = records.flatten({"a": {"b": [1, None]}, "c": "x" * 7000, "d": None})
    assert flat == {"a.b": "[1, null]", "c": "x" * 6000, "d": "null"}


def test_the_best_checkpoint_among_arms_and_steps(tracked_home: Path, make_run: MakeRun) -> None:
    assert best_checkpoint("micro", "micro_maths") is None
    for method, seed, final in (("reopold", 1, 0.5), ("reopold", 2, 0.6), ("sft", 1, 0.9)):
        ship_run(make_run(method, seed).whole(final).path)
    every = best_checkpoint("micro", "micro_maths")
    assert every is not None and every.run == "sft-s1"  # an arm as any other
    best = best_checkpoint("micro", "micro_maths", arms=["reopold", "opd"])
    assert best is not None
    assert (best.run, best.seed, best.step, best.method) == ("reopold-s2", 2, 20, "reopold")
    assert (best.value, best.low, best.high) == pytest.approx((0.6, 0.58, 0.62))
    assert (tracked_home / best.checkpoint / "COMPLETE").exists()
    teacher = best_checkpoint("micro", "micro_maths", "pass@4", arms=["sft"])
    assert teacher is not None and teacher.value == pytest.approx(1.0)
    assert best_checkpoint("micro", "aime25") is None


def study_json(seeds: list[int], **champion: Any) -> str:
    study = StudyConfig(
        name="micro",
        methods=["reopold", "grpo"],
        seeds=seeds,
        train=TrainConfig(steps=20),
        champion=ChampionConfig(**champion),
    )
    return study.canonical_json()


def test_the_alias_follows_the_rule_of_the_study(
    tracked_home: Path, make_run: MakeRun, study_dir: Path
) -> None:
    """Best of the last checkpoints; a better run moves it, the same study twice moves nothing."""
    make_run("reopold", 1).whole(0.5)
    make_run("grpo", 1).whole(0.6)
    (study_dir / "study.json").write_text(study_json([1]))
    champion = ship_study(study_dir).champion
    assert champion.endswith("grpo-s1/checkpoints/step-000020")
    assert ship_study(study_dir).champion == champion
    versions = client().search_model_versions("name = 'micro'")
    assert [str(version.version) for version in versions] == ["1"]
    make_run("reopold", 2).whole(0.7)
    (study_dir / "study.json").write_text(study_json([1, 2]))
    ship_study(study_dir)
    crowned = client().get_model_version_by_alias("micro", "champion")
    assert crowned.tags["run"] == "reopold-s2" and str(crowned.version) == "2"
    assert "0.7000" in crowned.description and (tracked_home / crowned.tags["checkpoint"]).is_dir()
    (study_dir / "study.json").write_text(study_json([1, 2], arms=["grpo"], alias="best-rl"))
    ship_study(study_dir)
    assert client().get_model_version_by_alias("micro", "best-rl").tags["run"] == "grpo-s1"
    assert str(client().get_model_version_by_alias("micro", "champion").version) == "2"


def test_a_study_ends_with_its_report(
    tracked_home: Path, make_run: MakeRun, study_dir: Path, report: Report
) -> None:
    for seed in (1, 2):
        make_run(seed=seed).whole()
    unfinished = make_run("grpo")
    unfinished.status("running")
    (study_dir / "study.json").write_text(study_json([1, 2]))
    assert ship_study(study_dir).status == "RUNNING"
    unfinished.whole()
    report([("reopold", 1, 20, 0.5), ("reopold", 2, 20, 0.6), ("grpo", 1, 20, 0.4)])
    (study_dir / "study.json").write_text(study_json([1, 2, 3]))

    for _ in range(2):
        shipped = ship_study(study_dir)
    assert (shipped.status, shipped.scores_sent, len(shipped.runs)) == ("FINISHED", 2, 3)
    parent = client().get_run(shipped.run_id)
    assert parent.info.status == "FINISHED" and parent.info.end_time >= parent.info.start_time
    assert parent.data.metrics["score/micro_maths/avg_at_4/reopold"] == pytest.approx(0.55)
    assert steps_of(shipped.run_id, "score/micro_maths/avg_at_4/grpo") == [20]
    files = {file.path for file in client().list_artifacts(shipped.run_id, "report")}
    assert files == {"report/index.html", "report/scores.csv"}
    experiment = client().get_experiment(shipped.experiment_id)
    assert "studies/micro/runs" in experiment.tags["mlflow.note.content"]
    children = [run for run in runs() if "mlflow.parentRunId" in run.data.tags]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {shipped.run_id}


def test_a_run_deleted_or_lost_by_mlflow_is_sent_afresh(
    tracked_home: Path, make_run: MakeRun
) -> None:
    run = make_run().whole()
    first = ship_run(run.path)
    client().delete_run(first.run_id)
    second = ship_run(run.path)
    assert second.run_id != first.run_id
    assert (second.metrics_sent, second.evaluations_sent) == (20 * 20, 4)


@pytest.mark.parametrize("identity", [True, False], ids=["by identity", "by start"])
def test_a_run_deleted_on_disk_and_started_over_is_another_run(
    tracked_home: Path, make_run: MakeRun, identity: bool
) -> None:
    """Its points must not mix with those of the run that was thrown away."""

    def make(started: float) -> Any:
        run = make_run()
        run.identity *= identity
        run.whole()
        if not identity:
            run.dir.update_manifest(started_at=started)
        return run

    first = ship_run(make(1_790_000_000.0).path)
    shutil.rmtree(make_run().path)
    again = make(1_790_001_000.0)
    second = ship_run(again.path)
    assert second.run_id != first.run_id
    assert steps_of(second.run_id) == list(range(20))


def test_what_is_no_run_or_a_deleted_experiment_is_refused(
    tracked_home: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        ship_run(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    ship_run(make_run().path)
    client().delete_experiment(experiment_id())
    with pytest.raises(TrackingUnavailable, match="experiments restore -x 1"):
        ship_run(make_run(seed=2).path)


def test_threads_on_a_new_database_make_one_experiment(fresh_home: Path, make_run: MakeRun) -> None:
    made = [make_run(seed=seed).whole() for seed in range(1, 5)]
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda run: ship_run(run.path), made))
    assert len({report.run_id for report in reports}) == 4
    assert len(runs()) == 5 and len(models()) == 16
    for report in reports:
        assert steps_of(report.run_id) == list(range(20))


def test_processes_on_a_new_database_make_one_experiment(
    fresh_home: Path, make_run: MakeRun, child_env: dict[str, str]
) -> None:
    made = [make_run(seed=seed).whole() for seed in (1, 2)]
    code = "import sys; from pathlib import Path; from tasks.tracking import ship_run\n"
    code += "ship_run(Path(sys.argv[1]))"
    paths = [str(run.path) for run in made]
    jobs = [subprocess.Popen([sys.executable, "-c", code, path], env=child_env) for path in paths]
    assert [job.wait(60) for job in jobs] == [0, 0]
    home.configure_mlflow()
    assert sorted(run.info.run_name or "" for run in runs()) == [
        "micro",
        "reopold-s1",
        "reopold-s2",
    ]
    assert len(models()) == 8


def test_it_imports_no_mlflow_torch_or_prefect(child_env: dict[str, str]) -> None:
    code = (
        "import sys, tasks.tracking; print(sorted({'mlflow','torch','prefect'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
