"""Responses and rows of code benchmarks, written out by hand."""

from __future__ import annotations

import json
import textwrap
from typing import Any


def fenced(program: str) -> str:
    return f"Thus:\n```python\n{textwrap.dedent(program)}\n```\nDone."


def stdin_row(*pairs: tuple[str, str]) -> dict[str, Any]:
    tests = [{"input": given, "output": wanted, "testtype": "stdin"} for given, wanted in pairs]
    return {"public_test_cases": tests, "private_test_cases": "[]", "metadata": "{}"}


def function_row(*pairs: tuple[str, str], name: str = "f") -> dict[str, Any]:
    return stdin_row(*pairs) | {"metadata": json.dumps({"func_name": name})}


DOUBLE = stdin_row(("1\n", "2\n"), ("5\n", "10"))
CASE = {"input": "1\n", "output": "2"}
LEETCODE = {
    "tests": {
        "functional": "def check(candidate):\n    assert candidate(x = 1) == 2\n"
        "    assert candidate(x = 5) == 10\n\n\ncheck(Solution().double)"
    }
}
HUMANEVAL = {
    "task_id": "test/0",
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(5) == 10\n",
}
