"""Judging answers in processes that can be killed.

sympy hangs or eats the memory on answers such as 10^(10^10), and no thread can be stopped. A worker
is a fresh interpreter that gets its calls over a pipe. It may be killed at any time.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass, is_dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Literal

from reopold.config import ConfigError

#: CPU time of one call: a machine under load changes no verdict.
CPU_SECONDS = 5.0
#: Wall-clock of one call, for one that waits instead of working.
WALL_SECONDS = 20.0
#: Address space of a worker (RLIMIT_AS), its libraries included.
MEMORY_BYTES = 2 * 2**30
#: Until a worker has imported what it is to run; no part of a call's time.
START_SECONDS = 300.0
#: Calls handed over at a time.
CHUNK = 64

_ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1

Call = tuple[Any, ...]


class WorkerError(RuntimeError):
    """Workers cannot run this function at all; it says nothing about an answer."""


class _Died(Exception):
    """The worker ended; the argument is its return code."""


@dataclass(frozen=True)
class Result:
    """What became of one call."""

    status: Literal["ok", "timeout", "memory", "runtime_error"]
    value: Any = None
    """What the function returned, as JSON has it (a dataclass is a list); None unless ok."""


def call_in_workers(function: str, calls: Sequence[Call]) -> list[Result]:
    """Call `function` ("module:name") with each of these arguments; results in order.

    Arguments are pickled, results travel as JSON. A call that runs into a limit is "timeout" or
    "memory", one that raises is "runtime_error"; one whose worker dies is tried once more, alone
    in a fresh worker, before it is called that. Any thread may call this, several at once too.

    Raises:
        ConfigError: a call raised one.
        WorkerError: the function is not there, or no worker starts.
    """
    size = max(1, min(CHUNK, -(-len(calls) // _processes())))
    chunks = [list(calls[start : start + size]) for start in range(0, len(calls), size)]
    pool = _POOLS.setdefault(os.getpid(), ThreadPoolExecutor(_processes(), "answers"))
    finished = pool.map(lambda chunk: _run(function, chunk), chunks)
    return [result for results in finished for result in results]


def _processes() -> int:
    return max(1, os.cpu_count() or 1)


class _Worker:
    """One process and our end of its pipe."""

    def __init__(self) -> None:
        self.pipe, theirs = Pipe()
        serve = (
            f"from reopold.answers.workers import _serve; _serve({theirs.fileno()}, {os.getpid()})"
        )
        path = os.pathsep.join([str(_ROOT), *sys.path])
        self.process = subprocess.Popen(
            [sys.executable, "-c", serve],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )
        theirs.close()
        _WORKERS.add(self)

    def start(self, function: str, calls: list[Call]) -> None:
        """Hand over calls and wait until the function is imported.

        Raises:
            _Died: it ended before the first call.
            WorkerError: the function is not there.
        """
        with suppress(ConnectionError):  # of a worker that is dead; receiving says so
            self.pipe.send_bytes(pickle.dumps(((CPU_SECONDS, MEMORY_BYTES), function, calls)))
        kind, text = self.receive(START_SECONDS)
        if kind == "absent":
            raise WorkerError(f"a worker cannot run '{function}': {text}")

    def receive(self, seconds: float) -> tuple[str, Any]:
        """The next message: its kind and content.

        Raises:
            TimeoutError: none came.
            _Died: the worker ended.
        """
        try:
            if not self.pipe.poll(seconds):
                raise TimeoutError
            kind, content = json.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionError):
            raise _Died(self.process.wait()) from None
        return kind, content

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()
        _WORKERS.discard(self)


_POOLS: dict[int, ThreadPoolExecutor] = {}
"""By process id: a fork has our objects but not our threads."""
_WORKERS: set[_Worker] = set()
_MINE = threading.local()
"""`worker`: the one of this thread of the pool, if it has one."""


@atexit.register
def _close() -> None:
    for worker in list(_WORKERS):
        worker.kill()


def _started(function: str, calls: list[Call]) -> _Worker:
    """This thread's worker with these calls at hand; a new one if it has none or it is dead."""
    for _ in range(2):
        worker: _Worker = getattr(_MINE, "worker", None) or _Worker()
        _MINE.worker = worker
        try:
            worker.start(function, calls)
            return worker
        except (_Died, TimeoutError):
            _discard()
    raise WorkerError(f"no worker starts that can run '{function}'")


def _discard() -> None:
    _MINE.worker.kill()
    _MINE.worker = None


def _run(function: str, calls: list[Call]) -> list[Result]:
    """Results of one chunk, by this thread's worker and those that replace it."""
    results: list[Result] = []
    suspect = False  # the next call has seen a worker die
    while len(results) < len(calls):
        rest = calls[len(results) :]
        batch = rest[:1] if suspect else rest
        worker = _started(function, batch)
        try:
            for _ in batch:
                results.append(_result(*worker.receive(WALL_SECONDS)))
                suspect = False
                if results[-1].status == "memory":
                    _discard()
                    break
        except TimeoutError:
            _discard()
            results.append(Result("timeout"))
            suspect = False
        except _Died as died:
            _discard()
            timed_out = died.args[0] == -signal.SIGPROF
            if timed_out or suspect:
                results.append(Result("timeout" if timed_out else "runtime_error"))
            suspect = not (timed_out or suspect)
        except BaseException:
            _discard()  # its pipe still holds answers to calls that nobody waits for
            raise
    return results


def _result(kind: str, content: Any) -> Result:
    if kind == "config":
        raise ConfigError(content)
    if kind == "value":
        return Result("ok", content)
    return Result("memory" if kind == "memory" else "runtime_error")


def _serve(descriptor: int, parent: int) -> None:
    """A worker's life: it ends with its parent, or after a call that ran out of memory."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    pipe = Connection(descriptor)
    with suppress(EOFError):
        while True:
            (cpu_seconds, memory), name, calls = pickle.loads(pipe.recv_bytes())
            try:
                function = _load(name)
            except (ImportError, AttributeError) as error:
                _send(pipe, "absent", str(error))
                continue
            _limit_memory(memory)
            _send(pipe, "ready", None)
            for call in calls:
                kind, content = _call(function, call, cpu_seconds)
                _send(pipe, kind, content)
                if kind == "memory":
                    return


def _limit_memory(size: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _load(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function


def _call(function: Callable[..., Any], call: Call, cpu_seconds: float) -> tuple[str, Any]:
    # The default action of SIGPROF ends the process even within a long operation of C.
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        value = function(*call)
    except ConfigError as error:
        return "config", str(error)
    except MemoryError:
        return "memory", None
    except Exception as error:
        return "error", repr(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "value", astuple(value) if is_dataclass(value) and not isinstance(value, type) else value


def _send(pipe: Connection, kind: str, content: Any) -> None:
    pipe.send_bytes(json.dumps([kind, content]).encode())
