"""BFCL: what the source text of a Java or JavaScript value stands for.

The rule is that of bfcl_eval/eval_checker/ast_eval/type_convertor/{java,js}_type_converter.py. A
text that is no value of its type stays a text, and so fails the type check unless the possible
answers hold a text (a variable's name) themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

#: Longer collections stay texts: the longest published answer has a few hundred characters, and
#: the patterns take quadratic time on text that is made to be slow.
MAX_COLLECTION = 2000

JAVA_TYPES: dict[str, type] = {
    **dict.fromkeys(("byte", "short", "integer", "long"), int),
    **dict.fromkeys(("float", "double"), float),
    **dict.fromkeys(("char", "String", "any"), str),
    **dict.fromkeys(("Array", "ArrayList", "Queue", "Stack"), list),
    **dict.fromkeys(("HashMap", "Hashtable"), dict),
    "boolean": bool,
    "Set": set,
}
JAVASCRIPT_TYPES: dict[str, type] = {
    "String": str,
    "integer": int,
    "float": float,
    "Bigint": int,
    "Boolean": bool,
    "dict": dict,
    "array": list,
    "any": str,
}

#: Type -> the form of its literals, and what to make of the first group.
_Literals = dict[str, tuple[re.Pattern[str], Callable[[str], Any]]]
_WHOLE = re.compile(r"(-?\d+)$")
_DECIMAL = r"(-?\d+(?:\.\d+)?"
_TRUTH = re.compile(r"(true|false)(?!\n)$")

_JAVA_LITERALS: _Literals = {
    **dict.fromkeys(("byte", "short", "integer"), (_WHOLE, int)),
    "long": (re.compile(r"(-?\d+)[lL]$"), int),
    "float": (re.compile(_DECIMAL + r"(?:[eE][+-]?\d+)?)[fF]$"), float),
    "double": (re.compile(_DECIMAL + r"(?:[eE][+-]?\d+)?)$"), float),
    "boolean": (_TRUTH, lambda text: text == "true"),
}
_JAVASCRIPT_LITERALS: _Literals = {
    "integer": (_WHOLE, int),
    "float": (re.compile(_DECIMAL + ")$"), float),
    "Bigint": (re.compile(r"(-?\d+)n$"), int),
    "Boolean": (_TRUTH, lambda text: text == "true"),
}


def java_value(text: str, kind: str, nested: str | None = None) -> Any:
    """A Java value of the schema's type `kind`, its elements of the type `nested`."""
    if kind in _JAVA_LITERALS:
        return _literal(text, _JAVA_LITERALS[kind])
    if len(text) > MAX_COLLECTION:
        return text
    if kind == "ArrayList":
        return _array_list(text, nested)
    if kind == "Array":
        found = re.search(r"new\s+\w+\[\]\s*\{(.*?)\}", text)
        parts = found[1].split(",") if found else []
        elements = [_java_element(part.strip(), nested) for part in parts if part.strip()]
        return elements if found else text
    return _hash_map(text) if kind == "HashMap" else text


def _literal(text: str, form: tuple[re.Pattern[str], Callable[[str], Any]]) -> Any:
    pattern, make = form
    found = pattern.match(text)
    try:
        return make(found[1]) if found else text
    except ValueError:  # more digits than Python converts
        return text


def _java_element(text: str, kind: str | None) -> Any:
    return java_value(text, kind) if kind else _java_guess(text)


def _array_list(text: str, nested: str | None) -> Any:
    """`new ArrayList<T>(Arrays.asList(...))`, `new ArrayList<T>() {{ add(...); }}` or empty."""
    listed = re.search(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.+?)\)\)", text)
    added = re.search(r"new\s+ArrayList<\w*>\(\)\s*\{\{(.+?)\}\}", text, re.DOTALL)
    if listed:
        parts = listed[1].split(",")
    elif added:
        parts = re.findall(r"add\((.+?)\)", added[1])
    else:
        return [] if re.search(r"new\s+ArrayList<\w*>\(\)", text) else text
    stripped = [part.strip() for part in parts]
    if nested in {"char", "String"}:
        return [part[1:-1] for part in stripped]
    return [_java_element(part, nested) for part in stripped]


