"""Each rule of BFCL's AST checker by itself."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.grading.bfcl_check import Task, check
from evals.grading.bfcl_decode import Language
from evals.grading.bfcl_syntax import Call
from reopold.config import ConfigError

MISSING = object()


def fits(
    value: Any,
    schema: Any,
    answers: list[Any],
    language: Language = "python",
    official: bool = False,
) -> bool:
    """Whether `f(a=value)` is right, `a` being optional."""
    schema = {"type": schema} if isinstance(schema, str) else schema
    function = {"name": "f", "parameters": {"properties": {"a": schema}, "required": []}}
    task = Task([function], [{"f": {"a": answers}}], language, "simple")
    arguments = {} if value is MISSING else {"a": value}
    return check(task, [Call("f", arguments)], called=False, official=official)


def array(kind: str, outer: str = "array") -> dict[str, Any]:
    return {"type": outer, "items": {"type": kind}}


@pytest.mark.parametrize(
    ("value", "schema", "answers", "right"),
    [
        # types: exact, but int for float
        (5, "integer", [5], True),
        (5.0, "integer", [5], False),
        (True, "integer", [1], False),
        ("5", "integer", [5], False),
        (5, "float", [5.0], True),
        (5, "float", [5], True),
        (True, "float", [1.0], False),
        (10**400, "float", [1.0], False),
        (True, "boolean", [True], True),
        (1, "boolean", [True], False),
        (None, "string", [None], True),
        # a value of the answers' own type passes, whatever the schema says (a variable)
        ("x", "integer", ["x"], True),
        ("X", "integer", ["x"], False),
        (7, "string", [7], True),
        ("7", "string", [7], False),
        # strings
        ("New  York, NY.", "string", ["new york ny"], True),
        ("it's a_b*c^d/e-f", "string", ['IT"S ABCDEF'], True),
        ("New York", "string", ["Newark"], False),
        ("a;b", "string", ["ab"], False),
        ("a\tb", "string", ["ab"], False),
        ("5", "any", ["5"], True),
        # left out
        (MISSING, "string", ["x", ""], True),
        (MISSING, "string", ["x"], False),
        (MISSING, "string", [], False),
        # lists
        (["A b", 1], "array", [["ab", 1]], True),
        (["b", "a"], "array", [["a", "b"]], False),
        ([], "array", [["a"], ""], True),
        ([], "array", [["a"]], False),
        (["a", "b"], "array", ["ab"], False),
        ((1, 2), array("integer"), [[1, 2]], False),
        ((1, 2), array("integer", "tuple"), [[1, 2]], True),
        ([1, 2], array("integer", "tuple"), [[1, 2]], True),
        ([1, 2], array("float"), [[1.0, 2.0]], False),
        ([1, 2], array("float"), [[1, 2]], True),
        ([1, 2.0], array("float"), [[1.0, 2.0], ""], True),
        ([[1, 2], [3]], array("array"), [[[1, 2], [3]]], True),
        ([["A"]], array("array"), [[["a"]]], False),
        # objects
        ({"k": "A b"}, "dict", [{"k": ["ab", "c"]}], True),
        ({"k": "A b", "m": 1}, "dict", [{"k": ["ab"]}], False),
        ({}, "dict", [{"k": ["ab", ""]}], True),
        ({}, "dict", [{"k": ["ab"]}], False),
        ({"k": 2}, "dict", ["", {"k": [1]}, {"k": [2]}], True),
        ({}, "dict", [""], False),
        ({"k": {"x": 1}}, "dict", [{"k": [{"x": 1}]}], True),
        ([{"k": 1}, {"k": 2}], array("dict"), [[{"k": [1]}, {"k": [2]}]], True),
        ([{"k": 2}, {"k": 1}], array("dict"), [[{"k": [1]}, {"k": [2]}]], False),
        ([{"k": 1}], array("dict"), [[{"k": [1]}, {"k": [2]}]], False),
        ([], array("dict"), [""], True),
        (["x"], array("dict"), [["x"]], False),
    ],
)  # fmt: skip
def test_values(value: Any, schema: Any, answers: list[Any], right: bool) -> None:
    assert fits(value, schema, answers) == right
    assert fits(value, schema, answers, official=True) == right


@pytest.mark.parametrize(
    ("value", "schema", "answers", "right"),
    [
        ("5L", "long", [5], True),
        ("5", "long", [5], False),
        ("2.5", "float", [2.5], False),
        ("2.5f", "float", [2.5], True),
        ("2.5", "double", [2.5], True),
        ("true", "boolean", [True], True),
        ("flag", "boolean", ["flag"], True),
        ("x y", "any", ["xy"], True),
        (5, "integer", [5], False),
        ("new String[]{\"a\"}", array("String", "Array"), [['"a"']], True),
        ('new ArrayList<>(Arrays.asList("a"))', array("String", "ArrayList"), [["a"]], True),
        ('new HashMap<String, Integer>() {{ put("k", 1); }}', "HashMap", [{"k": [1]}], True),
    ],
)  # fmt: skip
def test_java_values(value: Any, schema: Any, answers: list[Any], right: bool) -> None:
    assert fits(value, schema, answers, "java") == right


@pytest.mark.parametrize(
    ("value", "schema", "answers", "right"),
    [
        ("5n", "Bigint", [5], True),
        ("5", "Bigint", [5], False),
        ("[1.5, 2.5]", array("float"), [[1.5, 2.5]], True),
        ('{"k": [1, 2]}', "dict", [{"k": [[1, 2]]}], True),
        ("'S'", "String", ["s"], True),
        (True, "Boolean", [True], False),
    ],
)
def test_javascript_values(value: Any, schema: Any, answers: list[Any], right: bool) -> None:
    assert fits(value, schema, answers, "javascript") == right


FUNCTIONS = [
    {"name": name, "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}
    for name in ("f", "f.g")
]


def parallel(answers: list[list[int]], values: list[int], official: bool) -> bool:
    task = Task(FUNCTIONS, [{"f": {"a": list(a)}} for a in answers], "python", "parallel")
    return check(task, [Call("f", {"a": v}) for v in values], called=False, official=official)


def test_greedy_matching_may_miss_an_assignment() -> None:
    # The first answer takes the call that only it and the second could; the second is left alone.
    assert parallel([[1, 2], [1]], [1, 2], official=False)
    assert not parallel([[1, 2], [1]], [1, 2], official=True)
    assert parallel([[1], [1, 2]], [1, 2], official=True)


SMALL = st.integers(0, 3)


@settings(deadline=None)
@given(
    answers=st.lists(st.lists(SMALL, min_size=1, max_size=3), min_size=1, max_size=5),
    values=st.lists(SMALL, min_size=1, max_size=5),
)
def test_parallel_calls_are_right_if_any_assignment_is(
    answers: list[list[int]], values: list[int]
) -> None:
    wanted = len(answers) == len(values) and any(
        all(value in answer for answer, value in zip(answers, order, strict=True))
        for order in permutations(values)
    )
    assert parallel(answers, values, official=False) == wanted
    assert wanted or not parallel(answers, values, official=True)


@pytest.mark.parametrize(
    ("kind", "name", "called", "right"),
    [
        ("multiple", "f.g", False, True),
        ("multiple", "f_g", False, False),
        ("multiple", "f_g", True, True),
        ("multiple", "f.g", True, True),
        ("multiple", "f", False, False),
        ("simple", "f.g", False, False),  # the first function is the only one that simple looks at
        ("simple", "f", False, True),
    ],
)
def test_names(kind: str, name: str, called: bool, right: bool) -> None:
    task = Task(FUNCTIONS, [{"f.g": {"a": [1]}}], "python", kind)
    assert check(task, [Call(name, {"a": 1})], called, official=True) == right


def test_a_parameter_must_be_the_functions_and_the_answers() -> None:
    answers: list[dict[str, list[Any]]] = [{"a": [1], "b": [2, ""]}, {"a": [1]}]
    for answer in answers:
        task = Task(FUNCTIONS, [{"f": answer}], "python", "simple")
        assert check(task, [Call("f", {"a": 1})], called=False, official=True)
        assert not check(task, [Call("f", {"a": 1, "b": 2})], called=False, official=True)


def test_malformed_items_are_named() -> None:
    with pytest.raises(ConfigError, match="'h', which its functions lack"):
        check(Task(FUNCTIONS, [{"h": {}}], "python", "parallel"), [Call("h", {})], False, False)
    with pytest.raises(ConfigError, match="python parameter of type 'number'"):
        fits(1, "number", [1])
