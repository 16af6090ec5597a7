"""One namespace through a dialogue, and what ends it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reopold.sandbox import Limits, SandboxFailure, child, interpreter, modes
from reopold.sandbox.child import Broken, Child
from reopold.sandbox.interpreter import Execution, Interpreter, shorten
from tests.reopold.sandbox.surroundings import marked_processes

LIMITS = Limits(seconds=20.0, memory_bytes=500 << 20, output_bytes=1 << 16)
SHORT = Limits(seconds=0.5, memory_bytes=500 << 20, output_bytes=1 << 16)


@pytest.fixture(scope="module")
def shared() -> Iterator[Interpreter]:
    with Interpreter(LIMITS) as found:
        yield found


@pytest.mark.parametrize(
    ("code", "stdout", "value", "error"),
    [
        ("", "", None, None),
        ("# nothing", "", None, None),
        ("1 + 1", "", "2", None),
        ("1 + 1;", "", None, None),
        ("print(1)", "1\n", None, None),
        ("print(1)\n'a'", "1\n", "'a'", None),
        ("None", "", None, None),
        ("for i in range(2): i", "", None, None),
        ("x = 5", "", None, None),
        ("import os; _ = os.write(1, b'low\\n')", "low\n", None, None),
        ("import os; _ = os.system('echo shell')", "shell\n", None, None),
        ("print('a')\n1/0\nprint('b')", "a\n", None, "ZeroDivisionError: division by zero"),
        ("def f(:", "", None, "SyntaxError: invalid syntax"),
        ("raise ValueError('a\\nb')", "", None, "b"),
        ("raise SystemExit(3)", "", None, "SystemExit: 3"),
        ("raise KeyboardInterrupt", "", None, "KeyboardInterrupt"),
        ("__name__", "", "'__main__'", None),
        ("'\\udcff'", "", "'\\udcff'", None),
        ("input()", "", None, "EOFError: EOF when reading a line"),
        ("class A:\n  def __repr__(self): raise OSError('no')\nA()", "", None, "OSError: no"),
    ],
)
def test_a_cell_says_what_jupyter_would(
    shared: Interpreter, code: str, stdout: str, value: str | None, error: str | None
) -> None:
    found = shared.execute(code)
    assert (found.stdout, found.value_repr, found.error) == (stdout, value, error)
    assert found.status == ("ok" if error is None else "runtime_error")
    assert not found.lost


def test_names_modules_and_classes_stay(shared: Interpreter) -> None:
    shared.execute("import math, pickle\nkept = [1]\nclass C: pass")
    shared.execute("kept.append(math.floor(2.5))\n1/0")
    assert shared.execute("kept, type(pickle.loads(pickle.dumps(C()))) is C").value_repr == (
        "([1, 2], True)"
    )


def test_output_belongs_to_its_cell(shared: Interpreter) -> None:
    first = shared.execute("import sys; print('out'); print('err', file=sys.stderr)")
    second = shared.execute("print('second', end='')")
    assert (first.stdout, second.stdout) == ("out\n", "second")


def test_a_value_that_is_too_long_is_cut(shared: Interpreter) -> None:
    found = shared.execute("'x' * 10**6")
    assert found.status == "ok" and found.value_repr is not None
    assert len(found.value_repr) == LIMITS.output_bytes // 8


def test_a_cell_longer_than_any_pipe_is_run(shared: Interpreter) -> None:
    assert shared.execute(f"x = {'y' * 400_000!r}\nlen(x)").value_repr == "400000"


def test_too_much_memory_in_one_step_is_said_and_survived(shared: Interpreter) -> None:
    found = shared.execute("kept = 7\nbytearray(10**10)")
    assert (found.status, found.error, found.lost) == ("memory", "MemoryError", False)
    assert shared.execute("kept").value_repr == "7"


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("while True: pass", "timeout", "TimeoutError: the cell took longer than 0.5 seconds"),
        ("import time; time.sleep(99)", "timeout", "TimeoutError"),
        ("import os, signal; os.kill(os.getpid(), 19)", "timeout", "TimeoutError"),
        ("while True: print('x' * 99)", "output_limit", "wrote more than 65536 bytes"),
        ("import os; os._exit(0)", "runtime_error", "ended the interpreter"),
        ("import os; os.kill(os.getpid(), 9)", "runtime_error", "ended the interpreter"),
        ("import os; os.write(4, b'{}\\n')", "runtime_error", "ended the interpreter"),
        ("import os; os.close(4)", "runtime_error", "ended the interpreter"),
        ("import ctypes; ctypes.CDLL(None).reboot(0)", "forbidden", "ended the interpreter"),
    ],
)
def test_a_cell_that_ends_the_interpreter_loses_the_names(
    code: str, status: str, error: str
) -> None:
    with Interpreter(SHORT) as found:
        assert found.execute("x = 1\nprint(x)").stdout == "1\n"
        ended = found.execute("print('early', flush=True)\n" + code)
        assert (ended.status, ended.lost, ended.value_repr) == (status, True, None)
        assert error in (ended.error or "")
        assert ended.stdout.startswith("early") or "x" in ended.stdout
        fresh = found.execute("x")
        assert fresh.error == "NameError: name 'x' is not defined"
        assert not fresh.lost
        assert found.execute("2").value_repr == "2"


@pytest.mark.parametrize("delay", [None, 0.1])
def test_a_forged_answer_does_not_reach_the_next_cell(delay: float | None) -> None:
    code = """
