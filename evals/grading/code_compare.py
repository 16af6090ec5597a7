"""Whether a program's answer is the expected one."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any


def same_output(output: str, expected: str) -> bool:
    """LiveCodeBench's rule for text (testing_util.py): line by line after stripping; a line that
    differs is compared token by token as decimal numbers, exactly."""
    ours, theirs = _lines(output), _lines(expected)
    return len(ours) == len(theirs) and all(
        line == other or _same_numbers(line, other)
        for line, other in zip(ours, theirs, strict=True)
    )


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_numbers(line: str, other: str) -> bool:
    try:
        ours = [Decimal(token) for token in line.split()]
        return ours == [Decimal(token) for token in other.split()]
    except (InvalidOperation, ValueError):  # no number, or one that compares with nothing (sNaN)
        return False


def same_value(value: Any, expected: Any, *, tuples_are_lists: bool = True) -> bool:
    """Python's `==` between what a function returned and the expected value.

    Args:
        tuples_are_lists: a returned tuple counts as a list (the outermost alone), as
            LiveCodeBench has it.
    """
    if tuples_are_lists and isinstance(value, tuple):
        value = list(value)
    try:
        return bool(value == expected)
    except RecursionError:
        return False


class Unequal:
    """A value that JSON cannot hold, or one that a program garbled: it equals nothing."""


def decode_value(encoded: Any) -> Any:
    """The value that :func:`evals.grading.code_inside.plain` encoded."""
    try:
        return _decoded(*encoded)
    except (TypeError, ValueError, RecursionError):
        return Unequal()


def _decoded(kind: Any, content: Any) -> Any:
    if kind == "value" and isinstance(content, bool | int | float | str | None):
        return content
    if kind == "integer":
        return int(content, 16)
    if kind == "list":
        return [_decoded(*item) for item in content]
    if kind == "tuple":
        return tuple(_decoded(*item) for item in content)
    if kind == "set":
        return frozenset(_decoded(*item) for item in content)
    if kind == "dict":
        return {_decoded(*key): _decoded(*item) for key, item in content}
    return Unequal()


def decode_report(text: str) -> Any:
    """The JSON of a report; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
