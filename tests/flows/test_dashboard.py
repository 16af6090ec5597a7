"""The dashboard: refusals before anything starts, real servers, and ends that leave nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flows import dashboard as module
from flows.dashboard import DashboardError, dashboard
from reopold.config import ConfigError
from tasks import home

ROOT = Path(module.__file__).parents[1]


@pytest.fixture(autouse=True)
def own_home(fresh_home: Path) -> Path:
    return fresh_home


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(two.getsockname()[1])


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_port_that_cannot_be_used_is_refused_before_anything_starts(own_home: Path) -> None:
    one, two = free_ports()
    with socket.create_server(("127.0.0.1", two)):
        with pytest.raises(ConfigError, match=rf"port {two}: .*in use.* --mlflow-port"):
            dashboard(one, two)
        with pytest.raises(ConfigError, match=rf"port {two}: .*in use.* --prefect-port"):
            dashboard(two, one)
    for port in (0, -1, 65536):
        with pytest.raises(ConfigError, match=rf"^{port} is no port: --prefect-port"):
            dashboard(port, two)
    with pytest.raises(ConfigError, match="must differ"):
        dashboard(one, one)
    assert not own_home.exists()


def fake_servers(names: list[str], *codes: str) -> list[module._Server]:
    servers = []
    for name, port, code in zip(names, free_ports(), codes, strict=True):
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-c", code, str(port)]
        servers.append(module._Server(name, command, {}, url, url))
    return servers


@pytest.mark.parametrize("when", ["at the start", "later"])
def test_if_one_server_dies_the_other_is_stopped(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    lives = (
        "import http.server as h, sys\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        "s = h.HTTPServer(('127.0.0.1', int(sys.argv[1])), H)\n"
    )
    dies = "raise SystemExit('no database')"
    if when == "later":
        dies = lives + "s.timeout = 3\ns.handle_request()\nprint('no database')\nsys.exit(7)"
    servers = fake_servers(["Prefect", "MLflow"], lives + "s.serve_forever()", dies)
    monkeypatch.setattr(module, "_servers", lambda *ports: servers)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(DashboardError, match=r"(?s)MLflow ended with code .*no database"):
        dashboard(*free_ports())
    assert is_free(int(servers[0].url.rsplit(":", 1)[1]))
    assert not home.dashboard_file().exists()
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.slow
def test_both_servers_run_until_a_signal(own_home: Path, tmp_path: Path) -> None:
    ports = free_ports()
    command = [sys.executable, "-m", "flows.dashboard", *map(str, ports)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        said = [process.stdout.readline().split() for _ in range(3)]
        prefect, mlflow = (f"http://127.0.0.1:{port}" for port in ports)
        assert said[:2] == [["Prefect", prefect], ["MLflow", mlflow]]
        assert home.http_status(f"{prefect}/api/health") == 200
        assert home.http_status(mlflow) == 200
        state = json.loads(home.dashboard_file().read_text())
        assert state["urls"] == {"Prefect": prefect, "MLflow": mlflow}

        home.configure_environment()
        assert os.environ["PREFECT_API_URL"] == f"{prefect}/api"
        with pytest.raises(ConfigError, match=f"already runs at {prefect}"):
            dashboard(*free_ports())
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(40)
    assert code == 0
    assert process.stdout.read().split("\n")[0] == "Both are stopped."
    assert all(map(is_free, ports)) and not home.dashboard_file().exists()
    for pid in state["pids"].values():
        with pytest.raises(ProcessLookupError):
            os.killpg(pid, 0)
    assert {file.name for file in (own_home / "logs").iterdir()} == {"prefect.log", "mlflow.log"}
    assert {file.name for file in tmp_path.iterdir()} == {"home"}


def test_a_tracking_server_elsewhere_is_shown_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    home.configure_environment()
    assert [server.name for server in module._servers(4200, 5000)] == ["Prefect"]
