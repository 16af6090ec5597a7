"""What changes under way: rollbacks, recipes, alarms, ends; what waits, and what was left open."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from reopold.changes import Change
from reopold.run_dir import write_atomic
from tasks import home
from tasks.tracking import (
    close_run,
    open_runs,
    ship_run,
    ship_study,
    waiting,
    waiting_run,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MakeRun = Callable[..., Any]
LOSS, SCORE = "train/loss", "eval/micro_maths/avg_at_4"


def client() -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def steps_of(run_id: str, key: str = LOSS) -> list[int]:
    return sorted(point.step for point in client().get_metric_history(run_id, key))


def runs(tag: str) -> list[Run]:
    return list(client().search_runs(["1"], f"tags.`{tag}` LIKE '%'"))


def roll_back(run: Any, to: int) -> None:
    """As a trainer does: first the change, last the cut."""
    run.clock += 1.0
    lr = {"optimizer.lr": [0.001, 0.0005]}
    run.dir.add_change(Change(run.clock, to, "health", "entropy_collapse", lr))
    run.status("running", to)
    run.dir.cut_back(to)


@pytest.mark.parametrize("cursor_lost", [False, True])
def test_a_rollback_begins_another_run_with_the_whole_history(
    tracked_home: Path, make_run: MakeRun, cursor_lost: bool
) -> None:
    run = make_run()
    run.status("running")
    run.train(0, 12)
    first = ship_run(run.path)
    roll_back(run, to=8)  # steps 12 and 13 never came to MLflow
    if cursor_lost:
        (run.path / "tracking.json").unlink()
    run.train(8, 10, **{LOSS: 7.5})
    second = ship_run(run.path)

    assert second.run_id != first.run_id
    assert (second.steps_sent, second.next_step, second.status) == (10, 10, "RUNNING")
    assert (steps_of(first.run_id), steps_of(second.run_id)) == ([*range(12)], [*range(10)])
    points = {p.step: p.value for p in client().get_metric_history(second.run_id, LOSS)}
    assert points[8] == 7.5 and points[7] != 7.5
    old, new = client().get_run(first.run_id), client().get_run(second.run_id)
    assert (old.info.status, old.info.run_name) == ("KILLED", "reopold-s1")
    assert old.data.tags["reopold.message"] == "rolled back to step 8: entropy_collapse"
    assert (new.info.run_name, new.data.tags["attempt"]) == ("reopold-s1 (attempt 2)", "2")
    assert new.data.tags["config_changed"] == "optimizer.lr 0.001 -> 0.0005 @8"
    assert new.data.params["optimizer.lr"] == "0.0005"
    assert old.data.tags["mlflow.parentRunId"] == new.data.tags["mlflow.parentRunId"]
    assert ship_run(run.path).metrics_sent == 0 and waiting_run(run.path) is None


def test_an_attempt_that_mlflow_never_saw_is_skipped(tracked_home: Path, make_run: MakeRun) -> None:
    run = make_run()
    run.status("running")
    run.train(0, 12)
    roll_back(run, to=8)
    run.train(8, 12)
    roll_back(run, to=8)
    run.train(8, 9)
    report = ship_run(run.path)
    assert client().get_run(report.run_id).info.run_name == "reopold-s1 (attempt 3)"
    assert len(runs("reopold.identity")) == 1 and steps_of(report.run_id) == list(range(9))


def test_lines_that_a_rollback_is_about_to_cut_are_not_of_the_new_attempt(
    tracked_home: Path, make_run: MakeRun
) -> None:
    """The change is on disk first: its trainer may die before it cuts."""
    run = make_run()
    run.status("running")
    run.train(0, 12)
    for step in (5, 10):
        run.checkpoint(step)
        run.evaluate(step, 0.1)
        results = run.dir.evaluation(step, "micro_maths") / "results.json"
        os.utime(results, (run.clock, run.clock))
    whole = run.dir.metrics_file.read_text()
    roll_back(run, to=8)
    run.dir.metrics_file.write_text(whole)
    run_id = ship_run(run.path).run_id
    assert (steps_of(run_id), steps_of(run_id, SCORE)) == (list(range(8)), [5])


def test_a_changed_recipe_is_uploaded_again(tracked_home: Path, make_run: MakeRun) -> None:
    run = make_run()
    run.status("running")
    run.train(0, 3)
    run_id = ship_run(run.path).run_id
    changed = run.config.model_copy(update={"health": run.config.health}).model_dump()
    changed["train"]["checkpoint_every"] = 2
    run.held.close()
    run.dir.create(type(run.config).model_validate(changed), accept=["train.checkpoint_every"])
    waits = waiting_run(run.path)
    assert waits is not None and waits.status
    assert ship_run(run.path).run_id == run_id
    shipped = client().get_run(run_id)
    assert shipped.data.tags["config_changed"] == "train.checkpoint_every 5 -> 2 @0"
    assert shipped.data.tags["reopold.config_digest"] == run.dir.digest()
    assert shipped.data.params["train.checkpoint_every"] == "5"  # write-once
    file = Path(client().download_artifacts(run_id, "config.json"))
    assert json.loads(file.read_text())["train"]["checkpoint_every"] == 2
    assert "changes.json" in {each.path for each in client().list_artifacts(run_id)}


def test_alarms_and_a_pause_are_columns(tracked_home: Path, make_run: MakeRun) -> None:
    run = make_run()
    run.status("running")
    run.train(0, 13)
    for name, step in (("truncation", 5), ("entropy_collapse", 12)):
        run.dir.event("alarm", step, "!", alarm=name, policy="warn", value=0.9, limit=0.5)
    run.status("paused", 13, "entropy_collapse: 0.9 is above 0.5")
    report = ship_run(run.path)
    shipped = client().get_run(report.run_id)
    assert shipped.data.tags["alarms"] == "truncation@5, entropy_collapse@12"
    assert (report.status, shipped.data.tags["reopold.status"]) == ("KILLED", "paused")
    run.status("running", 13)
    assert ship_run(run.path).status == "RUNNING"


def test_numbers_that_are_none_never_become_metrics(tracked_home: Path, make_run: MakeRun) -> None:
    """Of a step, and of an evaluation; they break no batch and are recorded as what they are."""
    run = make_run()
    run.status("running")
    run.train(0, 5, **{LOSS: math.nan, "rollout/reward": -math.inf})
    run.checkpoint(5)
    run.evaluate(5, 0.4)
    file = run.dir.evaluation(5, "micro_maths") / "results.json"
    results = json.loads(file.read_text())
    results["scores"][0]["value"], results["truncated_fraction"] = math.nan, math.inf
    write_atomic(file, json.dumps(results))
    report = ship_run(run.path)
    shipped = client().get_run(report.run_id)
    assert (report.evaluations_sent, report.next_step) == (1, 5)
    assert not {LOSS, "rollout/reward", SCORE, "eval/micro_maths/truncated_fraction"} & {
        *shipped.data.metrics
    }
    assert shipped.data.metrics[f"{SCORE}_low"] == pytest.approx(0.38)
    noted = shipped.data.tags["reopold.non_finite"].split(", ")
    assert {f"{LOSS}@4", "rollout/reward@0", f"{SCORE}@5"} <= set(noted)
    assert "eval/micro_maths/truncated_fraction@5" in noted and len(noted) == 12


def test_what_waits_is_known_without_a_server(
    tracked_home: Path, make_run: MakeRun, study_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = make_run(), make_run(seed=2).whole()
    make_run(seed=3)  # never started
    run.status("running")
    run.train(0, 7)
    ship_study(study_dir)
    assert waiting(study_dir) == []
    run.train(7, 10)
    run.checkpoint(5)
    run.evaluate(5, 0.1)
    run.status("finished", 10)
    store = home.home() / "mlflow" / "mlflow.db"
    moved = store.rename(store.with_suffix(".away"))
    (waits,) = waiting(study_dir)
    assert (waits.run_dir, waits.steps, waits.evaluations) == (run.path, 3, 1)
    assert str(waits) == "reopold-s1: 3 steps, 1 evaluation, that it is finished"
    assert not store.exists()
    moved.rename(store)
    ship_run(run.path)
    assert waiting(study_dir) == []
    (other.path / "tracking.json").unlink()
    assert waiting(study_dir)[0].steps == 20


def test_a_command_ends_with_what_mlflow_lacks_why_and_what_sends_it(
    tracked_home: Path, make_run: MakeRun, study_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import report
    from tasks.live_tracking import Link

    run = make_run().whole()
    monkeypatch.setattr(report, "LINK", Link())
    for folder in (run.path, study_dir):
        report.LINK.why = "connection refused"
        first, what, how = report.tracked(folder).splitlines()
        assert first.startswith("Not in MLflow yet (connection refused); nothing is lost")
        assert what == "  reopold-s1: 20 steps, 4 evaluations, that it is finished"
        assert how == "To send it: the same command again, or reopold doctor --fix"
    report.LINK.why = None
    ship_run(run.path)
    for folder in (run.path, study_dir):
        assert report.tracked(folder) == "MLflow and Prefect: make dashboard"


def test_a_dead_trainers_run_is_closed(tracked_home: Path, make_run: MakeRun) -> None:
    """By whoever ships it after its trainer's lock is free; a flow at work keeps it open."""
    run = make_run()
    run.status("running")
    run.train(0, 4)
    assert ship_run(run.path).status == "RUNNING"
    run.held.close()
    assert ship_run(run.path, under_way=True).status == "RUNNING"
    assert waiting_run(run.path) is not None
    assert ship_run(run.path).status == "KILLED"
    run.status("stopped", 4)
    assert ship_run(run.path, under_way=True).status == "RUNNING"
    assert ship_run(run.path).status == "KILLED"


