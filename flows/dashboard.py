"""`reopold dashboard`: Prefect's and MLflow's pages over the state in the home, until Ctrl-C.

Importable without prefect and mlflow: both run as children, each in its own process group, so that
one signal ends a server together with its workers.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from reopold.config import ConfigError
from reopold.run_dir import write_atomic
from tasks import home
from tasks.launch import JobFailed, LocalJob, LocalLauncher, guard

HOST = "127.0.0.1"
#: Seconds in which both must answer, in which one must end before it is killed, between looks.
START_SECONDS, STOP_SECONDS, POLL_SECONDS = 120.0, 10.0, 0.3


class DashboardError(JobFailed):
    """A server did not come up, or ended by itself; the message ends with the tail of its log."""


class _Stopped(BaseException):
    """SIGINT or SIGTERM arrived. Like KeyboardInterrupt no Exception: nothing swallows it."""


@dataclass(frozen=True)
class _Server:
    name: str
    command: list[str]
    env: dict[str, str]
    url: str
    health: str

    @property
    def log(self) -> Path:
        return home.home() / "logs" / f"{self.name.lower()}.log"


def dashboard(prefect_port: int = 4200, mlflow_port: int = 5000) -> None:
    """Serve both pages on this machine until Ctrl-C or SIGTERM, then stop both.

    While it runs, `dashboard.json` in the home names the addresses, so that flows report to this
    Prefect server (:func:`tasks.home.configure_environment`). Logs are in `logs/` of the home.
    If MLFLOW_TRACKING_URI names a server elsewhere, none is started and its address is shown.

    Raises:
        ConfigError: a port is busy or no port, or a dashboard already runs; nothing was started.
        DashboardError: a server did not come up, or ended by itself; the other is stopped.
    """
    _check_ports({"--prefect-port": prefect_port, "--mlflow-port": mlflow_port})
    _check_alone()
    home.configure_environment()
    servers = _servers(prefect_port, mlflow_port)
    try:
        with _signals_raise(), _running(servers) as jobs:
            _announce(servers, jobs)
            while True:
                _check_alive(servers, jobs)
                time.sleep(POLL_SECONDS)
    except _Stopped:
        print("Both are stopped.", flush=True)


def _check_ports(ports: dict[str, int]) -> None:
    for option, port in ports.items():
        if not 1 <= port <= 65535:
            raise ConfigError(f"{port} is no port: {option} takes 1 to 65535")
        with socket.socket() as probe:
            # As the servers bind: a port that only lingers in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                why = (error.strerror or str(error)).lower()
                raise ConfigError(f"port {port}: {why}; choose another with {option}") from error
    if len(set(ports.values())) < len(ports):
        shared = " and ".join(ports)
        raise ConfigError(f"{shared} are both {next(iter(ports.values()))}; they must differ")


def _check_alone() -> None:
    """Two Prefect servers on one SQLite file give "database is locked"."""
    running = home.running_dashboard()
    if running is not None:
        urls, pids = ", ".join(running["urls"].values()), list(running["pids"].values())
        raise ConfigError(f"a dashboard already runs at {urls} (processes {pids}); stop it first")


def _servers(prefect_port: int, mlflow_port: int) -> list[_Server]:
    url = f"http://{HOST}:{prefect_port}"
    command = [sys.executable, "-m", "prefect", "server", "start"]
    command += ["--host", HOST, "--port", str(prefect_port)]
    env = {"PREFECT_API_URL": f"{url}/api", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO"}
    prefect = _Server("Prefect", command, env, url, f"{url}/api/health")
    store = os.environ["MLFLOW_TRACKING_URI"]
    if store.startswith("http"):
        return [prefect]
    url = f"http://{HOST}:{mlflow_port}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--host", HOST, "--port", str(mlflow_port), "--backend-store-uri", store]
    command += ["--default-artifact-root", home.artifact_root().as_uri()]
    # Its job runner (judges for traces) costs processes and memory, and nothing here uses it.
    env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return [prefect, _Server("MLflow", command, env, url, f"{url}/health")]


@contextmanager
def _running(servers: list[_Server]) -> Iterator[list[LocalJob]]:
    """Start the servers, wait until they answer, and stop them whatever happens."""
    launcher, jobs = LocalLauncher(), list[LocalJob]()
    try:
        # MLflow's tables must be made by one process only; a flow that ships now waits for it.
        with home.locked(home.mlflow_lock()):
            for server in servers:
                jobs.append(launcher.submit(server.command, log=server.log, env=server.env))
                guard(-jobs[-1].process.pid)
            _wait_until_up(servers, jobs)
        yield jobs
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave one behind
        home.dashboard_file().unlink(missing_ok=True)
        for job in jobs:
            launcher.cancel(job, STOP_SECONDS)


def _wait_until_up(servers: list[_Server], jobs: list[LocalJob]) -> None:
    waiting, deadline = list(servers), time.monotonic() + START_SECONDS
    while waiting:
        _check_alive(servers, jobs)
        waiting = [server for server in waiting if home.http_status(server.health) != 200]
        if waiting and time.monotonic() > deadline:
            names = " and ".join(f"{server.name} (see {server.log})" for server in waiting)
            raise DashboardError(f"no answer within {START_SECONDS:.0f} s from {names}")
        time.sleep(POLL_SECONDS)


def _check_alive(servers: list[_Server], jobs: list[LocalJob]) -> None:
    launcher = LocalLauncher()
    for server, job in zip(servers, jobs, strict=True):
        code = launcher.poll(job)
        if code is not None:
            tail = launcher.tail(job)
            raise DashboardError(f"{server.name} ended with code {code}; {server.log}:\n{tail}")


def _announce(servers: list[_Server], jobs: list[LocalJob]) -> None:
    urls = {server.name: server.url for server in servers}
    urls.setdefault("MLflow", os.environ["MLFLOW_TRACKING_URI"])
    pids = {server.name: job.process.pid for server, job in zip(servers, jobs, strict=True)}
    state = {"prefect_api": f"{servers[0].url}/api", "urls": urls, "pids": pids}
    write_atomic(home.dashboard_file(), json.dumps(state, indent=2))
    for name, url in urls.items():
        print(f"{name:<8} {url}", flush=True)
    print("Ctrl-C stops both.", flush=True)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT and SIGTERM raise :class:`_Stopped` in the main thread."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    dashboard(*(int(port) for port in sys.argv[1:]))
