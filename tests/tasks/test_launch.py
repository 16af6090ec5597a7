"""Launching: exit codes become errors with a reason, and nothing outlives its job."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reopold.config import ConfigError
from tasks import launch
from tasks.launch import STOP, Interrupted, JobFailed, LocalLauncher, Paused, run_module

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
        ("import sys; print('x\\npaused: reward fell'); sys.exit(4)", Paused, "^reward fell$"),
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
    _wait_for_the_end(grandchild)


def test_no_child_outlives_a_killed_job(job: Path, tmp_path: Path) -> None:
    """The leader of the group is SIGKILLed by somebody else: its children are ours to end."""
    job.write_text(
        "import os, signal, subprocess, sys\n"
        "child = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "print(subprocess.Popen(child).pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    with pytest.raises(JobFailed, match="ended with code -9"):
        run_module(MODULE, log=tmp_path / "log")
    _wait_for_the_end(int((tmp_path / "log").read_text()))


FLOW = """
import signal, sys, threading
from pathlib import Path
from tasks import launch

def terminate(*_): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, terminate)
if sys.argv[2] == "ours":
    launch.own_signals()

def stage():
    try:
        launch.run_module("job_under_test", log=Path(sys.argv[1]))
    except launch.Interrupted:
        print("saved", flush=True)

thread = threading.Thread(target=stage)
try:
    with launch.stopping_on_signals():
        thread.start()
        thread.join()
except KeyboardInterrupt:
    thread.join()
    print("interrupted", flush=True)
"""
SLOW_JOB = """
import os, signal, sys, time
def save(*_):
    time.sleep({seconds})
    sys.exit(3)
signal.signal(signal.SIGTERM, save)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("owner", ["ours", "theirs"])
@pytest.mark.parametrize("signals", ["INT", "TERM TERM", "INT INT"])
def test_a_signal_lets_the_jobs_save_and_a_second_ctrl_c_ends_all_at_once(
    signals: str, owner: str, job: Path, tmp_path: Path
) -> None:
    """`ours`: under the command line's handlers. `theirs`: in a process of somebody else, where
    both signals raise in the main thread, as under Prefect."""
    at_once = signals == "INT INT"
    job.write_text(SLOW_JOB.format(seconds=15 if at_once else 1))
    log = tmp_path / "log"
    command = [sys.executable, "-c", FLOW, str(log), owner]
    flow = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not log.exists() or not log.read_text():
        time.sleep(0.05)
    trainer, started = int(log.read_text()), time.monotonic()
    for name in signals.split():
        flow.send_signal(getattr(signal, f"SIG{name}"))
        time.sleep(0.6)
    said = flow.communicate(timeout=30)[0].split()
    if at_once:
        assert flow.returncode == 130 and time.monotonic() - started < 8
    else:
        assert flow.returncode == 0
        assert said == (["saved"] if owner == "ours" else ["saved", "interrupted"])
    _wait_for_the_end(trainer)


def test_what_watches_nobody_ends_when_we_are_killed(tmp_path: Path) -> None:
    """The guard ends it; and with nothing left to guard it ends by itself."""
    code = (
        "import subprocess, sys, time; from tasks.launch import guard\n"
        "server = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "guard(server.pid); print(server.pid, flush=True); time.sleep(60)"
    )
    flow = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert flow.stdout is not None
    server = int(flow.stdout.readline())
    listed = subprocess.run(["pgrep", "-f", f"reopold.parent {server}"], capture_output=True)
    time.sleep(1)  # the guard has to have begun
    flow.kill()
    flow.wait()
    _wait_for_the_end(server)
    _wait_for_the_end(int(listed.stdout))


def _wait_for_the_end(pid: int) -> None:
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)


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
