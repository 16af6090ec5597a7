"""Python values as JSON, exactly, between a driver and a program that it does not trust.

Decoding makes plain values only, so that no method of the program's comes along: a value of any
other type arrives as :class:`Opaque`, which equals nothing.
"""

from __future__ import annotations

import numbers
from typing import Any


class Opaque:
    """Stands for a value that has no plain form."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return self.text


def encode(value: Any) -> Any:
    """A JSON value; numbers of other libraries become Python's."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, numbers.Integral):
        number = int(value)
        # In base 16 beyond that: Python refuses to write or read thousands of decimal digits.
        return number if abs(number) < 1 << 63 else {"int": hex(number)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(item) for item in value]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {type(value).__name__: bytes(value).hex()}
    return {"opaque": repr(value)[:1000]}


def decode(value: Any) -> Any:
    """The value that :func:`encode` was given.

    Raises:
        ValueError, TypeError: it did not come from there.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    if kind in ("tuple", "set", "frozenset"):
        items = [decode(item) for item in content]
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](items)
    if kind == "complex":
        return complex(*content)
    if kind in ("bytes", "bytearray"):
        data = bytes.fromhex(content)
        return data if kind == "bytes" else bytearray(data)
    if kind == "int":
        return int(content, 16)
    if kind == "opaque":
        return Opaque(str(content))
    raise ValueError(f"unknown kind of value '{kind}'")
