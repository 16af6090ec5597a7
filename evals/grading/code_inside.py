"""What runs inside the sandbox beside a model's program: the standard library alone.

The text of this file is the driver (:func:`evals.grading.code_runs.driver`). No expected output
ever comes here: functions report what the program answered, and the verdict is made outside.
Only HumanEval's `check` is code that holds its answers.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import io
import json
import numbers
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from types import ModuleType
from typing import Any
from unittest.mock import mock_open

Report = Callable[[str], None]

#: What the official harness sets to None (testing_util.py, reliability_guard).
DISABLED = {
    os: "kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename "
    "renames truncate replace unlink fchmod fchown chmod chown chroot lchflags lchmod lchown "
    "getcwd chdir",
    shutil: "rmtree move chown",
    subprocess: "Popen",
    builtins: "quit help",
}
ABSENT_MODULES = ("ipdb", "joblib", "resource", "psutil", "tkinter")


def call(source: str, payload: Any, report: Report) -> None:
    """Call one function once; report its value.

    Args:
        payload: `header`, `function` (of `Solution` where the program has such a class),
            `arguments`.
    """
    names = load(source, payload["header"])
    owner = names["Solution"]() if "Solution" in names else None
    function = names[payload["function"]] if owner is None else getattr(owner, payload["function"])
    report(json.dumps(plain(function(*payload["arguments"]))))


def call_candidate(source: str, payload: Any, report: Report) -> None:
    """Evaluate calls of one candidate, such as `candidate(n = 3)`; report their values.

    Args:
        payload: `header`, `candidate` (such as `Solution().fn`), `calls`: trusted expressions.
    """
    names = load(source, payload["header"])
    candidate = eval(payload["candidate"], names)
    values = [eval(expression, {"candidate": candidate}) for expression in payload["calls"]]
    report(json.dumps([plain(value) for value in values]))


def check(source: str, payload: Any, report: Report) -> None:
    """HumanEval: run `test`, then its `check` on the entry point; report passed or failed.

    Nothing is reported by a program that ends before the check has returned.
    """
    names = load(source, "")
    entry = names[payload["entry_point"]]
    exec(compile(payload["test"], "test.py", "exec", dont_inherit=True), names)
    try:
        names["check"](entry)
    except AssertionError:
        report("failed")
    else:
        report("passed")


def load(source: str, header: str) -> dict[str, Any]:
    """The names of a program that was run as a module (`__name__` is not `"__main__"`)."""
    module = ModuleType("solution")
    sys.modules["solution"] = module
    exec(compile(header, "header.py", "exec", dont_inherit=True), module.__dict__)
    exec(compile(source, "solution.py", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def plain(value: Any) -> list[Any]:
    """A value as [kind, content] in JSON. What equals no JSON value is of kind `other`."""
    if value is None or isinstance(value, bool):
        return ["value", value]
    if isinstance(value, str):
        return ["value", str(value)]
    if isinstance(value, list):
        return ["list", [plain(item) for item in value]]
    if isinstance(value, tuple):
        return ["tuple", [plain(item) for item in value]]
    if isinstance(value, set | frozenset):
        return ["set", [plain(item) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[plain(key), plain(item)] for key, item in value.items()]]
    if isinstance(value, numbers.Number | Decimal) or type(value).__module__ == "numpy":
        return _plain_number(value)
    return ["other", type(value).__name__]


def _plain_number(value: Any) -> list[Any]:
    """The integer or float that a number equals (fractions, decimals, numpy's scalars)."""
    if isinstance(value, float):
        return ["value", float(value)]
    with contextlib.suppress(Exception):
        if type(value).__name__ in ("bool_", "bool"):  # numpy's, which is no number to Python
            return ["value", bool(value)]
        if int(value) == value:
            whole = int(value)
            if whole.bit_length() < 1000:
                return ["value", whole]
            return ["integer", hex(whole)]  # JSON's readers bound the digits of decimal ones
        if float(value) == value:
            return ["value", float(value)]
    return ["other", type(value).__name__]


class TimeoutException(Exception):
    """The alarm went off. The rule looks for this name in the `repr` of whatever was raised."""


def _alarm(signum: int, frame: Any) -> None:
    raise TimeoutException


class _Stdin:
    """The official stand-in: `readline` gives lines without their ends and raises StopIteration
    after the last, the object cannot be iterated, `buffer.readline` always gives the first line."""

    def __init__(self, text: str) -> None:
        lines = iter(text.split("\n"))
        self.text = text
        self.rest = io.StringIO(text)
        self.buffer = _Buffer(text.encode())
        self.read = lambda *_: text
        self.readline = lambda *_: next(lines)
        self.readlines = lambda *_: text.split("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rest, name)


class _Buffer:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, *_: Any) -> bytes:
        return self.data

    def readline(self, *_: Any) -> bytes:
        return self.data.split(b"\n")[0] + b"\n"


def run_officially(source: str, payload: Any, report: Report) -> None:
    """All tests in this one process as LiveCodeBench's harness runs them (testing_util.py).

    Its faults are kept: what fails there fails here. Reports, test by test up to the first that
    failed to run, ["output", text], ["value", plain value], ["timeout"] or ["error"].

    Args:
        payload: `header`, `function` (None: stdin and stdout), `inputs` (texts, or lists of
            arguments), `seconds` of each test.
    """
    signal.signal(signal.SIGALRM, _alarm)
    if "numpy" in source:  # there the harness itself has imported it, before the guard
        with contextlib.suppress(ImportError):
            importlib.import_module("numpy")
    _guard()
    report(json.dumps(_official_results(source, payload)))


def _guard() -> None:
    """Take away all that the harness takes away."""
    for owner, names in DISABLED.items():
        for name in names.split():
            setattr(owner, name, None)
    for name in ABSENT_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]  # an import of it fails
    sys.set_int_max_str_digits(50_000)


