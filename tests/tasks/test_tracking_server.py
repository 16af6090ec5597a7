"""Shipping through a real MLflow server that is killed, started again, dying or silent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tasks import home
from tasks.tracking import TrackingUnavailable, best_checkpoint, ship_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

MakeRun = Callable[..., Any]
LOSS, SCORE = "train/loss", "eval/micro_maths/avg_at_4"


def client() -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def steps_of(run_id: str, key: str = LOSS) -> list[int]:
    return sorted(point.step for point in client().get_metric_history(run_id, key))


def test_a_server_killed_and_started_again_misses_nothing(
    tracked_home: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, port = os.environ["MLFLOW_TRACKING_URI"], free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    run = make_run()
    run.status("running")
    run.train(0, 5)
    with mlflow_server(store, port):
        first = ship_run(run.path, study="micro")
        assert first.url == f"http://127.0.0.1:{port}/#/experiments/1/runs/{first.run_id}"
    run.train(5, 20)
    for step in (5, 10):
        run.checkpoint(step)
        run.evaluate(step, step / 40)
    before = (run.path / "tracking.json").read_bytes()
    started = time.monotonic()
    with pytest.raises(TrackingUnavailable, match="no MLflow server answers"):
        ship_run(run.path, study="micro")
    assert time.monotonic() - started < 5
    assert (run.path / "tracking.json").read_bytes() == before

    run.status("finished", 20)
    with mlflow_server(store, port):
        report = ship_run(run.path, study="micro")
        (run.path / "tracking.json").unlink()
        again = ship_run(run.path, study="micro")
        assert (report.run_id, again.run_id) == (first.run_id, first.run_id)
        assert (report.metrics_sent, again.metrics_sent) == (15 * 20, 0)
        assert steps_of(first.run_id) == list(range(20))
        assert steps_of(first.run_id, SCORE) == [5, 10]
        assert len(client().search_logged_models(["1"])) == 2
        assert len(client().search_runs(["1"])) == 2
        best = best_checkpoint("micro", "micro_maths")
        assert best is not None and best.value == pytest.approx(0.25)
        assert client().get_run(first.run_id).info.status == "FINISHED"


def test_a_server_that_dies_half_way(
    tracked_home: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes as TrackingUnavailable after short retries, whatever raised it."""
    from mlflow import MlflowClient

    run = make_run().whole()
    ship_run(run.path, study="micro")
    real = MlflowClient.search_runs

    def dies(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        dead = MlflowClient(f"http://127.0.0.1:{free_port()}")
        return real(dead, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "search_runs", dies)
    started = time.monotonic()
    with pytest.raises(TrackingUnavailable, match=r"did not take it.*refused"):
        ship_run(make_run(seed=2).path, study="micro")
    assert time.monotonic() - started < 8


def test_a_server_that_hangs_and_a_password(
    fresh_home: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://me:secret@127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        started = time.monotonic()
        with pytest.raises(TrackingUnavailable) as failure:
            ship_run(make_run().path, study="micro")
    assert time.monotonic() - started < 5
    assert "secret" not in str(failure.value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(store: str, port: int) -> Iterator[None]:
    """A real server, killed without warning at the end."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--backend-store-uri", store]
    command += ["--artifacts-destination", str(home.home() / "served")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(
        command,
        env={**os.environ, **quiet},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while home.http_status(f"http://127.0.0.1:{port}/health") != 200:
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
