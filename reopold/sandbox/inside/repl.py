"""Runs cells of code one after another in one namespace, as Jupyter does.

A request is one line of JSON: the cell, a nonce, and the most characters of a value. An answer is
one line of JSON behind the nonce. Output goes to the ordinary descriptors.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import sys
import traceback
import types
from typing import Any

_NAME = "<cell>"


def main() -> None:
    os.set_inheritable(3, False)
    os.set_inheritable(4, False)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    with (
        open(3, encoding="utf-8", errors="surrogatepass") as asked,
        open(4, "w", encoding="utf-8", errors="surrogatepass") as told,
    ):
        for line in asked:
            order: dict[str, Any] = json.loads(line)
            answer = _run(order["cell"], module.__dict__, order["value_length"])
            told.write(f"{order['nonce']}{json.dumps(answer)}\n")
            told.flush()


def _run(cell: str, names: dict[str, Any], value_length: int) -> dict[str, str | None]:
    """The value of a final bare expression, and the last line of the error that ended the cell."""
    value: str | None = None
    error: str | None = None
    try:
        tree = ast.parse(cell, _NAME)
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr) and not cell.rstrip().endswith(";"):
            tree.body.pop()
        else:
            last = None
        exec(compile(tree, _NAME, "exec"), names)
        if last is not None:
            result = eval(compile(ast.Expression(last.value), _NAME, "eval"), names)
            value = None if result is None else repr(result)[:value_length]
    except BaseException as raised:
        error = _last_line(raised)
    for stream in (sys.stdout, sys.stderr):
        # The cell may have closed or replaced them.
        with contextlib.suppress(BaseException):
            stream.flush()
    return {"value": value, "error": error}


def _last_line(raised: BaseException) -> str:
    try:
        return traceback.format_exception_only(raised)[-1].strip().splitlines()[-1]
    except BaseException:
        return type(raised).__name__