def _hash_map(text: str) -> Any:
    """`new HashMap<K, V>() {{ put("key", value); }}` or empty."""
    filled = re.search(r"new\s+HashMap<.*?>\s*\(\)\s*\{\s*\{?(.*?)\}", text, re.DOTALL)
    if filled:
        pairs = re.findall(r"put\(\"(.*?)\",\s*(.*?)\)", filled[1].strip())
        return {key: _java_guess(value.strip()) for key, value in pairs}
    return {} if re.search(r"new\s+HashMap<.*?>\s*\(\)", text) else text


def _java_guess(text: str) -> Any:
    """A value whose type nobody stated."""
    if text in {"true", "false"}:
        return text == "true"
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    for kind in ("long", "float"):
        value = _literal(text, _JAVA_LITERALS[kind])
        if not isinstance(value, str):
            return value
    return _number(text)


def _number(text: str) -> int | float | str:
    for make in (int, float):
        try:
            return make(text)
        except ValueError:
            continue
    return text


def javascript_value(text: str, kind: str, nested: str | None = None) -> Any:
    """A JavaScript value of the schema's type `kind`, its elements of the type `nested`."""
    if kind in _JAVASCRIPT_LITERALS:
        return _literal(text, _JAVASCRIPT_LITERALS[kind])
    if kind == "String":
        return text[1:-1] if _quoted(text) else text
    if len(text) > MAX_COLLECTION or kind not in {"array", "dict"}:
        return text
    return _array(text.strip(), nested) if kind == "array" else _object(text.strip())


def _quoted(text: str) -> bool:
    return text[:1] == text[-1:] and text[:1] in ('"', "'")


_ROW = r"\[[^\]\n]*\]"
_ROWS = re.compile(
    rf"\[\s*{_ROW}\s*(?:,\s*{_ROW}\s*)*\]|new\s+Array\(\s*{_ROW}\s*(?:,\s*{_ROW}\s*)*\)"
)
_ELEMENTS = re.compile(r"\[(.*?)\]|new\s+Array\((.*?)\)")


def _array(text: str, nested: str | None) -> Any:
    """`[...]` or `new Array(...)`, of values or of rows of values."""
    rows = _ROWS.match(text)
    if rows:
        inner = [part.strip() for part in re.findall(r"\[(.*?)\]", rows[0])]
        inner[0] = inner[0].removeprefix("[")
        return [[_javascript_guess(part) for part in row.split(",")] for row in inner]
    found = _ELEMENTS.match(text)
    if not found:
        return text
    content = (found[1] if found[1] is not None else found[2]).strip()
    parts = [part.strip() for part in content.split(",")] if content else []
    if not nested:
        return [_javascript_guess(part) for part in parts]
    if parts and nested not in JAVASCRIPT_TYPES:
        return text
    return [javascript_value(part, nested) for part in parts]


def _object(text: str) -> Any:
    """`{key: value, ...}` on one line, up to its first closing brace."""
    found = re.match(r"\{(.*?)\}", text)
    if not found:
        return text
    return {key.strip().strip("'\""): _member(value.strip()) for key, value in _pairs(found[1])}


def _pairs(content: str) -> list[tuple[str, str]]:
    """Key and value texts: a comma ends a value only if a colon follows before the next comma."""
    pairs: list[tuple[str, str]] = []
    content = content.lstrip(":")
    while ":" in content:
        key, _, rest = content.partition(":")
        end = rest.find(",")
        while end >= 0 and ":" not in rest[end + 1 :].partition(",")[0][1:]:
            end = rest.find(",", end + 1)
        pairs.append((key, rest if end < 0 else rest[:end]))
        content = "" if end < 0 else rest[end + 1 :].strip().lstrip(":")
    return pairs


def _member(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        return _array(text, None)
    if text.startswith("{") and text.endswith("}"):
        return _object(text)
    return _javascript_guess(text.strip("'\""))


def _javascript_guess(text: str) -> Any:
    """A value whose type nobody stated."""
    text = text.strip()
    if text in {"true", "false"}:
        return text == "true"
    return text[1:-1] if _quoted(text) else _number(text)