def test_open_runs_are_found_and_closed(
    tracked_home: Path, make_run: MakeRun, study_dir: Path
) -> None:
    killed, gone, alive, done = (make_run(seed=seed) for seed in (1, 2, 3, 4))
    for run in (killed, gone, alive, done):
        run.status("running")
        run.train(0, 3)
        ship_run(run.path)
    client().create_run("0", run_name="somebody's else")
    for run in (killed, gone):
        run.held.close()
    shutil.rmtree(gone.path)
    done.status("finished", 20)

    found = open_runs()
    names = ["reopold-s1", "reopold-s2", "reopold-s3", "reopold-s4", "micro"]
    assert [run.name for run in found] == names
    assert [run.run_dir for run in found] == [killed.path, gone.path, alive.path, done.path, None]
    assert {run.study for run in found} == {"micro"}
    assert [close_run(found[at]) for at in (0, 1, 3, 4)] == [
        "KILLED",
        "KILLED",
        "FINISHED",
        "RUNNING",  # one of its runs is
    ]
    assert [run.name for run in open_runs()] == ["reopold-s3", "micro"]
    alive.held.close()
    assert [close_run(run) for run in open_runs()] == ["KILLED", "KILLED"]
    assert open_runs() == []
    ended = client().get_run(found[0].run_id).info.end_time
    assert ended == int(killed.dir.manifest()["updated_at"] * 1000)


