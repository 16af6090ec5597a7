"""Kill anything under a real Prefect server and worker: nothing is left over, nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from reopold.config import RunConfig, TrainConfig
from reopold.run_dir import RunDir
from tasks import gpu, leases
from tests.conftest import REPO
from tests.integration.prefect_place import Place, flow_process, opened, steps, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

Recipe = Callable[..., RunConfig]
#: More steps than anyone waits for, and few enough to see the end.
ENDLESS, SHORT = 100_000, 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from opened(tmp_path_factory.mktemp("prefect"))


@pytest.fixture
def devices(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slots in this process are those of the place."""
    for name in ("REOPOLD_HOME", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, place.env[name])
    with temporary_settings({PREFECT_API_URL: place.api}):
        yield


@pytest.fixture(scope="module")
def deployment(place: Place) -> str:
    deployed = place.deploy()
    place.start_worker()
    return deployed


@pytest.fixture
def launch(
    place: Place, deployment: str, recipe: Recipe, devices: None
) -> Callable[[str, int], tuple[str, RunDir, int]]:
    """Start a run and wait until it has taken some steps: flow run, run directory, trainer."""

    def start(name: str, number: int) -> tuple[str, RunDir, int]:
        train = TrainConfig(steps=number, checkpoint_every=number, micro_batch=4)
        flow_run, run = place.start_run(deployment, recipe("opd", train=train), name)
        until("three steps", lambda: _going(place, flow_run) and steps(run) >= 3)
        (trainer,) = place.mentioning(run.path, "reopold.train")
        assert list(gpu.held().values()).count(True) == place.slots_taken() == 1
        return flow_run, run, trainer

    return start


def test_a_lease_that_ran_out_is_taken_anew(place: Place, devices: None) -> None:
    """As after an absence of the server that is longer than a lease."""
    with place.holding_a_slot() as lease:
        first = lease()
        assert place.slots_taken() == 1
        leases.release(first)
        record = place.folder / "home" / "slots" / socket.gethostname() / "gpu-3"
        until("another lease", lambda: record.read_text() not in ("", first))
        assert place.slots_taken() == 1
    assert place.slots_taken() == 0 and gpu.stale_leases() == {}


def test_the_limit_counts_every_home_of_the_host_and_can_be_lowered(
    place: Place, tmp_path: Path
) -> None:
    """Two homes lock files of their own; what they have in common is the limit."""
    with place.holding_a_slot() as lease:
        assert lease()
        place.lower_limit(1)
        with place.holding_a_slot(REOPOLD_HOME=str(tmp_path)) as another:
            until("a locked device", lambda: list(tmp_path.rglob("gpu-3")))
            time.sleep(2)
            assert place.slots_taken() == 1
            place.lower_limit(2)
            assert another()
            assert place.slots_taken() == 2


def test_a_job_of_two_gpus_holds_both_by_one_lease(place: Place, devices: None) -> None:
    with place.holding_a_slot(WANTED="2", CUDA_VISIBLE_DEVICES="3,5") as lease:
        assert len(lease().split()) == 1
        assert place.slots_taken() == 2
    assert place.slots_taken() == 0 and gpu.stale_leases() == {}
    # It must not wait for ever with both devices locked.
    place.lower_limit(1)
    with (
        pytest.raises(AssertionError),
        place.holding_a_slot(WANTED="2", CUDA_VISIBLE_DEVICES="3,5") as lease,
    ):
        assert lease() == ""
    assert not any(gpu.held().values())
    place.lower_limit(2)


def test_cancel_saves_ends_everything_and_frees_the_slot(place: Place, launch: Any) -> None:
    flow_run, run, _ = launch("cancelled", ENDLESS)
    place.set_state(flow_run, "CANCELLING", "Cancelling")
    until("cancelled", lambda: place.state(flow_run) == "Cancelled")
    assert_nothing_is_left(place, run)
    assert saved_at(run) > 0


@pytest.mark.slow
def test_a_killed_trainer_fails_the_flow_and_frees_the_slot(place: Place, launch: Any) -> None:
    flow_run, run, trainer = launch("trainer-killed", ENDLESS)
    os.kill(trainer, signal.SIGKILL)
    until("failed", lambda: place.state(flow_run) == "Failed")
    assert_nothing_is_left(place, run)


