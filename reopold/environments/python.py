"""A Python interpreter between a model's turns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from reopold.environments.base import Environment, Observation
from reopold.environments.calls import ToolCall, read_calls, said
from reopold.sandbox.interpreter import TOOL_LIMITS, Execution, Interpreter, shorten
from reopold.sandbox.limits import Limits

Form = Literal["fenced", "tool_call"]

#: Three backquotes and the language on a line of their own, then lines up to three backquotes.
_FENCED = re.compile(r"^[ \t]*```[ \t]*(?:python|py)3?[ \t]*\n(.*?)^[ \t]*```", re.M | re.S | re.I)

NO_OUTPUT = "[The code ran without an error and printed nothing.]"
RESTARTED = "[The interpreter was started anew: all variables are lost.]"
USED_UP = "[No more code is run: all {} calls are used up. Give the final answer.]"


@dataclass(frozen=True)
class _Call:
    code: str = ""
    error: str = ""
    """What is wrong with the call, if something is."""


class PythonEnvironment(Environment):
    """Runs the code that a message holds, in one namespace for the whole dialogue.

    `fenced`: the last block of the message that is fenced as Python is run, unless an answer
    (`\\boxed`) comes behind it; the observation is a block fenced as `output` (ToRA, arXiv
    2309.17452). `tool_call`: every `<tool_call>` that names `python` with its `code` is run, in
    order; the observation is their results. Code within a thought (`</think>`) is not run, and a
    message without code to run is an answer: it ends the dialogue.

    An observation is what the code printed and, as in Jupyter, the value of a final bare
    expression; of an error the last line of its traceback alone.

    Args:
        calls: that are carried out. The next one is answered in words, and one in a later message
            ends the dialogue.
        characters: of one call's observation; of a longer one the first and the last half are
            kept (256 in ToRL, arXiv 2503.23383).

    Raises:
        ValueError: a budget is not positive, or there is no such form.
    """

    def __init__(
        self,
        form: Form = "fenced",
        *,
        calls: int = 8,
        characters: int = 2000,
        limits: Limits = TOOL_LIMITS,
    ) -> None:
        if form not in ("fenced", "tool_call"):
            raise ValueError(f"no form '{form}'; there are: fenced, tool_call")
        if calls < 1 or characters < 1:
            raise ValueError(f"budgets must be positive: {calls} calls, {characters} characters")
        self.form = form
        self.calls = 0
        """Asked for so far, beyond the budget too."""
        self.failed = 0
        """Those among them that were the model's mistake."""
        self._budget = calls
        self._characters = characters
        self._interpreter = Interpreter(limits)

    def act(self, message: str) -> Observation:
        """Run the message's code.

        Raises:
            SandboxFailure: the sandbox broke; it says nothing about the model.
        """
        found = _fenced(message) if self.form == "fenced" else _tool_calls(message)
        if not found or self.calls > self._budget:
            self.calls += len(found)
            return Observation("", done=True, calls=len(found))
        texts = []
        failed = 0
        for call in found:
            text, mistake = self._carry_out(call)
            texts.append(text)
            failed += mistake
        self.failed += failed
        text = "\n".join(texts)
        if self.form == "fenced":
            text = f"```output\n{text}\n```"
        return Observation(text, done=False, calls=len(found), failed=failed)

    def _carry_out(self, call: _Call) -> tuple[str, bool]:
        """What is said to one call, and whether it was a mistake."""
        self.calls += 1
        if self.calls > self._budget:
            return USED_UP.format(self._budget), False
        if call.error:
            return call.error, True
        execution = self._interpreter.execute(call.code)
        return self._words(execution), execution.status != "ok"

    def _words(self, execution: Execution) -> str:
        parts = [execution.stdout.rstrip("\n"), execution.value_repr, execution.error]
        text = shorten("\n".join(part for part in parts if part), self._characters)
        return "\n".join(
            part for part in (text or NO_OUTPUT, RESTARTED if execution.lost else "") if part
        )

    def close(self) -> None:
        """End the interpreter; a second call does nothing."""
        self._interpreter.close()


def _fenced(message: str) -> list[_Call]:
    text = said(message)
    blocks = list(_FENCED.finditer(text))
    if not blocks or "\\boxed" in text[blocks[-1].end() :]:
        return []
    return [_Call(blocks[-1].group(1))]


def _tool_calls(message: str) -> list[_Call]:
    return [_code(call) for call in read_calls(message)]


def _code(call: ToolCall) -> _Call:
    if call.fault or "code" not in call.arguments:
        wanted = '{"name": "python", "arguments": {"code": "..."}}'
        return _Call(error=f"Error: the call is not of the form {wanted}")
    if call.name != "python":
        return _Call(error=f"Error: there is no tool '{shorten(call.name, 64)}', only 'python'")
    code = call.arguments["code"]
    if not isinstance(code, str):
        return _Call(error="Error: 'code' must be a text")
    return _Call(code)