def test_twins_of_requests_sent_twice_are_deleted(tracked_home: Path, make_run: MakeRun) -> None:
    """A server that answers too late makes what is asked for again a second time."""
    run = make_run()
    run.status("running")
    run.train(0, 5)
    first = ship_run(run.path)
    kept = client().get_run(first.run_id)

    def twin(of: str) -> str:
        original = client().get_run(of)
        tags = {k: v for k, v in original.data.tags.items() if k != "mlflow.runName"}
        made = client().create_run("1", original.info.start_time, tags, original.info.run_name)
        return str(made.info.run_id)

    twins = [twin(first.run_id), twin(kept.data.tags["mlflow.parentRunId"])]
    (run.path / "tracking.json").unlink()
    assert ship_run(run.path).run_id == first.run_id
    assert len(runs("reopold.identity")) == len(runs("reopold.study_parent")) == 1
    left = client().get_run(runs("reopold.identity")[0].info.run_id)
    assert left.data.tags["mlflow.parentRunId"] == runs("reopold.study_parent")[0].info.run_id
    late = twin(first.run_id)  # arrives after the search
    (stray,) = [each for each in open_runs() if each.run_id == late]
    assert close_run(stray) == "deleted"
    assert client().get_run(late).info.lifecycle_stage == "deleted"
    assert client().get_run(first.run_id).info.lifecycle_stage == "active"
    assert len(twins) == 2
