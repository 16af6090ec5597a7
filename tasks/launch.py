"""Starts a command in its own process group, watches it, and stops it when we are stopped.

A flow never trains in its own process: it launches `python -m reopold.train RUN_DIR`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from reopold import parent
from reopold.config import ConfigError

#: Set once by the signal handler of the command line: every watcher stops its job and returns.
STOP = threading.Event()
POLL_SECONDS = 0.2
#: Between asking a job to stop (it saves a checkpoint) and killing its process group.
GRACE_SECONDS = 20.0


class Interrupted(Exception):
    """The user asked to stop; what is done is saved and the same command goes on from there."""


class JobFailed(Exception):
    """A launched process failed; the message ends with the tail of its log."""


@dataclass
class LocalJob:
    process: subprocess.Popen[bytes]
    log: Path


class LocalLauncher:
    """Jobs on this machine, each the leader of a process group of its own."""

    def submit(
        self, command: Sequence[str], *, log: Path, env: dict[str, str] | None = None
    ) -> LocalJob:
        """Start `command`; its output is appended to `log`. Our jobs end if we die
        (:mod:`reopold.parent`)."""
        log.parent.mkdir(parents=True, exist_ok=True)
        # A log is no terminal: no bars in it.
        quiet = {"PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
        environment = {**os.environ, **quiet, **(env or {})}
        environment[parent.VARIABLE] = str(os.getpid())
        with open(log, "ab") as output:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return LocalJob(process, log)

    def poll(self, job: LocalJob) -> int | None:
        """Exit code, or None while it runs."""
        return job.process.poll()

    def cancel(self, job: LocalJob, grace: float = GRACE_SECONDS) -> None:
        """Ask the job to stop; after `grace` seconds kill its whole process group."""
        if job.process.poll() is None:
            _signal_group(job, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                job.process.wait(grace)
        _signal_group(job, signal.SIGKILL)
        job.process.wait()

    def tail(self, job: LocalJob, lines: int = 15) -> str:
        """Last lines of the job's log."""
        return "\n".join(
            job.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        )


def run_module(
    module: str,
    *arguments: str,
    log: Path,
    env: dict[str, str] | None = None,
    on_poll: Callable[[], None] = lambda: None,
) -> None:
    """Run `python -m module arguments...` to its end, calling `on_poll` while it runs.

    Raises:
        Interrupted: :data:`STOP` was set, or the job was stopped by someone else (exit code 3).
        ConfigError: the job refused its input (exit code 2).
        JobFailed: any other exit code.
    """
    launcher = LocalLauncher()
    job = launcher.submit([sys.executable, "-m", module, *arguments], log=log, env=env)
    try:
        while (code := launcher.poll(job)) is None:
            if STOP.is_set():
                raise Interrupted(f"{module} was stopped")
            on_poll()
            time.sleep(POLL_SECONDS)
    finally:
        launcher.cancel(job)
    on_poll()
    if code == 0:
        return
    if code == 3:
        raise Interrupted(f"{module} was stopped")
    tail = launcher.tail(job)
    if code == 2:
        raise ConfigError(tail.rpartition("error: ")[2] or f"{module} refused its input")
    raise JobFailed(
        f"{module} {' '.join(arguments)} ended with code {code}; the end of {log}:\n{tail}"
    )


def _signal_group(job: LocalJob, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(job.process.pid, number)
