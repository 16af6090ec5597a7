"""Trainer processes that start at once: forked from one that has imported everything.

A trainer spends seconds on imports, and a fault test starts dozens. The child runs the very `main`
of `python -m reopold.train`, in a process of its own, and dies of real signals.

A fault is planted before `main` runs:
    {"at": "time", "delay": s}                       SIGKILL after s seconds
    {"at": "function", "name": qualname, "call": n, "delay": s, "signal": 9}
                                                     a signal s seconds after the n-th call began
    {"at": "write", "checkpoint": m, "boundary": n}  SIGKILL at the n-th boundary of a system call
                                                     while the m-th checkpoint is written
    {"at": "count", "checkpoint": m, "file": path}   no kill: count those boundaries
    {"at": "clock"}                                  the clock jumps by a day, to and fro
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

REPO = Path(__file__).resolve().parents[2]
#: Modules of C functions that enter the kernel on our behalf when a checkpoint is written.
KERNEL_MODULES = ("posix", "io", "_io", "safetensors_rust", "safetensors._safetensors_rust")
FILE_METHODS = ("write", "flush", "close", "read", "__exit__")


@dataclass
class Child:
    """A forked process, and how to see it end."""

    zygote: Zygote
    pid: int
    log: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Exit code; minus the signal's number where one ended it."""
        return int(self.zygote.ask({"wait": self.pid})["code"])

    def running(self) -> bool:
        return bool(self.zygote.ask({"look": self.pid})["running"])

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


class Zygote:
    """The process that forks; use it as a context manager."""

    def __init__(self, modules: list[str]) -> None:
        command = [sys.executable, "-m", "tests.faults.zygote", *modules]
        environment = {**os.environ, "PYTHONPATH": str(REPO), "TOKENIZERS_PARALLELISM": "false"}
        environment.pop("REOPOLD_PARENT_PID", None)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=REPO,
        )
        self.lock = threading.Lock()

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def start(
        self,
        module: str,
        *arguments: str,
        log: Path,
        fault: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
    ) -> Child:
        asked = {"module": module, "arguments": arguments, "log": str(log)}
        answer = self.ask({**asked, "fault": fault, "env": env or {}})
        return Child(self, int(answer["pid"]), log)

    def run(self, module: str, *arguments: str, log: Path, **options: Any) -> int:
        return self.start(module, *arguments, log=log, **options).wait()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        with self.lock:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer: dict[str, Any] = json.loads(self.process.stdout.readline())
            return answer


def serve(modules: list[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    assert threading.active_count() == 1, "a fork would copy locks that threads hold"
    answers = os.fdopen(os.dup(1), "w")
    ended: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request or "look" in request:
            pid = int(request.get("wait") or request["look"])
            if pid not in ended:
                found, status = os.waitpid(pid, 0 if "wait" in request else os.WNOHANG)
                if found:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            answer = {"code": ended.get(pid), "running": pid not in ended}
        else:
            pid = os.fork()
            if pid == 0:
                _child(request)
            answer = {"pid": pid}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _child(request: dict[str, Any]) -> None:
    code = 1
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(request["env"])
        if request["fault"]:
            plant(request["fault"])
        code = importlib.import_module(request["module"]).main(request["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def plant(fault: dict[str, Any]) -> None:
    """Arrange for what the fault describes, from now on in this process."""
    if fault["at"] == "time":
        kill_after(fault["delay"])
        return
    if fault["at"] == "clock":
        real, jumps = time.time, itertools.cycle((0.0, -86_400.0, 86_400.0))
        time.time = lambda: real() + next(jumps)
        return
    watch: Any = Calls(fault) if fault["at"] == "function" else Boundaries(fault)
    threading.setprofile(watch)
    sys.setprofile(watch)


def kill_after(delay: float, number: int = signal.SIGKILL) -> None:
    """A signal from another process, as an out-of-memory killer or a scheduler sends it."""
    victim = os.getpid()
    if delay <= 0.0:
        os.kill(victim, number)
    elif os.fork() == 0:
        time.sleep(delay)
        os.kill(victim, number)
        os._exit(0)


class Calls:
    """Counts the calls of one Python function."""

    def __init__(self, fault: dict[str, Any]) -> None:
        self.fault, self.left = fault, int(fault["call"])

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_qualname == self.fault["name"]:
            self.left -= 1
            if self.left == 0:
                kill_after(self.fault["delay"], self.fault.get("signal", signal.SIGKILL))


class Boundaries:
    """Counts calls of C functions that enter the kernel, while one checkpoint is written."""

    def __init__(self, fault: dict[str, Any]) -> None:
        self.fault, self.checkpoint, self.count, self.inside = fault, 0, 0, False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code.co_qualname == "Trainer._save.<locals>.write":
            if event == "call":
                self.checkpoint += 1
            self.inside = event in ("call", "c_call", "c_return") and (
                self.checkpoint == self.fault["checkpoint"]
            )
            if event == "return" and self.checkpoint == self.fault["checkpoint"]:
                if "file" in self.fault:
                    Path(self.fault["file"]).write_text(str(self.count))
                return
        if self.inside and event in ("c_call", "c_return") and enters_kernel(argument):
            self.count += 1
            if self.count == self.fault.get("boundary"):
                kill_after(0.0)


def enters_kernel(function: Any) -> bool:
    module = getattr(function, "__module__", None)
    if module in KERNEL_MODULES:
        return True
    return module is None and function.__name__ in FILE_METHODS


if __name__ == "__main__":
    serve(sys.argv[1:])
