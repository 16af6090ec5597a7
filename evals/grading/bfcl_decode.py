"""BFCL: from a response's text to the function calls in it.

The rule is that of the Berkeley Function Calling Leaderboard, v4 (ShishirPatil/gorilla,
berkeley-function-call-leaderboard/bfcl_eval/model_handler/utils.py and the handlers beside it).
Two kinds of responses are read:

* prompting: `[f(a=1), g(b="x")]` in the syntax of the category's language;
* function calling ("FC"): `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` blocks, or the
  JSON list that the leaderboard stores, `[{"f": "{\\"a\\": 1}"}]` or `[{"f": {"a": 1}}]`.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from evals.grading.bfcl_arithmetic import fold
from evals.grading.bfcl_syntax import Call, Undecodable, java_call, javascript_call

Language = Literal["python", "java", "javascript"]


@dataclass(frozen=True)
class Decoded:
    calls: list[Call]
    called: bool
    """They came by an interface for function calling, not as source code."""


def decode(text: str, language: Language, official: bool) -> Decoded | None:
    """The calls that a response makes; None where it cannot be read as calls.

    Args:
        official: read as the authors' code does even where that is a mistake: `+1` is -1, the text
            of a Java value is cut by byte offsets, and only `<tool_call>` blocks on lines of their
            own count, with their arguments as an object.
    """
    try:
        if "<tool_call>" in text:
            return Decoded(_tagged(text, official), called=True)
        stored = _stored(text)
        if stored is not None:
            return Decoded(stored, called=True)
        return Decoded(_prompted(text, language, official), called=False)
    # All that ast, json and the parsers raise on hostile text: no null bytes, lone surrogates,
    # numbers beyond 4300 digits or deep nesting may end a whole evaluation.
    except (Undecodable, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _tagged(text: str, official: bool) -> list[Call]:
    """`<tool_call>` blocks (model_handler/local_inference/qwen_fc.py); broken JSON is skipped."""
    pattern = r"<tool_call>\n(.*?)\n</tool_call>" if official else r"<tool_call>(.*?)</tool_call>"
    calls = []
    for block in re.findall(pattern, text, re.DOTALL):
        try:
            call = json.loads(block)
        except (ValueError, RecursionError):
            continue
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise Undecodable("a tool call is no object with a name")
        arguments = call.get("arguments")
        if isinstance(arguments, str) and not official:
            arguments = json.loads(arguments)
        if not isinstance(arguments, dict):
            raise Undecodable("a tool call's arguments are no object")
        calls.append(Call(call["name"], arguments))
    return calls


def _stored(text: str) -> list[Call] | None:
    """The calls of a stored FC result; None if the text is not one."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return None
    items = [items] if isinstance(items, dict) else items
    if not isinstance(items, list):
        return None
    calls = []
    for item in items:
        if not isinstance(item, dict) or len(item) != 1:
            return None
        ((name, arguments),) = item.items()
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return None
        if not isinstance(arguments, dict):
            return None
        calls.append(Call(name, arguments))
    return calls


def _prompted(text: str, language: Language, official: bool) -> list[Call]:
    """Calls in source code, in brackets that are added where they are missing."""
    text = text.strip("`\n ")
    text = text if text.startswith("[") else "[" + text
    text = text if text.endswith("]") else text + "]"
    if language == "python":
        return _python(text.strip().strip("'"), official)
    if language == "java":
        return [java_call(text[1:-1], official)]
    return [javascript_call(text[1:-1])]


def _python(text: str, official: bool) -> list[Call]:
    body = ast.parse(text, mode="eval").body
    if isinstance(body, ast.Call):
        return [_python_call(body, official)]
    if not isinstance(body, (ast.List, ast.Tuple, ast.Set)):
        raise Undecodable("no list of calls")
    return [_python_call(element, official) for element in body.elts]


def _python_call(node: ast.expr, official: bool) -> Call:
    """A call with its keyword arguments; positional ones are dropped, as the authors do."""
    if not isinstance(node, ast.Call):
        raise Undecodable("an element of the list is no call")
    parts: list[str] = []
    function = node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        parts.append(function.id)
    arguments = {keyword.arg: _python_value(keyword.value, official) for keyword in node.keywords}
    return Call(".".join(reversed(parts)), arguments)


def _python_value(node: ast.expr | None, official: bool) -> Any:
    """What an argument stands for: literals themselves, names and plain calls their source."""
    match node:
        case ast.Constant():
            return "..." if node.value is Ellipsis else node.value
        case ast.UnaryOp():
            return _negated(node.operand) if official else fold(node)
        case ast.List() | ast.Tuple():
            items = [_python_value(item, official) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        case ast.Dict():
            try:
                keys = [_python_value(key, official) for key in node.keys]
                values = [_python_value(value, official) for value in node.values]
                return dict(zip(keys, values, strict=True))
            except TypeError as error:
                raise Undecodable("a key cannot be one") from error
        case ast.BinOp():
            return fold(node)
        case ast.Name():
            return node.id
        case ast.Call():
            if not node.keywords:
                return ast.unparse(node)
            call = _python_call(node, official)
            return {call.name: call.arguments}
        case ast.Subscript():
            return f"{ast.unparse(node.value)}[{ast.unparse(node.slice)}]"
    raise Undecodable(f"an argument is a {type(node).__name__}")


def _negated(operand: ast.expr) -> Any:
    """A number's negative: the authors take every unary operator for a minus."""
    value = operand.value if isinstance(operand, ast.Constant) else None
    if not isinstance(value, (int, float, complex)):
        raise Undecodable("a sign before no number")
    return -value


def canonical(calls: list[Call]) -> str:
    """The calls as one text that is equal for equal calls, whatever their order."""
    texts = [
        json.dumps({call.name: _plain(call.arguments)}, sort_keys=True, ensure_ascii=False)
        for call in calls
    ]
    return "[" + ", ".join(sorted(texts)) + "]"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        keyed = ((key if isinstance(key, str) else repr(key), item) for key, item in value.items())
        return {key: _plain(item) for key, item in keyed}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float)) else repr(value)
