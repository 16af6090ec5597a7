"""Recipes that change while a run is under way: by hand, or because an alarm rolled it back."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from reopold.checkpoint import load_state
from reopold.config import (
    ConfigError,
    HealthConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
)
from reopold.run_dir import RunDir
from tests.faults.compare import assert_same, logged
from tests.faults.conftest import MakeRecipe, Straight
from tests.faults.zygote import Zygote

pytestmark = pytest.mark.integration

#: A gradient a little above those before it is an alarm: it begins at a step in mid-run.
TOUCHY: dict[str, Any] = {
    "train": {"steps": 10, "updates_per_step": 1},
    "objective": ObjectiveConfig(switch_step=4),
    "optimizer": OptimizerConfig(lr=0.1),
}


def touchy(policy: str, **more: Any) -> HealthConfig:
    settings = {"window": 2, "gradient_factor": 1.5, "gradient_spike": policy, **more}
    return HealthConfig.model_validate({**settings, "reward_collapse": "off"})


def alarms(run: RunDir) -> list[tuple[str, int]]:
    return [(e["alarm"], e["step"]) for e in run.events() if e["kind"] == "alarm"]


def test_a_changed_recipe_is_refused_or_accepted_by_field(
    zygote: Zygote, small: MakeRecipe, tmp_path: Path
) -> None:
    config, log = small(), tmp_path / "log"
    run = RunDir(tmp_path / "run").create(config)
    assert zygote.run("reopold.train", str(run.path), "--until", "3", log=log) == 0
    changed = config.model_copy(
        update={"optimizer": OptimizerConfig(lr=1e-4, weight_decay=0.5), "seed": 4}
    )
    with pytest.raises(ConfigError) as refused:
        run.create(changed, ["optimizer"])
    assert "seed  3 -> 4" in str(refused.value) and "optimizer" not in str(refused.value)
    assert run.config() == RunDir(run.path).config() and run.config().seed == 3
    changed = changed.model_copy(update={"seed": 3})
    run.create(changed, ["optimizer"])
    assert zygote.run("reopold.train", str(run.path), log=log) == 0, log.read_text()
    assert run.metrics()[2]["train/lr"] == 3e-4 and run.metrics()[3]["train/lr"] == 1e-4
    (event,) = (e for e in run.events() if e["kind"] == "config_changed")
    assert event["step"] == 3
    assert event["set"] == {
        "optimizer.lr": [3e-4, 1e-4],
        "optimizer.weight_decay": [0.0, 0.5],
    }
    state = load_state(run.checkpoint(6))["optimizer"]
    assert state["param_groups"][0]["weight_decay"] == 0.5, "the checkpoint's own must not win"
    kept = json.loads((run.checkpoint(6) / "trainer" / "config.json").read_text())
    assert kept["optimizer"]["lr"] == 1e-4


def test_a_recipe_edited_by_hand_is_refused_by_the_trainer(
    zygote: Zygote, small: MakeRecipe, straight: Straight, tmp_path: Path
) -> None:
    run, log = RunDir(tmp_path / "run").create(small()), tmp_path / "log"
    assert zygote.run("reopold.train", str(run.path), "--until", "3", log=log) == 0
    before = run.config_file.read_text()
    run.config_file.write_text(before.replace('"beta": 0.2', '"beta": 0.5'))
    assert zygote.run("reopold.train", str(run.path), log=tmp_path / "refused") == 2
    said = (tmp_path / "refused").read_text()
    assert "objective.beta  0.2 -> 0.5" in said and "--accept objective.beta" in said
    run.config_file.write_text(before)  # put back, it goes on as if nothing had been
    assert zygote.run("reopold.train", str(run.path), log=log) == 0
    assert_same(straight(small()), run)
    run.config_file.write_text(before.replace('"steps": 6', '"steps": 7'))
    accept = ("--accept", "train")
    assert zygote.run("reopold.train", str(run.path), *accept, log=log) == 0, log.read_text()
    assert len(run.metrics()) == 7


def test_an_alarm_pauses_a_run_until_it_is_started_again(
    zygote: Zygote, small: MakeRecipe, straight: Straight, tmp_path: Path
) -> None:
    reference = straight(small(**TOUCHY, health=touchy("warn")))
    (first, step), *_ = alarms(reference)
    assert first == "gradient_spike" and 1 < step < 9
    run, log = (
        RunDir(tmp_path / "run").create(small(**TOUCHY, health=touchy("pause"))),
        tmp_path / "log",
    )
    assert zygote.run("reopold.train", str(run.path), log=log) == 4
    assert "paused: gradient_spike at step" in log.read_text()
    manifest = run.manifest()
    assert manifest["status"] == "paused" and manifest["step"] == step + 1
    assert [e["step"] for e in run.events() if e["kind"] == "pause"] == [step + 1]
    for _ in range(8):
        code = zygote.run("reopold.train", str(run.path), log=log)
        if code == 0:
            break
        assert code == 4
    assert run.manifest()["status"] == "finished"
    assert logged(run.metrics()) == logged(reference.metrics())
    assert alarms(run) == alarms(reference)


def test_an_alarm_stops_a_run_until_its_policy_is_changed(
    zygote: Zygote, small: MakeRecipe, tmp_path: Path
) -> None:
    config, log = small(**TOUCHY, health=touchy("stop")), tmp_path / "log"
    run = RunDir(tmp_path / "run").create(config)
    assert zygote.run("reopold.train", str(run.path), log=log) == 1
    assert run.manifest()["ended_by"] == "gradient_spike" and run.manifest()["status"] == "failed"
    steps = len(run.metrics())
    assert run.last_step() == steps, "what there is was saved"
    assert zygote.run("reopold.train", str(run.path), log=tmp_path / "refused") == 2
    assert "set health.gradient_spike=warn" in (tmp_path / "refused").read_text()
    run.create(small(**TOUCHY, health=touchy("warn")), ["health.gradient_spike"])
    assert zygote.run("reopold.train", str(run.path), log=log) == 0, log.read_text()
    assert len(run.metrics()) == 10 and run.manifest()["ended_by"] == ""


def test_a_rollback_goes_on_from_a_healthy_checkpoint_with_a_changed_setting(
    zygote: Zygote, small: MakeRecipe, straight: Straight
) -> None:
    warned = straight(small(**TOUCHY, health=touchy("warn")))
    (_, step), *_ = alarms(warned)
    config = small(**TOUCHY, health=touchy("rollback", rollback_limit=3))
    run = straight(config)
    rollbacks = [e for e in run.events() if e["kind"] == "rollback"]
    assert rollbacks and run.attempt() == len(rollbacks)
    back = rollbacks[0]["to_step"]
    assert rollbacks[0]["step"] == step and 0 < back <= step
    assert rollbacks[0]["set"] == {"optimizer.lr": [0.1, 0.05]}
    rates = [line["train/lr"] for line in run.metrics()]
    assert rates[:back] == [0.1] * back and rates[-1] == 0.1 * 0.5 ** len(rollbacks)
    assert logged(run.metrics()[:back]) == logged(warned.metrics()[:back])
    assert [line["step"] for line in run.metrics()] == list(range(10))
    assert run.recipe().optimizer.lr == rates[-1] and run.manifest()["attempt"] == len(rollbacks)
    raw = json.loads(run.config_file.read_text())
    assert raw["optimizer"]["lr"] == 0.1, "the recipe is the user's; changes.json lies over it"
    RunDir(run.path).create(config)  # and asking for it again finds it as it was


def test_after_the_last_rollback_the_alarm_stops_the_run(
    zygote: Zygote, small: MakeRecipe, tmp_path: Path
) -> None:
    config = small(**TOUCHY, health=touchy("rollback", rollback_limit=0))
    run, log = RunDir(tmp_path / "run").create(config), tmp_path / "log"
    assert zygote.run("reopold.train", str(run.path), log=log) == 1
    assert run.manifest()["ended_by"] == "gradient_spike"
    assert not [e for e in run.events() if e["kind"] == "rollback"]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("roll_back", 1),
        ("RunDir.add_change", 1),
        ("resume_point", 2),
        ("RunDir.cut_back", 2),
        ("Trainer._restore", 1),
        ("write_checkpoint", 7),
    ],
)
def test_killed_in_a_rollback_it_ends_with_the_same_bits(
    name: str, call: int, zygote: Zygote, small: MakeRecipe, straight: Straight, tmp_path: Path
) -> None:
    config = small(**TOUCHY, health=touchy("rollback", rollback_limit=3))
    run, log = RunDir(tmp_path / "run").create(config), tmp_path / "log"
    for delay in (0.0005, 0.002):
        fault = {"at": "function", "name": name, "call": call, "delay": delay}
        code = zygote.run("reopold.train", str(run.path), log=log, fault=fault)
        assert code in (0, -signal.SIGKILL), log.read_text()
    assert zygote.run("reopold.train", str(run.path), log=log) == 0, log.read_text()
    assert_same(straight(config), run)
    assert [c.set for c in run.changes()] == [c.set for c in straight(config).changes()]


def test_a_study_changes_with_its_runs(small: MakeRecipe, tmp_path: Path) -> None:
    """`--accept` of a study reaches the runs that it has already."""
    from reopold.study_config import StudyConfig
    from tasks.preflight import check_study, claim_study

    study = StudyConfig(name="s", methods=["opd"], seeds=[1], baseline="opd")
    claim_study(study, tmp_path / "s")
    from reopold.studies import plan_run

    run = RunDir(tmp_path / "s" / "runs" / "opd-s1").create(
        plan_run(study, tmp_path / "s", study.arm("opd"), 1)
    )
    longer = study.model_copy(update={"train": TrainConfig(steps=120)})
    with pytest.raises(ConfigError, match="belongs to another config"):
        check_study(longer, tmp_path / "s")
    with pytest.raises(ConfigError, match=r"train.steps +100 -> 120"):
        check_study(longer, tmp_path / "s", ["optimizer"])
    check_study(longer, tmp_path / "s", ["train.steps"])
    claim_study(longer, tmp_path / "s", ["train.steps"])
    assert run.config().train.steps == 120 and run.changes()[0].by == "user"
    check_study(longer, tmp_path / "s")
