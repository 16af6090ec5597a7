"""What a message of the model calls: the one reading of `<tool_call>{"name", "arguments"}`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

#: The closing tag may have been taken for the end of generation.
_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.S)
_THOUGHT = re.compile(r"<think>.*?</think>", re.S)
_RESPONSE = re.compile(r"<tool_response>.*?</tool_response>", re.S)

FORM = '{"name": ..., "arguments": {...}}'


@dataclass(frozen=True)
class ToolCall:
    name: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
    """What is wrong with the call's form; then it is not carried out."""


def said(message: str) -> str:
    """A message without its thoughts, one that the prompt began and one without an end among them,
    and without what it claims that tools returned."""
    text = _THOUGHT.sub("", message).rpartition("</think>")[2].partition("<think>")[0]
    return _RESPONSE.sub("", text)


def call_blocks(message: str) -> list[str]:
    """What stands in a message's `<tool_call>` blocks."""
    return [str(block) for block in _BLOCK.findall(said(message))]


def read_calls(message: str) -> list[ToolCall]:
    """The calls in a message's `<tool_call>` blocks, malformed ones among them; never raises."""
    return [_read_block(block) for block in call_blocks(message)]


def without_calls(message: str) -> str:
    """What a message says besides its calls and thoughts."""
    return _BLOCK.sub("", said(message)).strip()


def read_call(call: Any) -> ToolCall:
    """A call given as `{"name", "arguments"}`, or as that under `function`; the arguments are an
    object or its JSON text."""
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return ToolCall(fault=f"the call is not of the form {FORM}")
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = parsed(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        return ToolCall(fault="the arguments are not a JSON object")
    return ToolCall(call["name"], arguments)


def _read_block(block: str) -> ToolCall:
    try:
        return read_call(parsed(block))
    except (ValueError, RecursionError) as error:
        return ToolCall(fault=f"the call is not JSON ({error})")


def parsed(text: str) -> Any:
    """Raises ValueError, RecursionError: it is no JSON."""
    return json.loads(text, parse_constant=_refuse)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
