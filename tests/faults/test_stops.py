"""A stop is answered in the middle of a step, loses none of it, and changes no bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from reopold.checkpoint import load_state
from reopold.config import ObjectiveConfig
from reopold.run_dir import RunDir, step_of
from tests.faults.compare import assert_same
from tests.faults.conftest import MakeRecipe, Straight
from tests.faults.zygote import Zygote

pytestmark = pytest.mark.integration

#: A function, which of its calls is answered by a stop, and what is there of the step by then.
PLACES = {
    "sampling": ("HFEngine._sample", 3, ()),
    "scoring": ("Updater.score", 2, ("rollouts",)),
    "update": ("Updater.backward", 1, ("rollouts", "batch", "credit", "updates")),
    "second update": ("Updater.backward", 2, ("rollouts", "batch", "credit", "updates")),
}
RECIPES: dict[str, dict[str, Any]] = {
    "reopold": {},
    "dapo": {"objective": ObjectiveConfig(resample_rounds=2)},
    "gkd": {"objective": ObjectiveConfig(support="top_k", top_k=3)},
    "exopd": {"train": {"updates_per_step": 3}},
    "sft": {"train": {"updates_per_step": 1}},
    "opd": {"train": {"updates_per_step": 1, "keep_activations": True}},
}


def stop_at(place: str) -> dict[str, Any]:
    name, call, _ = PLACES[place]
    number = int(signal.SIGTERM)
    return {"at": "function", "name": name, "call": call, "delay": 0.0, "signal": number}


@pytest.mark.parametrize("method", RECIPES)
def test_a_stop_keeps_what_there_is_of_the_step(
    method: str, zygote: Zygote, small: MakeRecipe, straight: Straight, tmp_path: Path
) -> None:
    config = small(method, **RECIPES[method])
    run, log = RunDir(tmp_path / "run").create(config), tmp_path / "log"
    for place in PLACES:
        code = zygote.run("reopold.train", str(run.path), log=log, fault=stop_at(place))
        if code == 0:
            continue  # sft samples nothing, and one update has no second
        assert code == 3, log.read_text()
        assert run.manifest()["status"] == "stopped"
        points = run.resume_points()
        if PLACES[place][2] and method != "sft":
            kept = load_state(points[-1])["under_way"]
            assert points[-1] == run.middle(step_of(points[-1])), place
            assert set(PLACES[place][2]) <= kept.keys(), place
    assert zygote.run("reopold.train", str(run.path), log=log) == 0, log.read_text()
    assert_same(straight(config), run)


def test_what_was_sampled_and_scored_is_not_done_again(
    zygote: Zygote, small: MakeRecipe, straight: Straight, tmp_path: Path
) -> None:
    """Broken on purpose: a teacher that is gone is not missed by a step that it has scored."""
    config = small()
    run, log = RunDir(tmp_path / "run").create(config), tmp_path / "log"
    assert zygote.run("reopold.train", str(run.path), log=log, fault=stop_at("second update")) == 3
    name = "Sampler.draw"
    fault = {"at": "function", "name": name, "call": 1, "delay": 0.0}
    assert zygote.run("reopold.train", str(run.path), log=log, fault=fault) == -signal.SIGKILL
    steps = [line["step"] for line in run.metrics()]
    assert steps == [0], "the step that was under way was made without another sample"
    assert zygote.run("reopold.train", str(run.path), log=log) == 0
    assert_same(straight(config), run)


def test_a_second_signal_ends_the_process_at_once() -> None:
    """Whatever it is busy with: here it never looks at the flag."""
    code = (
        "import time; from reopold.stopping import StopFlag\n"
        "StopFlag(); print('ready', flush=True)\n"
        "while True: time.sleep(0.01)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(2.0) == 3


def test_an_evaluation_stops_between_two_tokens_and_keeps_its_results(
    zygote: Zygote, small: MakeRecipe, straight: Straight, suite: Path, tmp_path: Path
) -> None:
    """The second checkpoint is given up; the first one's results stay, and are not made again."""
    config = small(
        evaluation={"data": str(suite / "micro_maths" / "test.jsonl"), "max_new_tokens": 12}
    )
    run = straight(config)
    fault = {**stop_at("sampling"), "call": 2}
    log = tmp_path / "log"
    assert zygote.run("evals.run", str(run.path), log=log, fault=fault) == 3, log.read_text()
    assert "stopped: what was evaluated is kept" in log.read_text()
    made = sorted((run.path / "eval").glob("*/*/results.json"))
    assert [file.parent.parent.name for file in made] == ["step-000002"]
    before = made[0].stat().st_mtime_ns
    assert zygote.run("evals.run", str(run.path), log=log) == 0
    assert made[0].stat().st_mtime_ns == before
    assert len(list((run.path / "eval").glob("*/*/results.json"))) == 4


def test_a_run_waits_for_a_predecessor_that_is_saving(
    zygote: Zygote, small: MakeRecipe, straight: Straight, tmp_path: Path
) -> None:
    """Launched again while the old trainer still holds the folder, it waits; by hand it refuses."""
    long = small(train={"steps": 100_000, "checkpoint_every": 100_000, "save_every": 0})
    run, log = RunDir(tmp_path / "run").create(long), tmp_path / "log"
    first = zygote.start("reopold.train", str(run.path), log=log)
    while len(run.metrics()) < 2:
        time.sleep(0.02)
    holder = run.holder()
    assert holder is not None and holder["pid"] == first.pid
    assert zygote.run("reopold.train", str(run.path), log=tmp_path / "second") == 2
    said = (tmp_path / "second").read_text()
    assert "another trainer is at work" in said and str(first.pid) in said
    launched = {"REOPOLD_PARENT_PID": str(zygote.process.pid)}
    third = zygote.start("reopold.train", str(run.path), log=tmp_path / "third", env=launched)
    time.sleep(0.3)
    assert third.running()
    first.kill(signal.SIGTERM)
    assert first.wait() == 3
    steps = run.last_step()
    while len(run.metrics()) < steps + 2:
        assert third.running(), third.output()
        time.sleep(0.02)
    third.kill(signal.SIGTERM)
    assert third.wait() == 3
    assert [line["step"] for line in run.metrics()] == list(range(len(run.metrics())))
    events = [json.loads(line)["kind"] for line in run.events_file.read_text().splitlines()]
    assert events.count("start") + events.count("resume") == 2
    assert run.holder() is None
