"""Functions that a model may call between its turns, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from reopold.environments.arithmetic import calculate
from reopold.environments.base import Environment, Observation
from reopold.environments.calls import ToolCall, read_calls
from reopold.environments.schemas import check_schema, fault_of
from reopold.sandbox.interpreter import shorten

#: Characters of what is said to one call; of more the first and the last half are kept.
CHARACTERS = 2000
USED_UP = "[No more calls are carried out: all {} are used up. Give the final answer.]"


@dataclass(frozen=True)
class Function:
    """What may be called, as the chat template shows it to the model.

    Raises:
        ValueError: the schema says what would not be checked (:mod:`reopold.environments.schemas`).
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of the arguments, which are an object."""
    call: Callable[..., Any]
    """Gets the arguments by name, once they fit the schema. What it returns is shown as it is if it
    is a text, else as JSON; what it raises is the model's mistake, and told."""

    def __post_init__(self) -> None:
        check_schema(self.parameters)

    @property
    def schema(self) -> dict[str, Any]:
        function = {"description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": {"name": self.name, **function}}


class FunctionEnvironment(Environment):
    """Carries out every `<tool_call>` of a message, in order; the observation is their results.

    A message without one is an answer and ends the dialogue. For functions of the user's own that
    come to an end by themselves: one that takes too long is answered for, but goes on in its
    thread, which Python cannot end. What a model wrote is run by the `python` environment alone.

    Args:
        calls: that are carried out. The next one is answered in words, and one in a later message
            ends the dialogue.
        seconds: wall-clock of one call.

    Raises:
        ValueError: a budget is not positive, or two functions have one name.
    """

    def __init__(
        self, functions: Sequence[Function], *, calls: int = 8, seconds: float = 5.0
    ) -> None:
        if calls < 1 or seconds <= 0:
            raise ValueError(f"budgets must be positive: {calls} calls, {seconds} seconds")
        self._functions = {function.name: function for function in functions}
        if len(self._functions) < len(functions):
            raise ValueError("two functions have one name")
        self.schemas = [function.schema for function in functions]
        self.calls = 0
        """Asked for so far, beyond the budget too."""
        self.failed = 0
        """Those among them that were the model's mistake."""
        self._budget = calls
        self._seconds = seconds

    def act(self, message: str) -> Observation:
        found = read_calls(message)
        if not found or self.calls > self._budget:
            self.calls += len(found)
            return Observation("", done=True, calls=len(found))
        answers = [self._carry_out(call) for call in found]
        failed = sum(mistake for _, mistake in answers)
        self.failed += failed
        text = "\n".join(shorten(text, CHARACTERS) for text, _ in answers)
        return Observation(text, done=False, calls=len(found), failed=failed)

    def _carry_out(self, call: ToolCall) -> tuple[str, bool]:
        """What is said to one call, and whether it was a mistake."""
        self.calls += 1
        if self.calls > self._budget:
            return USED_UP.format(self._budget), False
        function = self._functions.get(call.name)
        fault = call.fault
        if not fault and function is None:
            there = ", ".join(self._functions) or "none"
            fault = f"there is no function '{shorten(call.name, 64)}'; there are: {there}"
        elif not fault and function is not None:
            fault = fault_of(call.arguments, function.parameters, "the arguments")
        if fault or function is None:
            return f"Error: {fault}", True
        return self._result(function, call.arguments)

    def _result(self, function: Function, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        box: SimpleQueue[tuple[str, bool]] = SimpleQueue()
        thread = Thread(
            target=lambda: box.put(_called(function, arguments)), name=function.name, daemon=True
        )
        thread.start()
        try:
            return box.get(timeout=self._seconds)
        except Empty:
            return f"Error: {function.name} took longer than {self._seconds:g} seconds", True


def _called(function: Function, arguments: Mapping[str, Any]) -> tuple[str, bool]:
    try:
        result = function.call(**arguments)
        return result if isinstance(result, str) else json.dumps(result), False
    except Exception as error:  # whatever a function of the user's own may raise
        return f"Error: {str(error) or type(error).__name__}", True


CALCULATOR = Function(
    name="calculator",
    description="The value of an arithmetic expression, exactly.",
    parameters={
        "type": "object",
        "properties": {
            "expression": {
                "type": "string",
                "description": "Numbers, + - * / // % ** and parentheses.",
            }
        },
        "required": ["expression"],
        "additionalProperties": False,
    },
    call=calculate,
)