@pytest.mark.slow
def test_a_killed_flow_leaves_its_slot_until_the_trainer_has_saved(
    place: Place, launch: Any
) -> None:
    flow_run, run, trainer = launch("flow-killed", ENDLESS)
    os.kill(trainer, signal.SIGSTOP)  # as one that takes long to save
    os.kill(flow_process(trainer), signal.SIGKILL)
    until("crashed", lambda: place.state(flow_run) == "Crashed")
    assert list(gpu.held().values()).count(True) == 1, "its device was handed on under it"
    os.kill(trainer, signal.SIGCONT)
    assert_no_process(place, run)
    assert saved_at(run) > 0
    # What Prefect still counts is known to be stale, and given back at once.
    assert place.slots_taken() == 1
    assert len(gpu.release_stale_leases()) == 1
    assert_nothing_is_left(place, run)


@pytest.mark.slow
def test_a_run_survives_the_death_of_its_server(place: Place, launch: Any) -> None:
    flow_run, run, trainer = launch("server-killed", SHORT)
    place.kill("server")
    before = steps(run)
    until("steps without a server", lambda: steps(run) > before)
    os.kill(trainer, signal.SIGSTOP)  # a server starts slowly, and the run must not end meanwhile
    place.start_server()
    assert place.slots_taken() == 1, "the restarted server has forgotten the lease"
    os.kill(trainer, signal.SIGCONT)
    until("completed", lambda: place.state(flow_run) == "Completed")
    assert [event["kind"] for event in run.events()].count("start") == 1
    assert_complete(place, run, resumed_at=[])


@pytest.mark.slow
def test_a_retry_goes_on_after_the_death_of_the_worker(place: Place, launch: Any) -> None:
    """Without its worker nobody could cancel the run: it saves and ends; another one retries it."""
    flow_run, run, _ = launch("retried", SHORT)
    place.kill("worker")
    until("failed", lambda: place.state(flow_run) == "Failed")
    assert_nothing_is_left(place, run)
    saved = saved_at(run)
    assert 0 < saved < SHORT

    place.start_worker()
    place.set_state(flow_run, "SCHEDULED", "AwaitingRetry")
    until("completed", lambda: place.state(flow_run) == "Completed")
    assert_complete(place, run, resumed_at=[saved])


def assert_complete(place: Place, run: RunDir, resumed_at: list[int]) -> None:
    assert run.manifest()["status"] == "finished"
    resumed = [event["step"] for event in run.events() if event["kind"] == "resume"]
    assert resumed == resumed_at
    assert [line["step"] for line in run.metrics()] == list(range(SHORT))
    assert_nothing_is_left(place, run)


@pytest.mark.slow  # tests/tasks/test_launch.py has the signals without Prefect, in less time
@pytest.mark.parametrize("kill", ["ctrl-c twice", "SIGKILL"])
def test_the_command_line_ends_at_once_and_leaves_no_process(
    kill: str, tmp_path: Path, recipe: Recipe
) -> None:
    """Neither the trainer, which is in no hurry, nor the server that Prefect started for us."""
    train = TrainConfig(steps=ENDLESS, checkpoint_every=ENDLESS, micro_batch=4)
    (tmp_path / "recipe.yaml").write_text(recipe("opd", train=train).canonical_json())
    run = RunDir(tmp_path / "run")
    command = [sys.executable, "-m", "flows.cli", "distill", "recipe.yaml", "-o", str(run.path)]
    unset = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
    env = {**unset, "REOPOLD_HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPO)}
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True
        )
    until("three steps", lambda: process.poll() is None and steps(run) >= 3)
    (trainer,) = Place.mentioning(run.path, "reopold.train")
    assert len(Place.mentioning(tmp_path / "home", "uvicorn")) == 1
    if kill == "SIGKILL":
        process.kill()
        assert process.wait(5) == -signal.SIGKILL
    else:
        os.kill(trainer, signal.SIGSTOP)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(5) == 130
    until("no process of this home", lambda: not Place.mentioning(tmp_path / "home"), 30)
    assert "Traceback" not in (tmp_path / "log").read_text()


def saved_at(run: RunDir) -> int:
    """Completed steps of a run whose trainer was stopped, and saved just there."""
    assert run.manifest()["status"] == "stopped"
    (point,) = run.resume_points()
    assert json.loads((point / "COMPLETE").read_text())["step"] == run.manifest()["step"]
    return int(run.manifest()["step"])


def assert_no_process(place: Place, run: RunDir) -> None:
    until("no process of the run", lambda: not place.mentioning(run.path), 30)
    # A dying process has lost its command line before its files.
    until("every device is free", lambda: not any(gpu.held().values()), 5)


def assert_nothing_is_left(place: Place, run: RunDir) -> None:
    assert_no_process(place, run)
    assert gpu.stale_leases() == {}
    assert place.slots_taken() == 0


def _going(place: Place, flow_run: str) -> bool:
    over = place.state(flow_run) in ("Completed", "Failed", "Crashed", "Cancelled")
    assert not over, place.log("worker")[-3000:]
    return True
