"""Runs a program's source as a module and answers calls of its functions, one line each."""

from __future__ import annotations

import json
import os
import sys
import traceback
import types
from typing import Any

from .values import decode, encode


def main(requests: int, answers: int) -> None:
    for descriptor in (requests, answers):
        os.set_inheritable(descriptor, False)
    module = types.ModuleType("program")
    sys.modules["program"] = module
    with (
        open(requests, encoding="utf-8", errors="surrogatepass") as asked,
        open(answers, "w", encoding="utf-8", errors="surrogatepass") as told,
    ):
        for line in asked:
            print(json.dumps(_answer(json.loads(line), module.__dict__)), file=told, flush=True)


def _answer(request: Any, names: dict[str, Any]) -> tuple[str, Any]:
    try:
        if isinstance(request, str):
            exec(compile(request, "program.py", "exec"), names)
            return "value", None
        name, arguments = request
        return "value", encode(eval(name, names)(*(decode(item) for item in arguments)))
    except BaseException as error:
        return "raised", traceback.format_exception_only(error)[-1].strip()
    finally:
        sys.stdout.flush()
