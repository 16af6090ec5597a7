"""BFCL: whether function calls are among the possible answers.

The rule is that of bfcl_eval/eval_checker/ast_eval/ast_checker.py (v4), its looseness included:
strings are compared without case and without ` ,./-_*^`, a value of the type of the possible
answers passes whatever the schema says, element types are checked one level deep, and an empty
text among the possible answers allows a parameter to be left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.grading.assignment import assignable
from evals.grading.bfcl_decode import Language
from evals.grading.bfcl_syntax import Call
from evals.grading.bfcl_values import JAVA_TYPES, JAVASCRIPT_TYPES, java_value, javascript_value
from reopold.config import ConfigError

_PYTHON_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_TYPES = {"python": _PYTHON_TYPES, "java": JAVA_TYPES, "javascript": JAVASCRIPT_TYPES}
#: Types whose elements have a type.
_NESTED = {"python": {"array", "tuple"}, "java": {"Array", "ArrayList"}, "javascript": {"array"}}

#: The possible answers of one call: its function's name -> parameter -> values.
Answer = Mapping[str, Mapping[str, Sequence[Any]]]


@dataclass(frozen=True)
class Task:
    """What is the same for all responses to one item."""

    functions: Sequence[Mapping[str, Any]]
    answers: Sequence[Answer]
    language: Language
    kind: str
    """`simple`, `multiple` or `parallel`."""


def check(task: Task, calls: Sequence[Call], called: bool, official: bool) -> bool:
    """Whether these calls are right.

    Args:
        called: they came by an interface for function calling (FC). Most such interfaces refuse a
            dot in a function's name, so `a_b` is as good as `a.b`; which of the two a model was
            shown is a setting of the leaderboard's that its results do not state.
        official: parallel calls are matched greedily, as the authors do: an answer takes the first
            call that fits and never gives it back. Otherwise they are right if any matching is.

    Raises:
        ConfigError: the item's functions or answers are not as the benchmark has them.
    """
    if not task.answers or len(calls) != len(task.answers):
        return False

    def fits(answer: Answer, call: Call, function: Mapping[str, Any]) -> bool:
        name = str(function["name"])
        named = call.name == name or (called and call.name == name.replace(".", "_"))
        return named and _check_call(function, call, answer, task.language)

    if task.kind != "parallel":
        answer = task.answers[0]
        function = task.functions[0] if task.kind == "simple" else _described(task, answer)
        return fits(answer, calls[0], function)
    described = [_described(task, answer) for answer in task.answers]
    edges = [
        [fits(answer, call, function) for call in calls]
        for answer, function in zip(task.answers, described, strict=True)
    ]
    return _greedy(edges) if official else assignable(edges)


def _described(task: Task, answer: Answer) -> Mapping[str, Any]:
    name = next(iter(answer))
    for function in task.functions:
        if function["name"] == name:
            return function
    raise ConfigError(f"a BFCL record's answer calls '{name}', which its functions lack")


def _greedy(edges: Sequence[Sequence[bool]]) -> bool:
    taken: set[int] = set()
    for row in edges:
        place = next((p for p, fits in enumerate(row) if fits and p not in taken), None)
        if place is None:
            return False
        taken.add(place)
    return True


def _check_call(
    function: Mapping[str, Any], call: Call, answer: Answer, language: Language
) -> bool:
    possible = next(iter(answer.values()))
    schema = function["parameters"]
    parameters, required = schema.get("properties", {}), schema.get("required", [])
    if any(name not in call.arguments for name in required):
        return False
    for name, value in call.arguments.items():
        if name not in parameters or name not in possible:
            return False
        if not _check_value(value, possible[name], parameters[name], language):
            return False
    return all(name in call.arguments or "" in values for name, values in possible.items())


def _check_value(
    value: Any, answers: Sequence[Any], schema: Mapping[str, Any], language: Language
) -> bool:
    kind = schema["type"]
    expected = _type(kind, language)
    nested_kind: str | None = None
    nested: type | None = None
    if kind in _NESTED[language] and "type" in schema.get("items", {}):
        nested_kind = schema["items"]["type"]
        nested = _type(nested_kind, language)
    if language != "python":
        if type(value) is not str:
            return False
        convert = java_value if language == "java" else javascript_value
        value = convert(value, kind, nested_kind)
    elif kind == "tuple" and type(value) is tuple:
        value = list(value)
    elif kind == "float" and type(value) is int:
        if abs(value) >= 2**1023:  # no float; no answer either
            return False
        value = float(value)
    fits, variable = _check_type(value, answers, expected, nested)
    if not fits:
        return False
    if variable or expected not in _CHECKS:
        return value in answers
    if expected is list and nested is dict:
        return any(_equal_dicts(value, answer) for answer in answers)
    return _CHECKS[expected](value, answers)


def _type(kind: str, language: Language) -> type:
    try:
        return _TYPES[language][kind]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"a BFCL record has a {language} parameter of type {kind!r}") from error


def _check_type(
    value: Any, answers: Sequence[Any], expected: type, nested: type | None
) -> tuple[bool, bool]:
    """Whether the type fits, and whether the value stands for a variable (the possible answers are
    of another type than the schema says)."""
    stated = next((type(answer) for answer in answers if answer != ""), None)
    kind: type = type(value)
    if kind is not expected:
        return stated is not None and kind is stated, True
    variable = stated is not None and stated is not expected
    if nested is None:
        return True, variable
    fits = any(
        type(answer) is not list
        or all(_check_type(item, answer, nested, None)[0] for item in value)
        for answer in answers
    )
    return fits, variable


def _plain(value: Any) -> Any:
    """A string as it is compared; anything else as it is."""
    if not isinstance(value, str):
        return value
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')


def _check_string(value: str, answers: Sequence[Any]) -> bool:
    return _plain(value) in [_plain(answer) for answer in answers if isinstance(answer, str)]


def _check_list(value: list[Any], answers: Sequence[Any]) -> bool:
    """Element by element, in order. An empty text among the answers is as good as no elements."""
    plain = [_plain(item) for item in value]
    return any(
        plain == [_plain(item) for item in answer]
        for answer in answers
        if isinstance(answer, (list, str))
    )


def _check_dict(value: dict[Any, Any], answers: Sequence[Any]) -> bool:
    return any(_equal_dict(value, answer) for answer in answers)


def _equal_dict(value: Any, answer: Any) -> bool:
    """Key by key: the answer lists the possible values of each key, an empty text among them if the
    key may be left out."""
    if not isinstance(value, dict) or not isinstance(answer, dict):
        return False
    return all(
        key in answer and _plain(item) in [_plain(possible) for possible in answer[key]]
        for key, item in value.items()
    ) and all(key in value or "" in possible for key, possible in answer.items())


def _equal_dicts(value: list[Any], answer: Any) -> bool:
    if not isinstance(answer, (list, str)) or len(value) != len(answer):
        return False
    return all(_equal_dict(item, wanted) for item, wanted in zip(value, answer, strict=True))


_CHECKS: dict[type, Callable[[Any, Sequence[Any]], bool]] = {
    str: _check_string,
    list: _check_list,
    dict: _check_dict,
}
