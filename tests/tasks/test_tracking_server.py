"""Shipping through a real MLflow server that is killed and started again, slow, full or failing.

One server for the module. Whatever happened: once the fault is gone, every point is there once.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tasks import home, live_tracking, progress
from tasks.live_tracking import shipping
from tasks.tracking import TrackingUnavailable, best_checkpoint, ship_run, waiting_run
from tests.tasks.conftest import METRICS
from tests.tasks.tracking_server import Fault, Network, Server, free_port

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = pytest.mark.integration
MakeRun = Callable[..., Any]
LOSS, SCORE = "train/loss", "eval/micro_maths/avg_at_4"

SHIPPER = """
import os, sys
from pathlib import Path
from mlflow import MlflowClient
from tasks.tracking import ship_run
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            ship_run(Path(line.strip()))
        finally:
            os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    database = folder / "mlflow.db"
    database.write_bytes(empty_database.read_bytes())
    server = Server(f"sqlite:///{database}", folder)
    yield server
    server.kill()


@pytest.fixture
def running(server: Server, fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, up, and tracking pointed at it."""
    if server.process is None:
        server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    return server


@pytest.fixture
def network(running: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """A way to the server that can go wrong, for a client that waits a second at most."""
    made = Network(running.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    yield made
    made.close()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the user is told; and the live shipper asks often."""
    said: list[str] = []
    monkeypatch.setattr(live_tracking, "LINK", live_tracking.Link())
    monkeypatch.setattr(live_tracking, "_SHIPPER", live_tracking._Shipper())
    monkeypatch.setattr(live_tracking._SHIPPER, "pause", 0.2)
    monkeypatch.setattr(live_tracking, "INTERVAL", 0.2)
    monkeypatch.setattr(live_tracking, "LONGEST", 0.5)
    monkeypatch.setattr(progress._display, "tell", said.append, raising=False)
    return said


def client() -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def steps_of(run_id: str, key: str = LOSS) -> list[int]:
    return sorted(point.step for point in client().get_metric_history(run_id, key))


def assert_all_there_once(run: Any, run_id: str) -> None:
    """Every number of metrics.jsonl is one point in MLflow; times may be of the first try."""
    lines = run.dir.metrics()
    for key in (*METRICS, "samples", "tokens"):
        points = client().get_metric_history(run_id, key)
        assert Counter((p.step, p.value) for p in points) == Counter(
            (line["step"], float(line[key])) for line in lines
        ), key


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_server_away_at_the_start_in_the_middle_and_at_the_end(
    server: Server,
    fresh_home: Path,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
    told: list[str],
) -> None:
    """A run trains and is shipped live; the user is told of each outage and return, once."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    log = live_tracking.logging.getLogger("stage")
    run = make_run(steps=60)
    run.status("running")
    with shipping(run.path, log):
        run.train(0, 5)  # nobody is there at the start
        wait_for(lambda: told)
        time.sleep(1.0)  # and several attempts more
        run.train(5, 10)
        server.start()
        wait_for(lambda: len(told) == 2)
        run_id = live_tracking.ship_run(run.path).run_id
        for step in range(10, 30):
            run.train(step, step + 1)
            if step == 15:
                server.kill()  # whatever it was doing
            time.sleep(0.03)
        wait_for(lambda: len(told) == 3)
        server.start()
        wait_for(lambda: len(told) == 4)
        run.train(30, 60)
        for step in (15, 30):
            run.checkpoint(step)
            run.evaluate(step, step / 120)
        server.kill()
        run.status("finished", 60)
        wait_for(lambda: len(told) == 5)
        started = time.monotonic()
    assert time.monotonic() - started < 1.0  # the stage does not wait
    server.start()
    wait_for(lambda: len(told) == 6)
    wait_for(lambda: waiting_run(run.path) is None)

    away = rf"MLflow at {server.url}: (connection refused|the connection broke)\. Training goes on"
    assert all(re.match(away, text) for text in told[::2])
    assert re.fullmatch(r"MLflow is back after \d+ s and has .*: 10 steps of reopold-s1", told[1])
    assert "MLflow is back after" in told[3] and "and 2 evaluations of reopold-s1" in told[5]
    assert_all_there_once(run, run_id)
    assert steps_of(run_id, SCORE) == [15, 30]
    shipped = client().get_run(run_id)
    assert shipped.info.status == "FINISHED"
    assert len(client().search_logged_models([shipped.info.experiment_id])) == 2
    best = best_checkpoint("micro", "micro_maths")
    assert best is not None and best.value == pytest.approx(0.25)
    names = {file.path for file in client().list_artifacts(run_id)}
    assert names == {"config.json", "manifest.json"}
    wait_for(lambda: live_tracking._SHIPPER.thread is None)


def test_a_shipper_killed_at_any_instant(
    running: Server, make_run: MakeRun, child_env: dict[str, str]
) -> None:
    """And between two kills the trainer may be killed, too, and run its last steps again."""
    seed = random.randrange(10_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    whole, run = make_run(seed=2, steps=400).whole(), make_run(steps=400)
    with shippers({**child_env, "MLFLOW_TRACKING_URI": running.url}) as ship:
        ship(whole.path, None)
        run.status("running")
        rounds, kills, usual = 0, -2, 0.0
        while kills < 8:
            run.train(10 * rounds, 10 * (rounds + 1))
            rounds += 1
            if rounds % 3 == 0:
                evaluate(run, 10 * rounds)
            started = time.monotonic()
            ended = ship(run.path, None if kills < 0 else chance.uniform(0.0, usual))
            usual = time.monotonic() - started if kills < 0 else usual
            kills += kills < 0 or not ended  # the first two are timed
            if rounds % 4 == 3:
                run.dir.cut_back(10 * rounds - 4)
                run.train(10 * rounds - 4, 10 * rounds)  # the same numbers at later times
        run.status("finished", 10 * rounds)
        ship(run.path, None)
    print(f"{rounds} shipments, {kills} of them killed")
    report = ship_run(run.path)
    assert (report.metrics_sent, waiting_run(run.path)) == (0, None)
    assert_all_there_once(run, report.run_id)
    assert steps_of(report.run_id, SCORE) == [*range(30, 10 * rounds + 1, 30)]
    shipped = client().get_run(report.run_id)
    ours = f"tags.`reopold.identity` = '{run.identity}'"
    assert len(client().search_runs([report.experiment_id], ours)) == 1
    linked = {each.model_id for each in shipped.outputs.model_outputs}
    made = client().search_logged_models(
        [report.experiment_id], f"source_run_id = '{report.run_id}'"
    )
    assert {model.model_id for model in made} == linked and len(linked) == rounds // 3
    assert shipped.info.status == "FINISHED"
    uninterrupted = client().get_metric_history(ship_run(whole.path).run_id, LOSS)
    expected = {p.step: p.value for p in uninterrupted if p.step < 10 * rounds}
    assert {p.step: p.value for p in client().get_metric_history(report.run_id, LOSS)} == expected


def evaluate(run: Any, step: int) -> None:
    run.checkpoint(step)
    run.evaluate(step, step / 1000)


@contextmanager
def shippers(env: dict[str, str]) -> Iterator[Callable[[Path, float | None], bool]]:
    """Ships a folder in a process of its own, killed after so many seconds; True: it had ended."""
    command = [sys.executable, "-c", SHIPPER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    parent = subprocess.Popen(command, env=env, text=True, bufsize=1, **pipes)  # type: ignore[call-overload]

    def ship(folder: Path, seconds: float | None) -> bool:
        parent.stdin.write(f"{folder}\n")
        child = int(parent.stdout.readline())
        ended = threading.Event()
        reader = threading.Thread(target=lambda: (parent.stdout.readline(), ended.set()))
        reader.start()
        if seconds is not None and not ended.wait(seconds):
            os.kill(child, signal.SIGKILL)
            reader.join()
            return False
        reader.join()
        return True

    with parent:
        yield ship
        parent.stdin.close()


@pytest.mark.parametrize("fault", ["hold request", "lose answer", "answer 500"])
def test_a_batch_whose_answer_never_comes(
    network: Network, make_run: MakeRun, fault: Fault
) -> None:
    """It may arrive after its steps have run again, later and with other times."""
    run = make_run()
    run.status("running")
    run.train(0, 5)
    first = ship_run(run.path)
    run.train(5, 12)
    network.fault = fault
    with pytest.raises(TrackingUnavailable) as failure:
        ship_run(run.path)
    reason = {"answer 500": "HTTP 500"}.get(fault, "timeout")
    assert reason in failure.value.why and network.hit
    run.dir.cut_back(8)
    run.train(8, 14)
    network.fault = "none"
    if fault == "hold request":
        run_id = ship_run(run.path).run_id
        network.release.set()
        time.sleep(1.5)  # the requests of then arrive now
    run_id = ship_run(run.path).run_id
    assert run_id == first.run_id
    assert_all_there_once(run, run_id)


def test_a_first_request_that_is_too_slow_makes_no_second_run(
    running: Server, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(running.port, marker=b"runs/create")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", network.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    run = make_run()
    run.status("running")
    run.train(0, 5)
    ship_run(make_run(seed=2).whole().path)  # the study is there
    network.fault = "lose answer"
    with pytest.raises(TrackingUnavailable, match="timeout"):
        ship_run(run.path)
    network.fault = "none"
    report = ship_run(run.path)
    wanted = f"tags.`reopold.identity` = '{run.identity}'"
    assert len(client().search_runs([report.experiment_id], wanted)) == 1
    assert_all_there_once(run, report.run_id)
    network.close()


def test_a_server_whose_disk_is_full(running: Server, make_run: MakeRun) -> None:
    """In the middle of a shipment of several batches. The reason is the server's own."""
    run = make_run(steps=400).whole()
    file = Path(running.store.removeprefix("sqlite:///"))
    running.limit_files(file.stat().st_size + 400_000)
    with pytest.raises(TrackingUnavailable, match="HTTP 503"):
        ship_run(run.path)
    waits = waiting_run(run.path)
    assert waits is not None and 0 < waits.steps < 400
    running.limit_files(0)
    with pytest.raises(TrackingUnavailable, match=r"HTTP 503: .*disk") as failure:
        ship_run(run.path)
    assert len(str(failure.value)) < 200
    running.limit_files(-1)
    report = ship_run(run.path)
    assert report.steps_sent == waits.steps
    assert_all_there_once(run, report.run_id)
    assert waiting_run(run.path) is None


def test_a_stage_does_not_wait_for_a_server_that_hangs(
    network: Network, make_run: MakeRun, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    monkeypatch.setattr(live_tracking, "PATIENCE", 1.0)
    run = make_run()
    run.status("running")
    run.train(0, 5)
    network.fault = "hold request"
    with shipping(run.path, live_tracking.logging.getLogger("stage")):
        wait_for(lambda: network.hit)
        started = time.monotonic()
    assert time.monotonic() - started < 0.5
    started = time.monotonic()
    with pytest.raises(RuntimeError), shipping(run.path, live_tracking.logging.getLogger("stage")):
        raise RuntimeError("stopped")
    assert time.monotonic() - started < 2.0
    network.fault = "none"
    network.release.set()
    wait_for(lambda: waiting_run(run.path) is None)
    assert_all_there_once(run, ship_run(run.path).run_id)


def test_ten_runs_at_once_and_one_that_cannot_be_read(
    tracked_home: Path, make_run: MakeRun, told: list[str]
) -> None:
    """One thread ships them all; what is wrong with one is said once and keeps no other back."""
    log = live_tracking.logging.getLogger("stage")
    made = [make_run(seed=seed, steps=40) for seed in range(10)]
    with ExitStack() as stages:
        for run in made:
            run.status("running")
            stages.enter_context(shipping(run.path, log))
        damaged = made[0].dir.manifest_file
        whole = damaged.read_text()
        damaged.write_text("{")
        for step in range(40):
            for run in made:
                run.train(step, step + 1)
            time.sleep(0.02)
        wait_for(lambda: all(waiting_run(run.path) is None for run in made[1:]))
        (said,) = told
        assert said.startswith("reopold-s0 is not shipped to MLflow: ConfigError:")
        damaged.write_text(whole)
        wait_for(lambda: waiting_run(made[0].path) is None)
    for run in made:
        assert_all_there_once(run, ship_run(run.path).run_id)
    wait_for(lambda: live_tracking._SHIPPER.thread is None)


def test_a_server_that_hangs_and_a_password(
    fresh_home: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://me:secret@127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        started = time.monotonic()
        with pytest.raises(TrackingUnavailable, match="timeout: no answer within 2 s") as failure:
            ship_run(make_run().path)
    assert time.monotonic() - started < 5
    assert "secret" not in str(failure.value)


def test_a_server_that_dies_half_way(
    tracked_home: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes as TrackingUnavailable after short retries, whatever raised it."""
    from mlflow import MlflowClient

    run = make_run().whole()
    ship_run(run.path)
    real = MlflowClient.search_runs

    def dies(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        dead = MlflowClient(f"http://127.0.0.1:{free_port()}")
        return real(dead, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "search_runs", dies)
    started = time.monotonic()
    with pytest.raises(TrackingUnavailable, match="connection refused"):
        ship_run(make_run(seed=2).path)
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("full", ["numbers", "files"])
def test_a_full_disk_of_the_local_store(tracked_home: Path, make_run: MakeRun, full: str) -> None:
    """A real one, a small tmpfs. The numbers arrive although there is no room for files."""
    run = make_run(steps=150).whole()
    database = home.home() / "mlflow" / "mlflow.db"
    folder = database.parent if full == "numbers" else home.artifact_root()
    content = database.read_bytes()
    with small_disk(folder, len(content) + 400_000 if full == "numbers" else 8192):
        if full == "numbers":
            database.write_bytes(content)
        else:
            (folder / "filler").write_bytes(b"x" * 4096)
        with pytest.raises(TrackingUnavailable, match=r"disk is full|No space left"):
            ship_run(run.path)
        waits = waiting_run(run.path)
        assert waits is not None
        (sent,) = client().search_runs(["1"], f"tags.`reopold.identity` = '{run.identity}'")
        if full == "numbers":
            assert 0 < waits.steps < 150
            subprocess.run(["mount", "-o", "remount,size=16m", str(folder)], check=True)
        else:
            assert (waits.steps, sent.info.status) == (0, "FINISHED")
            (folder / "filler").unlink()
            subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
        report = ship_run(run.path)
        assert report.run_id == sent.info.run_id and waiting_run(run.path) is None
        assert_all_there_once(run, report.run_id)
        names = {file.path for file in client().list_artifacts(report.run_id)}
        assert names == {"config.json", "manifest.json"}


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
