"""Run one program that a model wrote, and say what became of it."""

from __future__ import annotations

import json
import math
import re
import secrets
import signal
from typing import Any

from reopold.sandbox.child import Broken, Child, Job
from reopold.sandbox.limits import Limits, Outcome, SandboxFailure, Status
from reopold.sandbox.modes import mode

DEFAULT_LIMITS = Limits()
_STARVED = re.compile(r"[\w.]*MemoryError\b|OSError: \[Errno 12\]")


def run_program(
    code: str,
    *,
    stdin: str = "",
    limits: Limits = DEFAULT_LIMITS,
    driver: str | None = None,
    payload: object | None = None,
) -> Outcome:
    """Run Python source in a process of its own, cut off from everything else.

    Without a driver the source is an ordinary script: `__name__` is `"__main__"`, the working
    directory an empty folder that is removed afterwards. Many calls may run at once, from threads.

    With a driver (trusted source of ours) that is run instead. It finds the names

    - `source`: the text of `code`, and `payload`: any JSON value;
    - `report(text)`: becomes `Outcome.result`; to be called once. A driver that ends without it
      is a `runtime_error`, so `ok` always comes with a result;
    - `start() -> Program`: runs `source` in a third process that shares nothing with the driver,
      as :class:`reopold.sandbox.inside.boot.Program` says.

    What a driver's result is worth: a program that the driver runs by `start()` can neither see
    the payload, nor the driver's memory, nor the channel of the result; it can answer falsely only
    for itself, or end the driver (no result). A program that the driver `exec`s in its own process
    can see and forge all that the driver can: then nothing that decides a verdict, such as an
    expected output, may be in the driver or the payload; let the driver report outputs and compare
    here.

    Raises:
        SandboxFailure: the sandbox broke, twice; nothing is known about the program.
    """
    nonce = secrets.token_hex(16)
    orders = {"driver": driver, "source": code, "payload": payload, "nonce": nonce}
    job = Job(
        limits,
        limits.seconds,
        code=code,
        helper="" if driver is None else "boot",
        orders=json.dumps(orders).encode(),
        stdin=stdin.encode("utf-8", errors="surrogatepass"),
    )
    failure = ""
    for _ in range(2):
        try:
            with Child(mode(), job) as child:
                child.read(None)
            return _outcome(child, limits, None if driver is None else nonce)
        except (Broken, OSError) as error:
            failure = str(error)
    raise SandboxFailure(f"the sandbox broke twice: {failure}")


def _outcome(child: Child, limits: Limits, nonce: str | None) -> Outcome:
    report = child.report
    result = None
    if nonce is not None:
        text = child.answers.data.decode("utf-8", errors="surrogatepass")
        result = text[len(nonce) :] if text.startswith(nonce) else None
    status = status_of(report, child.asked, child.stderr.text(), limits)
    if status == "ok" and nonce is not None and result is None:
        status = "runtime_error"
    return Outcome(
        status=status,
        stdout=child.stdout.text(),
        stderr=child.stderr.text(),
        returncode=report["returncode"],
        seconds=report["seconds"],
        cpu_seconds=report["cpu_seconds"],
        result=result,
    )


def status_of(report: dict[str, Any], asked: str, stderr: str, limits: Limits) -> Status:
    """What a supervisor's report comes to."""
    if asked == "output_limit":
        return "output_limit"
    if report["reason"] in ("timeout", "memory"):
        reason: Status = report["reason"]
        return reason
    code = report["returncode"]
    if code == 0:
        return "ok"
    if code == -signal.SIGXCPU or (
        code == -signal.SIGKILL and report["cpu_seconds"] >= math.ceil(limits.seconds)
    ):
        return "timeout"
    if code == -signal.SIGSYS or report["refused"]:
        return "forbidden"
    lines = stderr.rstrip().splitlines()
    starved = code == -signal.SIGKILL and report["out_of_memory"]
    if starved or (lines and _STARVED.match(lines[-1])):
        return "memory"
    return "runtime_error"
