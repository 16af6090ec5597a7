"""A program answers for itself; it cannot make a verdict."""

from __future__ import annotations

import json
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reopold.sandbox import Limits, Outcome, run_program
from reopold.sandbox.inside.values import Opaque, decode, encode

LIMITS = Limits(seconds=20.0, memory_bytes=1 << 30)
SECRET = "only-the-driver-knows"

#: Outputs go out, and are compared where no program is. The driver compares as well, as a test
#: with assertions does.
DRIVER = """
import json
program = start()
outputs, passed = [], True
for number in payload["inputs"]:
    try:
        output = program.call("f", number)
        outputs.append(repr(output))
        passed = passed and output == number * number
    except (ProgramError, ProgramEnded) as error:
        outputs.append(type(error).__name__)
        passed = False
report(json.dumps([outputs, passed]))
"""
PAYLOAD = {"inputs": [3, 4], "secret": SECRET}
RIGHT = ["9", "16"]

_SEEK = """
import gc, sys
WORD = "only-the-" + "driver-knows"
def seek(values):
    for value in values:
        if isinstance(value, str) and WORD in value and value is not WORD: print("FOUND")
def f(x):
    frame = sys._getframe()
    while frame:
        seek(frame.f_locals.values())
        frame = frame.f_back
    for thing in gc.get_objects():
        if isinstance(thing, dict): seek(list(thing.values()))
        elif isinstance(thing, (list, tuple)): seek(list(thing))
    return 0
"""
_PROC = """
import os
WORD = b"only-the-" + b"driver-knows"
def f(x):
    folder = f"/proc/{os.getppid() or os.getpid()}"
    for name in ("environ", "cmdline", "fd/3", "fd/4"):
        try: data = open(f"{folder}/{name}", "rb").read()
        except OSError: continue
        if WORD in data: print("FOUND", name)
    try:
        with open(f"{folder}/maps") as maps, open(f"{folder}/mem", "rb") as memory:
            for line in maps:
                first, last = (int(end, 16) for end in line.split()[0].split("-"))
                try:
                    memory.seek(first)
                    if WORD in memory.read(last - first): print("FOUND in memory")
                except (OSError, ValueError, OverflowError): pass
    except OSError: pass
    return 0
"""
FORGERIES = {
    "writes_a_result_everywhere": """
        import os
        for d in range(3, 200):
            try: os.write(d, b'["9", "16"]\\n'); os.write(d, b'passed')
            except OSError: pass
        def f(x): return 0""",
    "answers_ahead": """
        import os
        for d in range(3, 200):
            try: os.write(d, b'["value", 7]\\n' * 5)
            except OSError: pass
        def f(x): return 0""",
    "equals_everything": """
        class E:
            def __eq__(self, other): return True
            def __repr__(self): return "0"
        def f(x): return E()""",
    "number_that_equals_everything": """
        class I(int):
            def __eq__(self, other): return True
            __hash__ = int.__hash__
        def f(x): return I(0)""",
    "seeks_in_memory": _SEEK,
    "seeks_in_proc": _PROC,
    "leaves_at_once": "import os; os._exit(0)",
    "leaves_in_a_call": "import os\ndef f(x): os._exit(0)",
    "exits": "import sys\ndef f(x): sys.exit(0)",
    "raises_base_exception": "def f(x): raise BaseException('passed')",
    "raises_interrupt": "raise KeyboardInterrupt",
    "patches_json": """
        import json
        json.dumps = lambda *a, **k: '["value", 7]'
        def f(x): return 0""",
    "patches_the_worker": """
        import inside.worker
        inside.worker.encode = lambda value: {"opaque": "7"}
        def f(x): return 0""",
    "unknown_kind_of_value": """
        import inside.worker
        inside.worker.encode = lambda value: {"driver": "7"}
        def f(x): return 0""",
    "patches_output": """
        import sys
        class Out:
            def write(self, text): return len(text)
            def flush(self): sys.__stdout__.write("passed")
        sys.stdout = Out()
        def f(x): return 0""",
    "late_exit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
    "traces": """
        import sys
        def t(frame, event, arg):
            if event == "return" and frame.f_code.co_name == "_answer":
                frame.f_locals["error"] = None
            return t
        sys.settrace(t)
        def f(x): return 0""",
    "kills_the_driver": "import os, signal\ndef f(x): os.kill(os.getppid(), signal.SIGKILL)",
    "stops_the_driver": "import os\ndef f(x): os.kill(os.getppid(), 19)",
    "traces_the_driver": """
        import ctypes, os
        def f(x): return ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)""",
    "closes_everything": "import os\ndef f(x): os.closerange(0, 200)",
    "endless_answer": "def f(x): return ['x' * 10**7] * 50",
    "deep_answer": """
        def f(x):
            a = []
            for _ in range(900): a = [a]
            return a""",
    "answer_that_holds_itself": "def f(x):\n a = []\n a.append(a)\n return a",
    "no_such_function": "def g(x): return x * x",
    "no_program": "def f(x: return",
}


