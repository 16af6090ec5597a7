"""Constant arithmetic in the arguments of a call, without `eval`.

The authors of BFCL evaluate a binary operation with Python's own `eval`; this folds what is made of
literals alone and refuses everything else, and everything that could grow without bound.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

#: Bits of a number, length of a text or list, that a result may have.
MAX_SIZE = 4096

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.BitAnd: operator.and_,
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
    ast.Not: operator.not_,
}


def fold(node: ast.expr) -> Any:
    """The value of an expression of literals.

    Raises:
        ValueError: it has other parts, no value, or one too large.
    """
    try:
        return _fold(node)
    except (ArithmeticError, TypeError) as error:
        raise ValueError(f"no value: {error}") from error


def _fold(node: ast.expr) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.UnaryOp():
            return _SIGNS[type(node.op)](_fold(node.operand))
        case ast.List():
            return [_fold(item) for item in node.elts]
        case ast.Tuple():
            return tuple(_fold(item) for item in node.elts)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            left, right = _fold(node.left), _fold(node.right)
            if _grows(node.op, left, right):
                raise ValueError("the result would be too large")
            return _OPERATORS[type(node.op)](left, right)
    raise ValueError(f"not a literal: {type(node).__name__}")


def _grows(step: ast.operator, left: Any, right: Any) -> bool:
    """Whether the result may be larger than MAX_SIZE (a text's `%` may always)."""
    if isinstance(step, ast.Mod) and isinstance(left, (str, bytes)):
        return True
    if isinstance(step, ast.LShift) and isinstance(right, int):
        return _size(left) + right > MAX_SIZE
    if isinstance(step, ast.Pow) and isinstance(left, int) and isinstance(right, int):
        return _size(left) * abs(right) > MAX_SIZE
    if isinstance(step, ast.Mult):
        for whole, times in ((left, right), (right, left)):
            if isinstance(whole, (str, bytes, list, tuple)):
                return isinstance(times, int) and len(whole) * times > MAX_SIZE
    return _size(left) + _size(right) > MAX_SIZE


def _size(value: Any) -> int:
    if isinstance(value, int):
        return value.bit_length()
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 1
