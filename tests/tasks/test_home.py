"""Where state lives: the environment of Prefect and MLflow, and what may be written where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tasks import home

FLOW = """
import sys
from pathlib import Path
from tasks import home
home.configure_environment()
from prefect import flow, get_client, get_run_logger, task
from tasks.tracking import ship_run

@task
def work() -> None:
    get_run_logger().info("hello from a task")

@flow
def a_flow() -> str:
    work()
    return ship_run(Path(sys.argv[1])).status

print(a_flow())
with get_client(sync_client=True) as client:
    found = client._client.post("/logs/filter", json={}).json()
print("logged" if any("hello" in line["message"] for line in found) else "lost")
"""


def test_the_home_is_absolute_and_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REOPOLD_HOME", raising=False)
    assert home.home() == tmp_path / ".reopold"
    monkeypatch.setenv("REOPOLD_HOME", "elsewhere")
    assert home.home() == tmp_path / "elsewhere"
    assert home.relative(tmp_path / "elsewhere" / "studies") == "studies"
    assert home.relative(tmp_path / "outside") == str(tmp_path / "outside")


def test_what_the_user_has_set_stays(fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    monkeypatch.setenv("PREFECT_HOME", "")  # empty is not set
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    home.configure_environment()
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://tracking.example:5000"
    assert os.environ["PREFECT_API_URL"] == "http://prefect.example/api"
    assert os.environ["PREFECT_HOME"] == str(fresh_home / "prefect")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert "HF_HUB_OFFLINE" not in os.environ


def test_another_home_moves_what_is_ours(fresh_home: Path, tmp_path: Path) -> None:
    home.configure_environment()
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{fresh_home}/mlflow/mlflow.db"
    os.environ["REOPOLD_HOME"] = str(tmp_path / "second")
    home.configure_environment()
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/second/mlflow/mlflow.db"
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "second" / "prefect")


def test_a_running_dashboard_is_used_and_a_stale_file_ignored(fresh_home: Path) -> None:
    home.configure_environment()
    assert "PREFECT_API_URL" not in os.environ
    with web_server(200) as url:
        home.dashboard_file().write_text(json.dumps({"prefect_api": f"{url}/api"}))
        home.configure_environment()
        assert os.environ["PREFECT_API_URL"] == f"{url}/api"
    home.configure_environment()  # it has gone, its file has not
    assert "PREFECT_API_URL" not in os.environ
    with web_server(404) as url:  # some other program has the port now
        home.dashboard_file().write_text(json.dumps({"prefect_api": f"{url}/api"}))
        assert home.running_dashboard() is None
    for damage in ("", "[]", "{}"):
        home.dashboard_file().write_text(damage)
        assert home.running_dashboard() is None


def test_a_proxy_does_not_answer_for_a_dead_local_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with web_server(200) as gone:
        assert home.http_status(gone) == 200
    with web_server(200) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert home.http_status(gone) is None
    assert home.http_status("file:///etc/hostname") is None
    assert home.http_status("http://me:secret@127.0.0.1:x/health") is None


@pytest.mark.slow
def test_a_flow_writes_in_the_home_only_and_leaves_the_terminal_free(
    fresh_home: Path, tmp_path: Path, make_run: Callable[..., Any], child_env: dict[str, str]
) -> None:
    run = make_run().whole()
    users_home = tmp_path / "user"
    users_home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FLOW, str(run.path)],
        env={**child_env, "HOME": str(users_home)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["FINISHED", "logged"], done.stderr
    assert done.stderr == ""
    assert list(users_home.iterdir()) == []
    assert {file.name for file in tmp_path.iterdir()} == {"home", "user"}
    assert (fresh_home / "prefect" / "prefect.db").exists()
    assert (fresh_home / "mlflow" / "mlflow.db").exists()


@contextmanager
def web_server(status: int) -> Iterator[str]:
    """Address of a server that answers everything with `status`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_request(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
