"""From text to calls, in three languages and two interfaces."""

from __future__ import annotations

import json
import keyword as keywords
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.grading.bfcl_decode import Language, canonical, decode
from evals.grading.bfcl_syntax import Call

Read = list[tuple[str, dict[Any, Any]]] | None


def calls(text: str, language: Language = "python", official: bool = True) -> Read:
    found = decode(text, language, official)
    return None if found is None else [(call.name, call.arguments) for call in found.calls]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[f(a=1), g(b='x')]", [("f", {"a": 1}), ("g", {"b": "x"})]),
        ("f(a=1)", [("f", {"a": 1})]),
        ("f(a=1), g()", [("f", {"a": 1}), ("g", {})]),
        ("```\n[f(a=1)]\n```", [("f", {"a": 1})]),
        ("[]", []),
        ("a.b.c(x=None)", [("a.b.c", {"x": None})]),
        ("g().h(x=1)", [("h", {"x": 1})]),
        ("f(1, 2, a=3)", [("f", {"a": 3})]),
        ("f(**k)", [("f", {None: "k"})]),
        ("f(a=true, b=x)", [("f", {"a": "true", "b": "x"})]),
        ("f(a=-2, b=[1, (2, 3)])", [("f", {"a": -2, "b": [1, (2, 3)]})]),
        ("f(a={'k': -1.5})", [("f", {"a": {"k": -1.5}})]),
        ("f(a=...)", [("f", {"a": "..."})]),
        ("f(a=2*3, b=1/4)", [("f", {"a": 6, "b": 0.25})]),
        ("f(a='x'+'y', b=[0]*2)", [("f", {"a": "xy", "b": [0, 0]})]),
        ("f(a=g(1), b=h(c=2), c=x[0])", [("f", {"a": "g(1)", "b": {"h": {"c": 2}}, "c": "x[0]"})]),
        ("f(a=1, a=2)", None),
    ],
)  # fmt: skip
def test_python(text: str, expected: Read) -> None:
    if expected is None:  # Python's own grammar lets it pass, and so do the authors: the last wins
        expected = [("f", {"a": 2})]
    assert calls(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 5.",
        "```python\n[f(a=1)]\n```",  # the authors strip backquotes, not the language
        "I would call f(a=1).",
        "[f(a=1)] and [2]",
        "[1, 2]",
        "[f]",
        "[f(a=lambda: 1)]",
        "[f(a=b.c)]",
        "[f(a={1, 2})]",
        "[f(a={**b})]",
        "[f(a={[]: 1})]",
        "[f(a=1 if b else 2)]",
        "[f(a=x+1)]",
        "[f(a=-x)]",
        "[f(a=x) for x in y]",
        "[f(a=1",
        "[f(a='\x00')]",
        "[f(a='\ud800')]",
        "[f(a=" + "9" * 5000 + ")]",
        "[f(a=" + "-" * 5000 + "1)]",
        "[f(a=" + "[" * 300 + "]" * 300 + ")]",
        "f(" * 2000 + ")" * 2000,
        "f(a=" + "1+" * 5000 + "1)",
    ],
)
def test_no_calls(text: str) -> None:
    assert calls(text) is None and calls(text, official=False) is None


@pytest.mark.parametrize(
    "part",
    ["9**9**9", "10**5000", "'x'*10**9", "[0]*99999", "1<<10**9", "'%9999999d' % 1", "1/0",
     "0.1**-9999", "'a'-1", "(9**999)*(9**999)*(9**999)", "__import__('os').getpid()+1"],
)  # fmt: skip
def test_arithmetic_is_bounded_and_made_of_literals(part: str) -> None:
    assert calls(f"f(a={part})") is None


@settings(deadline=None)
@given(
    left=st.integers(-99, 99) | st.floats(-99, 99, allow_nan=False),
    right=st.integers(1, 9),
    operator=st.sampled_from(["+", "-", "*", "/", "//", "%", "**"]),
)
def test_arithmetic_is_pythons(left: float, right: int, operator: str) -> None:
    wanted = {
        "+": left + right, "-": left - right, "*": left * right, "/": left / right,
        "//": left // right, "%": left % right, "**": left**right,
    }[operator]  # fmt: skip
    found = calls(f"f(a=({left!r}) {operator} {right})")
    assert found is not None and math.isclose(found[0][1]["a"], wanted, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("sign", "sound", "official"),
    [("+", 5, -5), ("-", -5, -5), ("~", -6, -5), ("not ", False, -5), ("--", 5, None)],
)
def test_the_authors_take_every_sign_for_a_minus(sign: str, sound: Any, official: Any) -> None:
    assert calls(f"f(a={sign}5)", official=False) == [("f", {"a": sound})]
    assert calls(f"f(a={sign}5)") == (None if official is None else [("f", {"a": official})])


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | FLOATS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,5}(\.[a-z][a-z0-9_]{0,5})?", fullmatch=True).filter(
    lambda name: all(part.isidentifier() and not keyword(part) for part in name.split("."))
)


def keyword(word: str) -> bool:
    return keywords.iskeyword(word)