def _official_results(source: str, payload: Any) -> list[list[Any]]:
    run_one = _run_stdio if payload["function"] is None else _run_call
    try:
        method = _official_method(source, payload)
    except Exception:  # a timeout here is an error there too
        return [["error"]]
    results: list[list[Any]] = []
    for given in payload["inputs"]:
        signal.setitimer(signal.ITIMER_REAL, payload["seconds"])
        try:
            results.append(run_one(method, given))
        except Exception as error:
            late = "timeoutexception" in repr(error).lower()
            return [*results, ["timeout" if late else "error"]]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return results


def _official_method(source: str, payload: Any) -> Any:
    """What is called for each test; a method that is missing raises AttributeError."""
    module = ModuleType("tmp_sol")
    name = payload["function"]
    if name is None:
        name, code = "wrapped_function", one_function(source, payload["header"])
    else:
        code = payload["header"] + "\n\n" + source
    signal.setitimer(signal.ITIMER_REAL, payload["seconds"])
    try:
        exec(compile(code, "<string>", "exec", dont_inherit=True), module.__dict__)
        return getattr(module.Solution() if "class Solution" in code else module, name)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def one_function(source: str, header: str) -> str:
    """The program as the harness runs it: imports at the top, the rest in one function.

    A last block `if __name__ == '__main__'` is unwrapped first.

    Raises:
        SyntaxError, RecursionError: it cannot be parsed.
    """
    body = ast.parse(source).body
    last = body[-1] if body else None
    if isinstance(last, ast.If) and ast.unparse(last.test).strip() == "__name__ == '__main__'":
        body = [*body[:-1], *last.body]
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    rest = [node for node in body if not isinstance(node, ast.Import | ast.ImportFrom)]
    # A body that is empty stays so, and does not compile.
    whole = ast.FunctionDef("wrapped_function", _NO_ARGUMENTS, rest, [], lineno=1)
    return "\n".join([header, *map(ast.unparse, imports), ast.unparse(whole)])


_NO_ARGUMENTS = ast.arguments(
    posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[], vararg=None, kwarg=None
)


def _run_stdio(method: Callable[[], object], text: str) -> list[Any]:
    output = io.StringIO()
    output.close = lambda x: 1  # type: ignore[assignment, method-assign, misc]  # closing raises
    before = sys.stdin, sys.stdout, builtins.open
    sys.stdin, sys.stdout = _Stdin(text), output
    builtins.open = mock_open(read_data=text)
    try:
        with contextlib.suppress(SystemExit):
            method()
    finally:
        sys.stdin, sys.stdout, builtins.open = before
    return ["output", output.getvalue()]


def _run_call(method: Callable[..., object], arguments: list[Any]) -> list[Any]:
    value = method(*arguments)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return ["value", plain(value)]
