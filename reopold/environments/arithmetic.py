"""The value of an arithmetic expression, exactly and within bounds: nothing of Python is run.

    sum      = product (("+" | "-") product)*
    product  = signed (("*" | "/" | "//" | "%") signed)*
    signed   = ("+" | "-") signed | power
    power    = atom ("**" signed)?
    atom     = number | "(" sum ")"

Precedence, `//` and `%` are Python's; values are fractions, so that 0.1+0.2 is 0.3 and 1/3*3 is 1.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal
from fractions import Fraction

#: Characters of an expression, and parentheses, signs and powers within one another.
LENGTH, DEPTH = 200, 32
#: Decimal digits that numerator and denominator of any value on the way may have.
DIGITS = 100
EXPONENT = 1000
#: Digits of a result that is no whole number, beyond those of its whole part.
PLACES = 12

_LIMIT = 10**DIGITS
_TOKEN = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+|\*\*|//|[-+*/%()])")


class ArithmeticFault(Exception):
    """What is wrong with an expression, in words for the one who wrote it."""


def calculate(expression: str) -> str:
    """The value of an expression: whole numbers in full, others to :data:`PLACES` digits.

    Raises:
        ArithmeticFault: it is malformed, has no value, or is beyond a bound.
    """
    if len(expression) > LENGTH:
        raise ArithmeticFault(f"the expression is longer than {LENGTH} characters")
    return _text(_Reader(expression).value())


class _Reader:
    """Reads an expression from left to right, a token at a time."""

    def __init__(self, expression: str) -> None:
        self.tokens = _tokens(expression)
        self.place = 0
        self.depth = 0

    def value(self) -> Fraction:
        value = self._sum()
        if self.place < len(self.tokens):
            raise ArithmeticFault(f"'{self.tokens[self.place]}' stands where an operator belongs")
        return value

    def _next(self, *wanted: str) -> str:
        """Takes the next token if it is one of these; empty if it is not."""
        if self.place < len(self.tokens) and self.tokens[self.place] in wanted:
            self.place += 1
            return self.tokens[self.place - 1]
        return ""

    def _sum(self) -> Fraction:
        left = self._product()
        while operator := self._next("+", "-"):
            left = _apply(operator, left, self._product())
        return left

    def _product(self) -> Fraction:
        left = self._signed()
        while operator := self._next("*", "/", "//", "%"):
            left = _apply(operator, left, self._signed())
        return left

    def _signed(self) -> Fraction:
        self.depth += 1
        if self.depth > DEPTH:
            raise ArithmeticFault(f"the expression is nested deeper than {DEPTH}")
        sign = self._next("+", "-")
        value = self._signed() if sign else self._power()
        self.depth -= 1
        return -value if sign == "-" else value

    def _power(self) -> Fraction:
        base = self._atom()
        return _power(base, self._signed()) if self._next("**") else base

    def _atom(self) -> Fraction:
        if self._next("("):
            value = self._sum()
            if not self._next(")"):
                raise ArithmeticFault("a ')' is missing")
            return value
        if self.place == len(self.tokens):
            raise ArithmeticFault("a number is missing at the end")
        token = self.tokens[self.place]
        if token[-1] not in "0123456789.":
            raise ArithmeticFault(f"'{token}' stands where a number belongs")
        self.place += 1
        return _bounded(Fraction(token))


def _tokens(expression: str) -> list[str]:
    tokens, place, end = [], 0, len(expression.rstrip())
    while place < end:
        found = _TOKEN.match(expression, place)
        if found is None:
            raise ArithmeticFault(f"'{expression[place:].lstrip()[0]}' is no part of arithmetic")
        tokens.append(found.group(1))
        place = found.end()
    return tokens


def _apply(operator: str, left: Fraction, right: Fraction) -> Fraction:
    if operator in ("/", "//", "%") and right == 0:
        raise ArithmeticFault("division by zero")
    value = {
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
        "/": lambda: left / right,
        "//": lambda: Fraction(left // right),
        "%": lambda: left % right,
    }[operator]()
    return _bounded(value)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ArithmeticFault("an exponent must be a whole number")
    if abs(exponent) > EXPONENT:
        raise ArithmeticFault(f"an exponent is beyond {EXPONENT}")
    if base == 0 and exponent < 0:
        raise ArithmeticFault("division by zero")
    return _bounded(Fraction(base ** int(exponent)))


def _bounded(value: Fraction) -> Fraction:
    if abs(value.numerator) >= _LIMIT or value.denominator >= _LIMIT:
        raise ArithmeticFault(f"a value has more than {DIGITS} digits")
    return value


def _text(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    whole = abs(int(value))
    context = Context(prec=PLACES + (len(str(whole)) if whole else 0))
    rounded = context.divide(Decimal(value.numerator), Decimal(value.denominator))
    return format(rounded.normalize(context), "f")
