"""Java and JavaScript texts as values."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.grading.bfcl_values import JAVA_TYPES, JAVASCRIPT_TYPES, java_value, javascript_value


@pytest.mark.parametrize(
    ("text", "kind", "nested", "value"),
    [
        ("-12", "integer", None, -12),
        ("1.0", "integer", None, "1.0"),
        ("3.5e2F", "float", None, 350.0),
        ("3", "double", None, 3.0),
        ("3f", "double", None, "3f"),
        ("7l", "long", None, 7),
        ("True", "boolean", None, "True"),
        ("false", "boolean", None, False),
        ("'c'", "char", None, "'c'"),
        ("9" * 5000, "integer", None, "9" * 5000),
        ("new int[]{1, 2,}", "Array", "integer", [1, 2]),
        ("new int[] { }", "Array", "integer", []),
        ("new Object[]{1, \"a\", true, 2L, 1.5f, x}", "Array", None, [1, "a", True, 2, 1.5, "x"]),
        ("{1, 2}", "Array", "integer", "{1, 2}"),
        ("new ArrayList<Integer>()", "ArrayList", "integer", []),
        ("new ArrayList<>() {{ add(1); add(2); }}", "ArrayList", "integer", [1, 2]),
        ("new ArrayList<>(Arrays.asList('a', 'b'))", "ArrayList", "char", ["a", "b"]),
        ("List.of(1)", "ArrayList", "integer", "List.of(1)"),
        ("new HashMap<>()", "HashMap", None, {}),
        ('new HashMap<String, Object>() {{ put("a", 1); put("b", "x y"); }}', "HashMap", None,
         {"a": 1, "b": "x y"}),
        ("Map.of()", "HashMap", None, "Map.of()"),
        ("new HashSet<>()", "Set", None, "new HashSet<>()"),
    ],
)  # fmt: skip
def test_java(text: str, kind: str, nested: str | None, value: Any) -> None:
    found = java_value(text, kind, nested)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "kind", "nested", "value"),
    [
        ("'a b'", "String", None, "a b"),
        ("a", "String", None, "a"),
        ("-3", "integer", None, -3),
        ("3.5", "float", None, 3.5),
        ("3e5", "float", None, "3e5"),
        ("5n", "Bigint", None, 5),
        ("true", "Boolean", None, True),
        ("x", "any", None, "x"),
        ('["a", \'b\']', "array", "String", ["a", "b"]),
        ("[1, x]", "array", "integer", [1, "x"]),
        ("[1, 2.5, true, null]", "array", None, [1, 2.5, True, "null"]),
        ("new Array(1, 2)", "array", "integer", [1, 2]),
        ("[ [1, 2], [ 3 ] ]", "array", "array", [[1, 2], [3]]),
        ("new Array([1, 2], [3])", "array", None, [[1, 2], [3]]),
        ("[]", "array", "String", []),
        ("f()", "array", "String", "f()"),
        ("{}", "dict", None, {}),
        ('{"a": 1, b: "x, y", \'c\': [1, 2], d: true}', "dict", None,
         {"a": 1, "b": "x, y", "c": [1, 2], "d": True}),
        ('{"u": "http://x", "v": 1}', "dict", None, {"u": "http://x", "v": 1}),
        ("{a: 1,:2}", "dict", None, {"a": "1,:2"}),
        ("{a: {b: 1}}", "dict", None, {"a": "{b: 1"}),
        ("{\n a: 1}", "dict", None, "{\n a: 1}"),
    ],
)  # fmt: skip
def test_javascript(text: str, kind: str, nested: str | None, value: Any) -> None:
    found = javascript_value(text, kind, nested)
    assert (found, type(found)) == (value, type(value))


PIECES = ["[", "]", "{", "}", "(", ")", ",", ":", '"', "new Array(", "new HashMap<", ">() {{ ",
          'put("', '",', "new ArrayList<>(Arrays.asList(", "add(", " ", "\n", "1", "x"]  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30), st.sampled_from([None, "String", "any"]))
def test_nothing_raises(pieces: list[str], nested: str | None) -> None:
    for kind in JAVA_TYPES:
        java_value("".join(pieces), kind, nested)
    for kind in JAVASCRIPT_TYPES:
        javascript_value("".join(pieces), kind, nested)


@pytest.mark.parametrize(
    "text",
    ["[[]" + ",[]" * 600 + "x", "{" + "a:1," * 400, "[" * 1999, 'put("",' * 280,
     "new HashMap<>() {{ " + 'put("",' * 270, "new HashMap<>() {" + " " * 1900,
     "new ArrayList<>() {{ " + " " * 1900, "[[]" + ",[]" * 99999 + "x",
     "new HashMap<>() {{ " + 'put("",' * 3000 + "}", "{" + "a:1," * 99999 + "}"],
)  # fmt: skip
def test_time_is_bounded(text: str) -> None:
    begun = time.perf_counter()
    for kind in ("Array", "ArrayList", "HashMap"):
        java_value(text, kind)
    for kind in ("array", "dict"):
        javascript_value(text, kind)
    assert time.perf_counter() - begun < 2.0
