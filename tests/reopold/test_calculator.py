"""The calculator's arithmetic: Python's own over fractions, and bounds that nothing gets past."""

from __future__ import annotations

import re
import time
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reopold.environments.arithmetic import DIGITS, LENGTH, ArithmeticFault, calculate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("47*83", "3901"),
        (" 2 + 3 * 4 ", "14"),
        ("(2+3)*4", "20"),
        ("10-4-3", "3"),
        ("-2**2", "-4"),
        ("2**-1", "0.5"),
        ("2**3**2", "512"),
        ("7//2*2", "6"),
        ("-7//2", "-4"),
        ("-7%3", "2"),
        ("7%-3", "-2"),
        ("--5+-2", "3"),
        ("0.1+0.2", "0.3"),
        ("1/3*3", "1"),
        ("1/3", "0.333333333333"),
        ("-2/3", "-0.666666666667"),
        ("100000000000000000001/2", "50000000000000000000.5"),
        ("10000/7", "1428.571428571429"),
        ("1/10**20", "0.00000000000000000001"),
        (".5+5.", "5.5"),
        ("007", "7"),
        ("1-1.0", "0"),
        ("1000000*1000000", "1000000000000"),
    ],
)
def test_values_by_hand(expression: str, value: str) -> None:
    assert calculate(expression) == value


NUMBERS = st.one_of(
    st.integers(0, 10**6).map(str),
    st.decimals(0, 1000, places=3, allow_nan=False).map(lambda d: format(d, "f")),
)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-{text}"),
        st.tuples(inner, st.integers(-5, 5).map(lambda n: f"**{n}")).map("".join),
    ),
    max_leaves=8,
)


def of_python(expression: str) -> Fraction:
    """Python's own parser and operators, every number a fraction."""
    return Fraction(eval(re.sub(r"[0-9.]+", r"Fraction('\g<0>')", expression)))


def agrees(text: str, value: Fraction) -> bool:
    if value.denominator == 1:
        return text == str(value)
    return abs(Fraction(text) - value) <= abs(value) / 10**11


@settings(max_examples=100, deadline=None)
@given(EXPRESSIONS)
def test_it_computes_as_python_does(expression: str) -> None:
    assume(len(expression) <= LENGTH)
    try:
        value = of_python(expression)
    except ZeroDivisionError:
        with pytest.raises(ArithmeticFault, match=f"division by zero|more than {DIGITS}"):
            calculate(expression)
        return
    if within_bounds(expression):
        assert agrees(calculate(expression), value)


def within_bounds(expression: str) -> bool:
    """No value on the way can be large: few powers, of few digits."""
    return expression.count("**") < 2 and sum(map(str.isdigit, expression)) < 18


@settings(max_examples=150, deadline=None)
@given(st.text("0123456789.+-*/%() ", max_size=12))
def test_it_takes_what_python_takes_and_nothing_else(expression: str) -> None:
    assume(not re.search(r"\*\*.*[0-9.]{3}|\*\*.*\*\*", expression))  # Python would not come back
    try:
        value = of_python(expression)
    except Exception:
        with pytest.raises(ArithmeticFault):
            calculate(expression)
        return
    assert agrees(calculate(expression), value)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("", "a number is missing at the end"),
        ("3*", "a number is missing at the end"),
        ("3*)", "'\\)' stands where a number"),
        ("(3", "'\\)' is missing"),
        ("3 4", "'4' stands where an operator"),
        ("2^3", "'\\^' is no part of arithmetic"),
        ("__import__('os')", "'_' is no part"),
        ("1e9", "'e' is no part"),
        ("٣+1", "'٣' is no part"),
        ("1/0", "division by zero"),
        ("5%(2-2)", "division by zero"),
        ("0**-1", "division by zero"),
        ("2**0.5", "exponent must be a whole number"),
        ("1**1001", "exponent is beyond 1000"),
        ("9**9**9**9", "exponent is beyond"),
        ("9**999", "more than 100 digits"),
        ("(9**99)*(9**99)", "more than 100 digits"),
        ("1" * 101, "more than 100 digits"),
        ("1." + "1" * 101, "more than 100 digits"),
        ("1" * 201, "longer than 200 characters"),
        ("(" * 33 + "1" + ")" * 33, "nested deeper than 32"),
        ("-" * 33 + "1", "nested deeper than 32"),
        ("2**" * 40 + "1", "nested deeper than 32"),
    ],
)
def test_faults_are_named_and_quick(expression: str, words: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ArithmeticFault, match=words):
        calculate(expression)
    assert time.perf_counter() - started < 0.5


def test_the_largest_values_are_still_had() -> None:
    assert calculate("9" * DIGITS) == "9" * DIGITS
    assert calculate("(" * 31 + "1" + ")" * 31) == "1"
    assert calculate("2**300") == str(2**300)
    assert calculate("(1/3)**209*3**209") == "1"
