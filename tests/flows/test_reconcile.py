"""Flow runs whose process was killed are closed on a real Prefect server; living ones are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reopold.run_dir import RunDir
from tests.conftest import REPO
from tests.integration.prefect_place import Place, opened, steps, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

SLEEPER = """
import sys, time
from prefect import flow
from prefect.runtime import flow_run
from tasks.alive import alive

@flow(name="sleeper", flow_run_name="{name}")
def sleeper(name: str) -> None:
    with alive():
        print(flow_run.id, flush=True)
        time.sleep(300)

sleeper(sys.argv[1])
"""
RECONCILE = "import sys; from flows.reconcile import reconcile; reconcile(fix=sys.argv[1] == 'fix')"
SERVE = """
from flows.reconcile import reconcile
reconcile.serve(name="often", interval=5, parameters={"fix": True})
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from opened(tmp_path_factory.mktemp("reconcile"))


def sleepers(place: Place, *names: str) -> dict[str, tuple[subprocess.Popen[str], str]]:
    """Flows that do nothing, by name: their processes and their flow runs' ids."""
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-c", SLEEPER, name], env=place.env, cwd=place.folder,
            stdout=subprocess.PIPE, text=True,
        )
        for name in names
    }  # fmt: skip
    found = {}
    for name, process in processes.items():
        assert process.stdout is not None
        found[name] = (process, process.stdout.readline().strip())
    return found


def doctor(place: Place, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and the findings about flow runs by flow run."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("reopold")), "doctor", "--json", *options],
        env=place.env, cwd=place.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)["findings"]
    return done.returncode, {each["where"]: each for each in found if each["check"] == "flow run"}


def reconcile(place: Place, how: str) -> tuple[int, str]:
    """Exit code and name of the flow run's state."""
    done = subprocess.run(
        [sys.executable, "-c", RECONCILE, how], env=place.env, cwd=place.folder,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    body = {"sort": "START_TIME_DESC", "flows": {"name": {"any_": ["reconcile"]}}, "limit": 1}
    (run,) = place.client.post("/flow_runs/filter", json=body).raise_for_status().json()
    return done.returncode, run["state"]["name"] + " " + (run["state"]["message"] or "")


@pytest.mark.slow
def test_killed_flow_runs_are_closed_and_living_ones_left_alone(place: Place) -> None:
    flows = sleepers(place, "killed", "cancelled", "retried", "living")
    ids = {name: flow_run for name, (_, flow_run) in flows.items()}
    files = {name: place.folder / "home" / "flows" / f"{ids[name]}.json" for name in flows}
    try:
        assert reconcile(place, "tell")[1].startswith("Completed")
        for name in ("killed", "cancelled", "retried"):
            flows[name][0].kill()
            flows[name][0].wait()
        place.set_state(ids["cancelled"], "CANCELLING", "Cancelling")
        _another_attempt(files["retried"])
        assert [place.state(ids[name]) for name in ids] == [
            "Running",
            "Cancelling",
            *["Running"] * 2,
        ]

        code, state = reconcile(place, "tell")
        assert code == 1 and state.startswith("Failed") and "2 faults are left" in state
        assert ids["killed"] in state and ids["cancelled"] in state and ids["living"] not in state
        assert place.state(ids["killed"]) == "Running"

        code, found = doctor(place, "--fix")
        assert code == 0 and set(found) == {ids[name] for name in ids if name != "living"}
        assert not found[ids["retried"]]["fault"]
        assert [place.state(ids[name]) for name in ids] == [
            "Crashed", "Cancelled", "Running", "Running"
        ]  # fmt: skip
        assert [files[name].exists() for name in ids] == [False, False, True, True]
        told = place.client.get(f"/flow_runs/{ids['killed']}").json()["state"]["message"]
        assert f"(process {flows['killed'][0].pid} on " in told and "without a word" in told

        assert reconcile(place, "fix")[1].startswith("Completed")
        assert place.state(ids["living"]) == "Running" and flows["living"][0].poll() is None
        assert "GiB free" in _artifact(place)
    finally:
        for process, _ in flows.values():
            process.kill()
            process.wait()


def _another_attempt(file: Path) -> None:
    """As if the run had been killed and tried again: its state on Prefect's page is a newer one."""
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "state": "of the attempt before"}))


def _artifact(place: Place) -> str:
    latest = place.client.get("/artifacts/reconcile/latest").raise_for_status().json()
    return str(latest["data"])


@pytest.mark.slow
def test_it_can_be_served_on_a_schedule(place: Place) -> None:
    flow_run = sleepers(place, "killed")["killed"]
    flow_run[0].kill()
    flow_run[0].wait()
    log = place.folder / "serve.log"
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVE], env=place.env, cwd=place.folder, stdout=output,
            stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        until("closed by a scheduled run", lambda: place.state(flow_run[1]) == "Crashed")
    finally:
        os.killpg(server.pid, 9)
        server.wait()


@pytest.mark.slow
def test_after_the_whole_command_was_killed_the_doctor_leaves_a_clean_home(
    recipe: Any, tmp_path: Path
) -> None:
    """A real run on Prefect's own short-lived server, beside which the doctor starts no other."""
    home = tmp_path / "home"
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW", "REOPOLD"))
    }
    env |= {"REOPOLD_HOME": str(home), "PYTHONPATH": str(REPO)}
    from reopold.config import TrainConfig

    config = recipe("opd", train=TrainConfig(steps=400, checkpoint_every=50, micro_batch=4))
    (tmp_path / "recipe.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    command = [str(Path(sys.executable).with_name("reopold"))]

    def start(log: str) -> subprocess.Popen[bytes]:
        with open(tmp_path / log, "wb") as output:
            return subprocess.Popen(
                [*command, "distill", "recipe.yaml"], env=env, cwd=tmp_path, stdout=output,
                stderr=output, start_new_session=True,
            )  # fmt: skip

    def doctor(*options: str) -> tuple[int, list[dict[str, Any]]]:
        done = subprocess.run(
            [*command, "doctor", "--json", *options], env=env, cwd=tmp_path, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        return done.returncode, json.loads(done.stdout)["findings"]

    run = RunDir(home / "studies" / "runs" / "runs" / config.name)
    flow = start("first.log")
    until("three steps", lambda: steps(run) >= 3)
    assert doctor("--fix") == (0, []), "a healthy run has no faults"
    assert flow.poll() is None and run.holder() is not None
    flow.kill()
    flow.wait()
    until("its trainer has saved", lambda: run.holder() is None)

    code, found = doctor()
    assert code == 1 and {"flow run", "MLflow"} <= {each["check"] for each in found}
    assert [each for each in doctor("--fix")[1] if each["fault"] and not each["fixed"]] == []
    assert doctor() == (0, [])
    assert Place.mentioning(home) == [], "a process is left"

    again = start("second.log")
    assert again.wait(200) == 0, (tmp_path / "second.log").read_text()
    assert run.manifest()["status"] == "finished"
    assert doctor() == (0, [])