import os, sys, threading
frame = sys._getframe()
while "order" not in frame.f_locals: frame = frame.f_back
nonce = frame.f_locals["order"]["nonce"]
forged = (nonce + '{"value": "1", "error": null}\\n').encode()
"""
    code += (
        "os.write(4, forged)"
        if delay is None
        else f"""
threading.Timer({delay}, os.write, (4, forged)).start()
"""
    )
    with Interpreter(LIMITS) as found:
        found.execute(code)
        time.sleep(0.5)
        later = found.execute("2")
        assert later.value_repr in ("2", None) and later.lost == (later.value_repr is None)
        assert found.execute("3").value_repr == "3"


def test_many_interpreters_keep_their_own_names() -> None:
    interpreters = [Interpreter(LIMITS) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        numbered = list(enumerate(interpreters))
        list(pool.map(lambda pair: pair[1].execute(f"mine = {pair[0]}"), numbered))
        found = list(pool.map(lambda one: one.execute("mine").value_repr, interpreters))
        list(pool.map(Interpreter.close, interpreters))
    assert found == [str(number) for number in range(8)]


def test_closing_ends_everything_and_may_be_repeated() -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    found = Interpreter(LIMITS)
    code = "import subprocess; p = subprocess.Popen(['sleep', '99'], start_new_session=True)"
    assert found.execute(code).status == "ok"
    assert any("sleep 99" in line for line in marked_processes())
    found.close()
    found.close()
    assert not any("sleep 99" in line for line in marked_processes())
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    with pytest.raises(ValueError, match="closed"):
        found.execute("1")


def test_nothing_is_started_before_the_first_cell() -> None:
    before = marked_processes()
    with Interpreter(LIMITS):
        assert marked_processes() == before


def test_an_interpreter_that_cannot_start_is_a_failure_of_the_sandbox(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes.mode()
    monkeypatch.setattr(child, "_PYTHON", ("/nowhere/python",))
    with Interpreter(LIMITS) as found, pytest.raises(SandboxFailure, match="broke twice"):
        found.execute("1")


def test_a_supervisor_that_goes_away_is_a_failure_of_the_sandbox() -> None:
    with Interpreter(LIMITS) as found:
        found.execute("1")
        assert found._child is not None and found._child._process is not None
        found._child._process.kill()
        with pytest.raises(SandboxFailure):
            found.execute("x = 2\nimport time; time.sleep(1)")
        assert found.execute("3").value_repr == "3"


def test_a_start_that_breaks_once_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    class Frail(Child):
        def __init__(self, *arguments: Any) -> None:
            tries.append(1)
            if len(tries) == 1:
                raise Broken("no")
            super().__init__(*arguments)

    monkeypatch.setattr(interpreter, "Child", Frail)
    with Interpreter(LIMITS) as found:
        assert found.execute("4") == Execution(
            "ok", "", "4", None, pytest.approx(0.0, abs=5.0), lost=False
        )


def test_shorten_keeps_both_ends() -> None:
    text = "a" * 200 + "b" * 200
    assert shorten(text, 256) == "a" * 128 + "b" * 128
    assert shorten("abcdef", 5) == "abdef"
    assert shorten("abcdef", 1) == "f"
    assert shorten("abcdef", 6) == "abcdef"


@given(st.text(), st.integers(1, 50))
def test_shorten_is_of_the_limit_and_leaves_short_texts(text: str, limit: int) -> None:
    short = shorten(text, limit)
    assert len(short) == min(len(text), limit)
    assert text.startswith(short[: limit // 2]) and text.endswith(short[limit // 2 :])