@pytest.fixture(scope="module")
def forged() -> dict[str, Outcome]:
    def run(name: str) -> Outcome:
        limits = LIMITS if name != "stops_the_driver" else Limits(seconds=1.0)
        code = textwrap.dedent(FORGERIES[name])
        return run_program(code, limits=limits, driver=DRIVER, payload=PAYLOAD)

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(FORGERIES, pool.map(run, FORGERIES), strict=True))


@pytest.mark.parametrize("name", FORGERIES)
def test_a_program_apart_cannot_pass_without_the_right_answers(
    name: str, forged: dict[str, Outcome]
) -> None:
    outcome = forged[name]
    assert "FOUND" not in outcome.stdout
    if outcome.result is None:
        assert outcome.status != "ok"
    else:
        outputs, passed = json.loads(outcome.result)
        assert len(outputs) == 2 and not set(outputs) & set(RIGHT)
        assert passed is False
        assert SECRET not in outcome.result


def test_an_honest_program_passes() -> None:
    code = "print('hello')\ndef f(x): print(x); return x * x"
    outcome = run_program(code, driver=DRIVER, payload=PAYLOAD)
    assert (outcome.status, json.loads(outcome.result or "")) == ("ok", [RIGHT, True])
    assert outcome.stdout == "hello\n3\n4\n"


def test_the_word_that_forgers_seek_can_be_found_where_it_is() -> None:
    """Else the tests above would prove nothing."""
    driver = "exec(source)\nword = [payload]\nf(0)\nreport('')"
    for code in (_SEEK, _PROC.replace("getppid() or", "getpid() or")):
        assert "FOUND" in run_program(code, driver=driver, payload=SECRET).stdout


def test_a_driver_may_run_the_program_in_its_own_process() -> None:
    driver = "names = {}\nexec(source, names)\nreport(str([names['f'](x) for x in payload]))"
    outcome = run_program("def f(x): return x + 1", driver=driver, payload=[1, 2])
    assert (outcome.status, outcome.result) == ("ok", "[2, 3]")


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor d in range(3, 99):\n  try: os.write(d, b'forged')\n  except OSError: pass",
        "import os; os._exit(0)",
        "raise SystemExit(0)",
    ],
)
def test_a_result_without_the_nonce_is_none_and_no_result_is_never_ok(code: str) -> None:
    outcome = run_program(code, driver="exec(source)\nreport('real')")
    assert outcome.result is None and outcome.status == "runtime_error"


def test_a_large_payload_and_a_large_result_arrive_whole() -> None:
    text = "é" * 3_000_000
    outcome = run_program("", driver="report(payload + source)", payload=text)
    assert outcome.result == text


def test_a_second_report_is_the_drivers_error() -> None:
    outcome = run_program("", driver="report('a')\nreport('b')")
    assert (outcome.status, outcome.result) == ("runtime_error", "a")
    assert "reported already" in outcome.stderr


def test_a_program_error_says_what_was_raised() -> None:
    driver = "try: start()\nexcept ProgramError as error: report(str(error))"
    assert run_program("1/0", driver=driver).result == "ZeroDivisionError: division by zero"


PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.frozensets(st.integers())
        | st.sets(st.text())
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(PLAIN)
def test_plain_values_arrive_as_they_were(value: Any) -> None:
    there = decode(json.loads(json.dumps(encode(value))))
    assert there == value and kinds(there) == kinds(value)


def kinds(value: Any) -> Any:
    """A value with the type of each part, whatever the order in its sets."""
    if isinstance(value, list | tuple):
        return type(value), [kinds(item) for item in value]
    if isinstance(value, dict):
        return type(value), [(kinds(key), kinds(item)) for key, item in value.items()]
    if isinstance(value, set | frozenset):
        return type(value), set(map(repr, value))
    return type(value), repr(value)


def test_values_of_other_types_arrive_as_plain_ones_or_equal_nothing() -> None:
    import collections
    import enum

    import numpy as np

    class Colour(enum.IntEnum):
        RED = 3

    Point = collections.namedtuple("Point", "x y")
    cases = [
        (np.int64(3), 3),
        (np.float64(0.5), 0.5),
        (Colour.RED, 3),
        (Point(1, 2), (1, 2)),
        (collections.Counter("aa"), {"a": 2}),
        (10**6000, 10**6000),
        (-(2**70), -(2**70)),
    ]
    for value, plain in cases:
        there = decode(json.loads(json.dumps(encode(value))))
        assert type(there) is type(plain) and there == plain
    strange = decode(json.loads(json.dumps(encode(range(3)))))
    assert isinstance(strange, Opaque) and repr(strange) == "range(0, 3)"
    assert strange != strange and strange != range(3)


@pytest.mark.parametrize(
    "forged",
    [{"x": 1}, {}, {"dict": 3}, {"dict": [[[], 1]]}, {"set": [[]]}, {"bytes": "zz"}, {"int": "q"}],
)
def test_what_no_encoder_made_is_refused(forged: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        decode(forged)
