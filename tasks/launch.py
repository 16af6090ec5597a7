"""Starts a command in its own process group, watches it, and stops it when we are stopped.

A flow never trains in its own process: it launches `python -m reopold.train RUN_DIR`.

How a stop reaches it: a signal sets :data:`STOP`; every :func:`run_module` sees that, asks its job
to end (SIGTERM: it saves), and kills the job's process group after a grace. Importable without
prefect.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from reopold import parent
from reopold.config import ConfigError

#: A stop was asked for: every watcher stops its job and returns.
STOP = threading.Event()
POLL_SECONDS = 0.2
#: Between asking a job to stop (it saves a checkpoint) and killing its process group; a worker
#: that cancels a flow run kills the flow after 30.
GRACE_SECONDS = 20.0
EXIT_STOPPED, EXIT_PAUSED, EXIT_INTERRUPTED = 3, 4, 130
#: The worker, if there is one.
_STARTED_BY = os.getppid()


class Interrupted(Exception):
    """The user asked to stop; what is done is saved and the same command goes on from there."""


class Paused(Exception):
    """An alarm paused the run, which is saved; the message says which. A later start goes on."""


class JobFailed(Exception):
    """A launched process failed; the message ends with the tail of its log."""


@dataclass(eq=False)
class LocalJob:
    process: subprocess.Popen[bytes]
    log: Path


#: Jobs that :func:`run_module` is watching in this process.
_live: set[LocalJob] = set()


class LocalLauncher:
    """Jobs on this machine, each the leader of a process group of its own."""

    def submit(
        self,
        command: Sequence[str],
        *,
        log: Path,
        env: dict[str, str] | None = None,
        keep_open: Sequence[int] = (),
    ) -> LocalJob:
        """Start `command`; its output is appended to `log`. Our jobs end if we die
        (:mod:`reopold.parent`).

        Args:
            keep_open: file descriptors that the job shares: a file lock lives as long as any
                process that has it open.
        """
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
                pass_fds=keep_open,
            )
        return LocalJob(process, log)

    def poll(self, job: LocalJob) -> int | None:
        """Exit code, or None while it runs."""
        return job.process.poll()

    def cancel(self, job: LocalJob, grace: float = GRACE_SECONDS) -> None:
        """Ask the job to stop; after `grace` seconds kill its whole process group.

        Of a job that has ended, whoever ended it, kill what is left of its group.
        """
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
    keep_open: Sequence[int] = (),
    on_poll: Callable[[], None] = lambda: None,
) -> None:
    """Run `python -m module arguments...` to its end, calling `on_poll` while it runs.

    Raises:
        Interrupted: :data:`STOP` was set, or the job was stopped by someone else (exit code 3).
        Paused: an alarm paused the job (exit code 4).
        ConfigError: the job refused its input (exit code 2).
        JobFailed: any other exit code.
    """
    launcher = LocalLauncher()
    command = [sys.executable, "-m", module, *arguments]
    job = launcher.submit(command, log=log, env=env, keep_open=keep_open)
    _live.add(job)
    try:
        while (code := launcher.poll(job)) is None:
            if STOP.is_set():
                raise Interrupted(f"{module} was stopped")
            on_poll()
            time.sleep(POLL_SECONDS)
    finally:
        launcher.cancel(job)
        _live.discard(job)
    on_poll()
    if code == 0:
        return
    if code == EXIT_STOPPED:
        raise Interrupted(f"{module} was stopped")
    tail = launcher.tail(job)
    if code == EXIT_PAUSED:
        raise Paused(tail.rpartition("paused: ")[2] or f"{module} was paused by an alarm")
    if code == 2:
        raise ConfigError(tail.rpartition("error: ")[2] or f"{module} refused its input")
    raise JobFailed(
        f"{module} {' '.join(arguments)} ended with code {code}; the end of {log}:\n{tail}"
    )


def _signal_group(job: LocalJob, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(job.process.pid, number)


def guard(*processes: int) -> None:
    """Have processes of other people's programs ended if we are killed.

    Args:
        processes: their ids; a negative one is a process group.
    """
    command = [sys.executable, "-m", "reopold.parent", *map(str, processes)]
    LocalLauncher().submit(command, log=Path(os.devnull))


def own_signals() -> None:
    """For a process that is ours, the command line: SIGINT and SIGTERM stop every job.

    A second Ctrl-C (SIGINT) kills the jobs at once and ends this process with code 130. A second
    SIGTERM changes nothing: schedulers and supervisors repeat it while they wait.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """For the body of a flow: a signal that ends the flow stops its jobs, which save first.

    Under the command line our handlers are there, but for SIGTERM Prefect puts its own over them
    while a flow runs: ours is put back. In a process that a worker started, Prefect's handler has
    to stay (it makes the run Cancelled, and 3.8 cancels cleanly only while it is there). It raises
    in this, the main thread, and would then wait for the threads of the tasks, which know nothing:
    here they are told, and waited for: 3.7 dies of the signal before it waits for the threads. A
    worker that was killed can cancel nothing any more, so its death is a stop, too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # of a server that runs flows in threads: no signal reaches us
    elif signal.getsignal(signal.SIGINT) is _on_signal:
        with _handled(signal.SIGTERM):
            yield
    else:
        STOP.clear()  # of an earlier flow of this process
        if "PREFECT__FLOW_RUN_ID" in os.environ:
            parent.watch(_STARTED_BY, STOP.set)
        try:
            yield
        except Exception:
            raise
        except BaseException:  # KeyboardInterrupt, or Prefect's TerminationSignal
            with _handled(signal.SIGINT, signal.SIGTERM):
                STOP.set()
                while _live:
                    time.sleep(POLL_SECONDS)
            raise


@contextmanager
def _handled(*numbers: int) -> Iterator[None]:
    """Our handlers in the place of whatever is there."""
    before = {number: signal.signal(number, _on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if STOP.is_set():
        if number == signal.SIGINT:
            for job in list(_live):
                _signal_group(job, signal.SIGKILL)
            os._exit(EXIT_INTERRUPTED)
        return
    STOP.set()
    print("stopping: the running stages save a checkpoint (again: stop at once)", file=sys.stderr)
