r"""Values of arithmetic written in LaTeX, without symbols, sympy or `eval`.

MathVision's own code hands a model's text to latex2sympy and the result to `eval`; here the same
notation is read by a small parser whose numbers are bounded, so no text can run code or hang.
Signs, operators and precedence are those of latex2sympy2 1.9.1: juxtaposition multiplies and binds
tighter than `/`, `:` divides, `2^3^2` is (2^3)^2, `1,234` is one number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction

Value = Fraction | float

#: Longer texts are no answers; deeper nesting would exhaust Python's stack.
MAX_CHARACTERS, MAX_DEPTH = 2000, 40
#: Of numerator and denominator; 3^1009, the largest power in MathVision's answers, has 1600.
MAX_BITS = 20_000
MAX_FACTORIAL = 500

_TOKEN = re.compile(
    r"""\s+|\\,|~|\$|\\(?:left|right|q?quad|displaystyle)(?![a-zA-Z])"""  # skipped
    r"""|((?:\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:\\%)?|\\[a-zA-Z]+|\\.|.)""",
    re.DOTALL,
)
#: Where latex2sympy stops reading although text is left: `\frac{1}{2}} of {x}` is a half to it.
_STOPS = frozenset([")", "}", "]", r"\}", "\\\\", "_", "&", "'", ".", r"\to", r"\rightarrow"])
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    rf"\{name}": getattr(math, name.replace("arc", "a"))
    for name in ("sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "exp")
}
_INVERSE = {r"\sin": math.asin, r"\cos": math.acos, r"\tan": math.atan}
_CLOSING = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}
_TIMES, _OVER = ("*", r"\cdot", r"\times"), ("/", ":", r"\div")


class _Unreadable(ValueError):
    """The text is not arithmetic, or beyond the bounds."""


def evaluate(text: str, partial: bool = False) -> Value | None:
    """The value of a LaTeX expression: exact if rational, else a float; None if it has none.

    Letters, several numbers, complex and unbounded results have none.

    Args:
        partial: what follows a complete expression may be ignored where latex2sympy ignores it.
    """
    try:
        reader = _Reader(_tokens(text))
        value = _bounded(reader.sum())
    except (_Unreadable, ArithmeticError, ValueError):
        return None
    return value if not reader.rest or (partial and reader.next() in _STOPS) else None


def _tokens(text: str) -> list[str]:
    if len(text) > MAX_CHARACTERS:
        raise _Unreadable
    return [found[1] for found in _TOKEN.finditer(text) if found[1] is not None]


def _bounded(value: Value) -> Value:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
            raise _Unreadable
    elif isinstance(value, complex) or not math.isfinite(value):
        raise _Unreadable
    return value


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(exponent.numerator) * bits > MAX_BITS:
            raise _Unreadable
        return Fraction(base**exponent.numerator)
    if base < 0:  # a complex number to Python
        raise _Unreadable
    return math.pow(base, exponent)


def _root(value: Value, degree: Value) -> Value:
    """The real root: exact where an integer's square root is one."""
    if isinstance(value, Fraction) and degree == 2 and value >= 0:
        up, down = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if up * up == value.numerator and down * down == value.denominator:
            return Fraction(up, down)
    return _power(float(value), 1 / degree)


def _whole(value: Value, most: int) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= most:
        raise _Unreadable
    return int(value)


def _number(token: str) -> Fraction:
    digits = token.removesuffix(r"\%").replace(",", "")
    if not re.fullmatch(r"[0-9]*\.?[0-9]+", digits):
        raise _Unreadable
    return Fraction(digits) / (100 if token.endswith("%") else 1)


class _Reader:
    """Recursive descent over the tokens."""

    def __init__(self, tokens: list[str]) -> None:
        self.rest = tokens[::-1]
        self.depth = 0

    def next(self) -> str:
        return self.rest[-1] if self.rest else ""

    def take(self, *wanted: str) -> str:
        """The next token, which must be one of those wanted if any are named."""
        if not self.rest or (wanted and self.rest[-1] not in wanted):
            raise _Unreadable
        return self.rest.pop()

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Unreadable
        value = self.product()
        while self.next() in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
            _bounded(value)
        self.depth -= 1
        return value

    def product(self) -> Value:
        value = self.signed()
        while self.next() in _TIMES + _OVER:
            value = value * self.signed() if self.take() in _TIMES else value / self.signed()
            _bounded(value)
        return value

    def signed(self) -> Value:
        sign = 1
        while self.next() in ("+", "-"):
            sign = -sign if self.take() == "-" else sign
        return sign * self.juxtaposed()

    def juxtaposed(self) -> Value:
        value = self.powered()
        while self.starts_factor():
            value = _bounded(value * self.powered())
        return value

    def starts_factor(self) -> bool:
        token = self.next()
        if token in _TIMES + _OVER or token in _STOPS:
            return False
        return token[:1].isdigit() or token in _CLOSING or token[:1] in (".", "\\", "e")

    def powered(self) -> Value:
        value = self.atom()
        while self.next() in ("^", "!"):
            if self.take() == "^":
                value = _bounded(_power(value, self.script()))
            else:
                value = Fraction(math.factorial(_whole(value, MAX_FACTORIAL)))
        return value

    def script(self) -> Value:
        """What stands above or below: a group, a number or pi."""
        if self.next() == "{":
            return self.group()
        token = self.take()
        if token == r"\pi":
            return math.pi
        return _number(token)

    def group(self) -> Value:
        closing = _CLOSING[self.take(*_CLOSING)]
        value = self.sum()
        self.take(closing)
        return value

    def atom(self) -> Value:
        token = self.next()
        if token in _CLOSING:
            return self.group()
        self.take()
        if token == r"\pi":
            return math.pi
        if token == "e" and self.next() == "^":  # but a lone e is the letter
            return math.e
        if token in (r"\frac", r"\dfrac", r"\tfrac"):
            return _bounded(self.group() / self.group())
        if token == r"\sqrt":
            return self.root()
        if token == r"\binom":
            whole = [_whole(self.group(), MAX_FACTORIAL) for _ in range(2)]
            return Fraction(math.comb(*whole))
        if token == r"\log":
            return self.logarithm()
        if token in _FUNCTIONS:
            return self.function(token)
        return _number(token)

    def root(self) -> Value:
        degree: Value = Fraction(2)
        if self.next() == "[":
            self.take()
            degree = self.sum()
            self.take("]")
        return _bounded(_root(self.group(), degree))

    def logarithm(self) -> Value:
        base: Value = Fraction(10)
        if self.next() == "_":
            self.take()
            base = self.script()
        return math.log(self.argument(), base)

    def function(self, name: str) -> Value:
        exponent: Value = Fraction(1)
        if self.next() == "^":
            self.take()
            exponent = self.script()
        argument = float(self.argument())
        if exponent == -1:
            if name not in _INVERSE:
                raise _Unreadable
            return _INVERSE[name](argument)
        value = _FUNCTIONS[name](argument)
        return value if exponent == 1 else _power(value, exponent)

    def argument(self) -> Value:
        return self.group() if self.next() in _CLOSING else self.product()
