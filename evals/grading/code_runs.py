"""Running a model's programs in the sandbox for graders, several at a time."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition

from reopold.sandbox import Limits, Outcome, run_program

#: The harness of LiveCodeBench prepends its own list of these (testing_util.py, import_string);
#: programs rely on it, so it is a part of the rule. Modules come last: a name that is both a
#: module and a function of it (`bisect`, `copy`) is the module.
_MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random"),
    *("statistics", "itertools", "functools", "operator", "io", "sys", "json"),
)
HEADER = "".join(
    [
        *(f"from {name} import *\n" for name in (*_MODULES, "builtins", "typing")),
        *(f"import {name}\n" for name in _MODULES),
        "sys.setrecursionlimit(50000)\n",
        "sys.set_int_max_str_digits(50000)\n",
    ]
)


class _Floor:
    """Lets programs run side by side, or one of them alone."""

    def __init__(self) -> None:
        self.changed = Condition()
        self.running = 0
        self.claims = 0
        """Of those that run, or wait to run, alone."""

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: not self.claims)
            self.running += 1
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self.changed:
            self.claims += 1
            self.changed.wait_for(lambda: not self.running)
            self.running += 1
        try:
            yield
        finally:
            with self.changed:
                self.claims -= 1
            self._leave()

    def _leave(self) -> None:
        with self.changed:
            self.running -= 1
            self.changed.notify_all()


_floor = _Floor()


def run(
    code: str,
    *,
    limits: Limits,
    stdin: str = "",
    function: str = "",
    payload: object | None = None,
    alone: bool = False,
) -> Outcome:
    """Run a program as a script, or under a function of :mod:`evals.grading.code_inside`.

    One that exceeds its time while others run is run once more by itself: a loaded machine must
    not decide a verdict.

    Raises:
        SandboxFailure: the sandbox broke, twice.
    """
    driver = _driver(function) if function else None

    def once() -> Outcome:
        return run_program(code, stdin=stdin, limits=limits, driver=driver, payload=payload)

    if not alone:
        with _floor.shared():
            outcome = once()
        if outcome.status != "timeout":
            return outcome
    with _floor.alone():
        return once()


def _driver(function: str) -> str:
    text = Path(__file__).with_name("code_inside.py").read_text(encoding="utf-8")
    return f"{text}\n\n{function}(source, payload, report)\n"


def with_header(program: str) -> str:
    """The program after :data:`HEADER`; its `from __future__` imports, which must come first in a
    file, are moved before it."""
    try:
        body = ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return HEADER + program  # the sandbox's interpreter will say what is wrong
    lines = program.split("\n")
    features = []
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            features += [alias.name for alias in node.names]
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    first = f"from __future__ import {', '.join(features)}\n" if features else ""
    return first + HEADER + "\n".join(lines)
