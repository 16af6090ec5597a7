"""Runs a driver beside a program's source text, and passes on the one text that it reports.

Descriptor 3 holds the orders, descriptor 4 takes the result behind a nonce, which tells it from
what anybody else may write there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import kernel
from .values import decode, encode

_FOLDER = str(Path(__file__).parent.parent)


class ProgramError(Exception):
    """What the program raised; the text is the last line of its traceback."""


class ProgramEnded(Exception):
    """The program ended itself in the middle of a call, or answered what no answer is."""


class Program:
    """The source, run as a module in a process of its own, whose functions can be called.

    Arguments and results are plain values (None, bool, int, float, complex, str, bytes, list,
    tuple, dict, set, and subclasses as their base); anything else arrives as an object that equals
    nothing. Standard output is the program's own.

    Raises:
        ProgramError: the source itself raised.
        ProgramEnded: it ended itself.
    """

    def __init__(self, source: str) -> None:
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # none of the same user may look into this process
        to_read, to_write = os.pipe(), os.pipe()
        start = "import sys; sys.path.insert(0, {!r}); from inside.worker import main; "
        start = start.format(_FOLDER) + f"del sys.path[0]; main({to_read[0]}, {to_write[1]})"
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-B", "-c", start], pass_fds=(to_read[0], to_write[1])
        )
        os.close(to_read[0])
        os.close(to_write[1])
        self._requests = open(to_read[1], "w", encoding="utf-8", errors="surrogatepass")  # noqa: SIM115
        self._answers = open(to_write[0], encoding="utf-8", errors="surrogatepass")  # noqa: SIM115
        self._ask(source)

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of a function; `name` is any expression, such as `Solution().add`.

        Raises:
            ProgramError: it raised.
            ProgramEnded: it ended itself.
        """
        return self._ask([name, [encode(item) for item in arguments]])

    def _ask(self, request: Any) -> Any:
        try:
            print(json.dumps(request), file=self._requests, flush=True)
            kind, content = json.loads(self._answers.readline())
            content = decode(content)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ProgramEnded("the program ended itself") from error
        if kind == "raised":
            raise ProgramError(str(content))
        return content


def main() -> None:
    with open(3, "rb") as file:
        orders: dict[str, Any] = json.loads(file.read())
    os.set_inheritable(4, False)
    nonce: str = orders["nonce"]
    reported = False

    def report(text: str) -> None:
        nonlocal reported
        if reported:
            raise RuntimeError("a result was reported already")
        reported = True
        with open(4, "wb") as channel:
            channel.write(nonce.encode() + text.encode("utf-8", errors="surrogatepass"))

    names = {
        "__name__": "__main__",
        "source": orders["source"],
        "payload": orders["payload"],
        "report": report,
        "start": lambda: Program(orders["source"]),
        "ProgramError": ProgramError,
        "ProgramEnded": ProgramEnded,
    }
    exec(compile(orders["driver"], "driver.py", "exec"), names)