ARGUMENTS = st.dictionaries(st.sampled_from("abcd"), LITERALS, max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES, ARGUMENTS), max_size=3))
def test_what_is_written_is_read(wanted: list[tuple[str, dict[str, Any]]]) -> None:
    items = [f"{n}({', '.join(f'{k}={v!r}' for k, v in a.items())})" for n, a in wanted]
    assert calls("[" + ", ".join(items) + "]", official=False) == wanted
    assert calls(json.dumps([{n: a} for n, a in wanted])) == wanted
    assert calls(json.dumps([{n: json.dumps(a)} for n, a in wanted])) == wanted
    blocks = [json.dumps({"name": n, "arguments": a}) for n, a in wanted]
    tagged = "".join(f"<tool_call>\n{block}\n</tool_call>" for block in blocks)
    assert not wanted or calls(tagged) == wanted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"f": "{\\"a\\": 1}"}]', [("f", {"a": 1})]),
        ('{"f": {"a": 1}}', [("f", {"a": 1})]),
        ('[{"f": {}}, {"f": {}}]', [("f", {}), ("f", {})]),
        ('[{"f": "{"}]', None),
        ('[{"f": "[1]"}]', None),
        ('[{"name": "f", "arguments": {"a": 1}}]', None),
        ('[{"f": {}, "g": {}}]', None),
        ("[" * 5000, None),
    ],
)
def test_stored_results(text: str, expected: Read) -> None:
    assert calls(text) == expected
    found = decode(text, "java", official=False)
    assert found is None or found.called


@pytest.mark.parametrize(
    ("text", "sound", "official"),
    [
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', [("f", {"a": 1})], []),
        ('<tool_call>\n{"name": "f", "arguments": "{}"}\n</tool_call>', [("f", {})], None),
        ('<tool_call>\n{"name": \n</tool_call>', [], []),
        ('<tool_call>\n["f"]\n</tool_call>', None, None),
        ('<tool_call>\n{"arguments": {}}\n</tool_call>', None, None),
        ('<tool_call>\n{"name": "f", "arguments": 1}\n</tool_call>', None, None),
        ("<tool_call>\n" + "[" * 9000 + "\n</tool_call>", [], []),
    ],
)
def test_tagged_calls(text: str, sound: Read, official: Read) -> None:
    assert (calls(text, official=False), calls(text)) == (sound, official)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a.B.c(x=1, y=\"s\", z='t')]", [("a.B.c", {"x": "1", "y": "s", "z": "t"})]),
        ("f(x=5L, y=-2.5f, z=true)", [("f", {"x": "5L", "y": "-2.5f", "z": "true"})]),
        ("f(x=new int[]{1, 2})", [("f", {"x": "new int[]{1,2}"})]),
        ('f(x=new String[]{"a", "b"})', [("f", {"x": 'new String[]{"a","b"}'})]),
        ('f(x=new ArrayList<String>(Arrays.asList("a", "b")))',
         [("f", {"x": 'new ArrayList<String>(Arrays.asList("a", "b"))'})]),
        ("f(x=new M<A, B>() {{ put(1, 2); }})", [("f", {"x": "new M<A,B>()"})]),
        ("getItems(parser)", [("getItems", {None: "parser"})]),
        ("A.getItems(12)", [("A.getItems", {})]),
        ("f(x=1, x=2)", None),
        ("f(y=1, x=new int[5])", None),
        ("f(x=)", None),
        ("hello world", None),
        ("x = 1", None),
        ("[f(a=1), g(b=2)]", None),  # only one call at a time can be written in Java
    ],
)  # fmt: skip
def test_java(text: str, expected: Read) -> None:
    assert calls(text, "java") == expected


def test_only_official_shifts_java_after_accents() -> None:
    text = 'f(x="é", y="abc")'
    assert calls(text, "java", official=False) == [("f", {"x": "é", "y": "abc"})]
    assert calls(text, "java") != calls(text, "java", official=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a.b(x=1, y=\"s\", z='t')]", [("a.b", {"x": "1", "y": "s", "z": "t"})]),
        ("f(x={a: 1}, y=[1, 2])", [("f", {"x": "{a: 1}", "y": "[1, 2]"})]),
        ("f(x=() => 1)", [("f", {"x": "() => 1"})]),
        ("f(y)", [("f", {None: "y"})]),
        ("f(x=1, x=2)", None),
        ("f(x=", None),
        ("no call here", None),
        ("x", None),
    ],
)
def test_javascript(text: str, expected: Read) -> None:
    assert calls(text, "javascript") == expected


@settings(deadline=None)
@given(st.text(alphabet="fg(){}[]=,'\"`<>\n.:-+*1ax\x00\ud800é ", max_size=60))
def test_nothing_raises(text: str) -> None:
    for language in ("python", "java", "javascript"):
        for official in (True, False):
            found = decode(text, language, official)
            assert found is None or canonical(found.calls)


def test_canonical_text() -> None:
    one = Call("g", {"b": (1, 2), "a": {"y": 1, "x": None}})
    two = Call("f", {None: 2j, "k": {1: "é"}})
    assert canonical([one, two]) == canonical([two, one])
    assert canonical([one]) == '[{"g": {"a": {"x": null, "y": 1}, "b": [1, 2]}}]'
    assert canonical([two]) == '[{"f": {"None": "2j", "k": {"1": "é"}}}]'
