"""A Python interpreter that a model may use through a dialogue."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass

from reopold.sandbox.child import Broken, Child, Job
from reopold.sandbox.limits import Limits, SandboxFailure, Status
from reopold.sandbox.modes import mode
from reopold.sandbox.program import status_of

#: A gibibyte of memory, as for tools elsewhere.
TOOL_LIMITS = Limits(memory_bytes=1 << 30)
_START_SECONDS = 30.0  # for the process to be there; not a cell's time


@dataclass(frozen=True)
class Execution:
    """What came of one cell."""

    status: Status
    stdout: str
    """Low-level writes included."""
    value_repr: str | None
    """Of a final bare expression, where it is not None."""
    error: str | None
    """Last line of the traceback, or what ended the interpreter."""
    seconds: float
    """Wall-clock."""
    lost: bool = False
    """The interpreter was ended: the next cell finds an empty namespace."""


def shorten(text: str, limit: int) -> str:
    """The first half and the last half of the limit, in characters, of a text that is longer.

    As ToRL cuts what its tools say (ToRL, arXiv 2503.23383).
    """
    if len(text) <= limit:
        return text
    first, last = limit // 2, limit - limit // 2
    return text[:first] + text[len(text) - last :]


class Interpreter:
    """One namespace, in one process that is cut off as any program is.

    `limits.seconds` holds for each cell, in wall-clock time; `limits.output_bytes` for each of a
    cell's two outputs. A cell that goes beyond a limit, or ends the process, ends the namespace
    with it: its execution is `lost`, and the next one starts in a new and empty namespace.

    Nothing is started before the first cell. Not for several threads at once.
    """

    def __init__(self, limits: Limits = TOOL_LIMITS) -> None:
        self.limits = limits
        self._child: Child | None = None
        self._closed = False

    def execute(self, code: str) -> Execution:
        """Run one cell.

        Raises:
            SandboxFailure: the sandbox broke. Where that was at the start of the process it has
                been tried again.
            ValueError: the interpreter was closed.
        """
        if self._closed:
            raise ValueError("the interpreter was closed")
        child = self._started()
        started = time.monotonic()
        try:
            answer = self._ask(child, code, self.limits.seconds)
        except (Broken, OSError) as broken:
            self._drop()
            raise SandboxFailure(f"the sandbox broke: {broken}") from broken
        seconds = time.monotonic() - started
        if answer is None:
            return self._ended(child, seconds)
        error = answer["error"]
        memory = error is not None and error.partition(":")[0].endswith("MemoryError")
        execution = Execution(
            status="ok" if error is None else "memory" if memory else "runtime_error",
            stdout=child.stdout.text(),
            value_repr=answer["value"],
            error=error,
            seconds=seconds,
        )
        for stream in (child.stdout, child.stderr, child.answers):
            stream.clear()
        return execution

    def _ask(self, child: Child, code: str, seconds: float) -> dict[str, str | None] | None:
        """The process's answer to a cell; None where the process has ended.

        Raises:
            Broken: the supervisor hung or went away.
        """
        nonce = secrets.token_hex(16)
        order = {"cell": code, "nonce": nonce, "value_length": self.limits.output_bytes // 8}
        child.send(json.dumps(order).encode() + b"\n")
        child.read(seconds, lambda answers: answers.endswith(b"\n"))
        if child.report:
            return None
        answer = _parse(child.answers.data, nonce)
        if answer is None:  # the cell wrote there itself: nothing that comes after can be trusted
            child.end("forged")
            child.read(None)
        return answer

    def _started(self) -> Child:
        """The running process; a new one where there is none."""
        failure = ""
        for _ in range(2):
            if self._child is not None:
                return self._child
            job = Job(
                self.limits,
                seconds=None,
                helper="repl",
                orders=None,
                answer_bytes=4 * self.limits.output_bytes + 4096,
            )
            try:
                self._child = child = Child(mode(), job)
                if self._ask(child, "", _START_SECONDS) is None:
                    raise Broken(f"the interpreter did not start: {child.stderr.text()}")
                child.answers.clear()
            except (Broken, OSError) as error:
                failure = str(error)
                self._drop()
        if self._child is not None:
            return self._child
        raise SandboxFailure(f"the sandbox broke twice: {failure}")

    def _ended(self, child: Child, seconds: float) -> Execution:
        """What became of a cell that took the interpreter along."""
        status = status_of(child.report, child.asked, child.stderr.text(), self.limits)
        if child.asked == "timeout":
            status = "timeout"
        elif status == "ok":
            status = "runtime_error"
        reasons = {
            "timeout": f"TimeoutError: the cell took longer than {self.limits.seconds:g} seconds",
            "memory": "MemoryError",
            "output_limit": f"the cell wrote more than {self.limits.output_bytes} bytes",
        }
        execution = Execution(
            status=status,
            stdout=child.stdout.text(),
            value_repr=None,
            error=reasons.get(status, "the cell ended the interpreter"),
            seconds=seconds,
            lost=True,
        )
        self._drop()
        return execution

    def _drop(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def close(self) -> None:
        """End the process; a second call does nothing."""
        self._closed = True
        self._drop()

    def __enter__(self) -> Interpreter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parse(data: bytearray, nonce: str) -> dict[str, str | None] | None:
    """The one answer, if it is one of this nonce and nothing else."""
    if not data.startswith(nonce.encode()):
        return None
    try:
        found = json.loads(data[len(nonce) :])
    except ValueError:
        return None
    texts = isinstance(found, dict) and all(isinstance(item, str | None) for item in found.values())
    return found if texts and set(found) == {"value", "error"} else None
