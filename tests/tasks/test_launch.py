"""Launching: exit codes become errors with a reason, and nothing outlives its job."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reopold.config import ConfigError
from tasks import launch
from tasks.launch import STOP, Interrupted, JobFailed, LocalLauncher, run_module

MODULE = "job_under_test"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that `run_module` can start; write its source into the returned file."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield tmp_path / f"{MODULE}.py"
    STOP.clear()


def test_success_polls_and_keeps_the_log(job: Path, tmp_path: Path) -> None:
    job.write_text("import sys, os; print('hello', sys.argv[1], os.environ['SLOT'])")
    polls: list[int] = []
    run_module(
        MODULE, "x", log=tmp_path / "log", env={"SLOT": "7"}, on_poll=lambda: polls.append(1)
    )
    assert (tmp_path / "log").read_text() == "hello x 7\n"
    assert polls


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("import sys; print('error: no such thing'); sys.exit(2)", ConfigError, "^no such thing$"),
        ("import sys; sys.exit(3)", Interrupted, "was stopped"),
        ("raise RuntimeError('boom')", JobFailed, "ended with code 1(.|\n)*RuntimeError: boom"),
        ("import os; os.kill(os.getpid(), 9)", JobFailed, "ended with code -9"),
    ],
)
def test_exit_codes_become_errors(
    source: str, error: type[Exception], message: str, job: Path, tmp_path: Path
) -> None:
    job.write_text(source)
    with pytest.raises(error, match=message):
        run_module(MODULE, log=tmp_path / "log")


def test_a_stop_reaches_the_job_and_lets_it_save(job: Path, tmp_path: Path) -> None:
    job.write_text(
        "import signal, sys, time, pathlib\n"
        "def save(*_):\n pathlib.Path(sys.argv[1]).write_text('saved'); sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, save); print('ready', flush=True); time.sleep(60)"
    )
    log = tmp_path / "log"

    def stop_once_ready() -> None:
        while not log.exists() or "ready" not in log.read_text():
            time.sleep(0.05)
        STOP.set()

    threading.Thread(target=stop_once_ready).start()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        run_module(MODULE, str(tmp_path / "saved"), log=log)
    assert (tmp_path / "saved").read_text() == "saved"
    assert time.monotonic() - started < 20


def test_cancel_kills_a_deaf_job_and_its_children(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.write_text(
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "deaf = 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)'\n"
        "print(subprocess.Popen([sys.executable, '-c', deaf]).pid, flush=True)\n"
        "time.sleep(60)"
    )
    launcher = LocalLauncher()
    running = launcher.submit([sys.executable, str(job)], log=tmp_path / "log")
    while not running.log.read_text():
        time.sleep(0.05)
    grandchild = int(running.log.read_text())
    launcher.cancel(running, grace=0.3)
    assert launcher.poll(running) == -9
    deadline = time.monotonic() + 10
    while _alive(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(grandchild)


def test_the_launcher_names_itself_to_its_jobs(job: Path, tmp_path: Path) -> None:
    job.write_text("import os; print(os.getppid() == int(os.environ['REOPOLD_PARENT_PID']))")
    run_module(MODULE, log=tmp_path / "log")
    assert (tmp_path / "log").read_text() == "True\n"
    assert launch.GRACE_SECONDS >= 10  # a step and a checkpoint must fit


def _alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_no_job_is_left_behind(job: Path, tmp_path: Path) -> None:
    job.write_text("pass")
    run_module(MODULE, log=tmp_path / "log")
    listed = subprocess.run(
        ["ps", "-eo", "args"], capture_output=True, text=True, check=True
    ).stdout
    assert MODULE not in listed
