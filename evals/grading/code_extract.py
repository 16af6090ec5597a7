"""The program in a response."""

from __future__ import annotations

import ast
import re

FENCE = "```"
_BLOCK = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)


def between_last_fences(response: str) -> str:
    """LiveCodeBench's rule (extraction_utils.py): the text between the last two lines that contain
    a fence, whichever opens or closes; nothing where there are fewer than two."""
    lines = response.split("\n")
    fences = [number for number, line in enumerate(lines) if FENCE in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) > 1 else ""


def blocks(response: str) -> list[str]:
    """The contents of every closed fenced block."""
    return [match[2] for match in _BLOCK.finditer(response)]


def last_program(response: str) -> str:
    """The last closed block; without one, the whole response if it is Python."""
    found = blocks(response)
    if found:
        return found[-1]
    return response if _parses(response) else ""


def humaneval_program(response: str, prompt: str, entry_point: str) -> str:
    """The program that a response to a HumanEval prompt makes.

    The last block that defines the entry point goes after the prompt, whose imports and helpers
    it may use. Without one, an indented last block is taken for the function's body; else the
    response itself continues the prompt, as it stands (human-eval, execution.py).
    """
    found = blocks(response)
    definition = re.compile(rf"^(async\s+)?def\s+{re.escape(entry_point)}\b", re.MULTILINE)
    defining = [block for block in found if definition.search(block)]
    if defining:
        return f"{prompt}\n{defining[-1]}"
    return prompt + (found[-1] if found and found[-1].startswith((" ", "\t")) else response)


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return bool(text.strip())
