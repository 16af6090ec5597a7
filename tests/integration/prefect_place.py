"""A Prefect server and a process worker of their own, for tests that kill them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from reopold.config import RunConfig
from reopold.run_dir import RunDir
from tests.conftest import REPO

SETTINGS = """
import json, os
from tasks.home import configure_environment
configure_environment()
print(json.dumps(dict(os.environ)))
"""
DEPLOY = """
import sys
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
with get_client(sync_client=True) as client:
    client.create_work_pool(WorkPoolCreate(name="here", type="process"))
flow = Flow.from_source(source=sys.argv[1], entrypoint="flows/distill.py:distill")
print(flow.deploy(name="distill", work_pool_name="here", print_next_steps=False))
"""
HOLD = """
import os
from prefect import task
from tasks import gpu, leases
leases.RENEW_SECONDS = 0.2
@task
def hold():
    with gpu.slot(int(os.environ.get("WANTED", "1"))) as held:
        print(*{each.recorded() for each in held.slots}, flush=True)
        input()
hold()
"""
#: Seconds that anything here may take on a busy machine.
PATIENCE = 120.0


def until(what: str, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """The first true answer of `condition`; an AssertionError names `what` never came."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)
    return answer


class Place:
    """The server's state is in `folder`, so that a server that was killed starts where it was."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.api = f"http://127.0.0.1:{self.port}/api"
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
        mine |= {
            "REOPOLD_HOME": str(folder / "home"),
            "PREFECT_API_URL": self.api,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "CUDA_VISIBLE_DEVICES": "3,5",  # pretended: torch sees none
            "PYTHONPATH": str(REPO),
        }
        told = subprocess.run(
            [sys.executable, "-c", SETTINGS], env=mine, capture_output=True, text=True, check=True
        )
        self.env: dict[str, str] = json.loads(told.stdout)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.client = httpx.Client(base_url=self.api, timeout=30.0, trust_env=False)

    def start_server(self) -> None:
        self._start("server", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))

        def answers() -> bool:
            with suppress(httpx.HTTPError):
                return self.client.get("/health").status_code == 200
            return False

        until("Prefect's server answers", answers)

    def start_worker(self) -> None:
        self._start("worker", "worker", "start", "--pool", "here", "--type", "process")

    def kill(self, name: str) -> None:
        """SIGKILL to one process: what it started is on its own."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()
        if name == "server":
            with suppress(httpx.ConnectError):
                pytest.fail(f"a server still answers: {self.client.get('/health').text}")

    def close(self) -> None:
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.client.close()
        for pid in self.mentioning(self.folder):
            os.kill(pid, signal.SIGKILL)

    def deploy(self) -> str:
        done = subprocess.run(
            [sys.executable, "-c", DEPLOY, str(REPO)], env=self.env, cwd=self.folder,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[-1]

    def start_run(self, deployment: str, config: RunConfig, name: str) -> tuple[str, RunDir]:
        """A flow run of `config`, and the run directory that it will make."""
        run = RunDir(self.folder / "home" / "studies" / "runs" / "runs" / name)
        parameters = {"config": config.model_dump(mode="json"), "run_dir": str(run.path)}
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        answer = self._ask("POST", f"/deployments/{deployment}/create_flow_run", body)
        return str(answer.json()["id"]), run

    def state(self, flow_run: str) -> str:
        """Name of the flow run's state; "" while the server is away."""
        with suppress(httpx.TransportError):
            return str(self._ask("GET", f"/flow_runs/{flow_run}").json()["state"]["name"])
        return ""

    def set_state(self, flow_run: str, kind: str, name: str) -> None:
        body = {"state": {"type": kind, "name": name}}
        answer = self._ask("POST", f"/flow_runs/{flow_run}/set_state", body)
        assert answer.json()["status"] == "ACCEPT", answer.text

    def slots_taken(self) -> int:
        """Occupied slots of this host's limit, as Prefect's page counts them."""
        return int(self._ask("GET", self._limit).json()["active_slots"])

    def lower_limit(self, size: int) -> None:
        """As one does on Prefect's page (or raise it)."""
        self._ask("PATCH", self._limit, {"limit": size})

    @contextmanager
    def holding_a_slot(self, **env: str) -> Iterator[Callable[[], str]]:
        """A process that holds a slot; yields what waits for the id of its lease."""
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD], env={**self.env, **env}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            yield lambda: str(process.stdout.readline()).strip() if process.stdout else ""
            process.communicate("\n", timeout=60)
            assert process.returncode == 0
        finally:
            process.kill()
            process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    @staticmethod
    def mentioning(path: Path, module: str = "") -> list[int]:
        """Living processes whose command names `module` and, or their environment, `path`."""
        found = []
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                everything = command + Path(f"/proc/{pid}/environ").read_bytes()
                named = module.encode() in command and str(path).encode() in everything
                if named and pid != os.getpid():
                    found.append(pid)
        return found

    @property
    def _limit(self) -> str:
        return f"/v2/concurrency_limits/reopold-{socket.gethostname()}-gpu"

    def _ask(self, method: str, url: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """As Prefect's own client, again while the database is busy (503)."""
        answer: httpx.Response = until(
            f"an answer of {url}",
            lambda: (got := self.client.request(method, url, json=body)).status_code != 503 and got,
        )
        return answer.raise_for_status()

    def _start(self, name: str, *arguments: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments], env=self.env, cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip


def flow_process(trainer: int) -> int:
    """The process that started a trainer."""
    return int(Path(f"/proc/{trainer}/stat").read_text().rsplit(")", 1)[1].split()[1])


def steps(run: RunDir) -> int:
    """Lines of metrics.jsonl."""
    return run.metrics_file.read_text().count("\n") if run.metrics_file.exists() else 0


def opened(folder: Path) -> Iterator[Place]:
    """For a fixture: server, work pool and worker; all ended afterwards."""
    place = Place(folder)
    try:
        place.start_server()
        yield place
    finally:
        place.close()
