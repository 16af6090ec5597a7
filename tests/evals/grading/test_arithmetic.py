"""Values of LaTeX arithmetic: precedence, bounds, and that no text does anything else."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.grading.arithmetic import MAX_BITS, evaluate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("1,234", 1234),
        ("12,345.6", Fraction("12345.6")),
        (".5", Fraction(1, 2)),
        ("--5", 5),
        ("5*-5", -25),
        ("1/2*3", Fraction(3, 2)),
        ("6/2(3)", 1),  # juxtaposition binds tighter
        ("1:2", Fraction(1, 2)),
        (r"6\div 2", 3),
        (r"2\frac{1}{2}", 1),  # a product, as latex2sympy has it, and no mixed number
        (r"\frac{\frac{1}{2}}{3}", Fraction(1, 6)),
        ("-2^2", -4),
        ("10^2^1", 100),
        ("2^3^2", 64),  # (2^3)^2
        ("2^10", 1024),
        ("2^{-1}", Fraction(1, 2)),
        (r"\sqrt{16}", 4),
        (r"\sqrt{\frac{9}{4}}", Fraction(3, 2)),
        (r"3\%", Fraction(3, 100)),
        ("4!/2", 12),
        (r"\binom{5}{2}", 10),
        (r"\left(5\right)\left[6\right]\{7\}", 210),
        ("$45^2$", 2025),
        ("0^0", 1),
    ],
)
def test_exact_values(text: str, value: Fraction | int) -> None:
    found = evaluate(text)
    assert isinstance(found, Fraction) and found == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"4\pi", 4 * math.pi),
        (r"2/3\pi", 2 / (3 * math.pi)),
        (r"5\sqrt{3}", 5 * math.sqrt(3)),
        (r"\sqrt[3]{8}", 2.0),
        ("8^{1/3}", 2.0),
        (r"\sin 2\pi", math.sin(2 * math.pi)),
        (r"\sin^2(1)", math.sin(1) ** 2),
        (r"\cos 3", math.cos(3)),
        (r"\tan^{-1}(2)", math.atan(2)),
        (r"\arcsin(1)", math.pi / 2),
        (r"\log 100", 2.0),
        (r"\log_2 8", 3.0),
        ("e^2", math.exp(2)),
    ],
)
def test_float_values(text: str, value: float) -> None:
    assert evaluate(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "e", "pi", "5 cm", "1,2", "(3,-4)", "()", "2+", "*2", "2**3", "1<2", "5)", "5'",
        r"\frac12", r"\sqrt3", r"\frac{1}{2", "1/0", "0^{-1}", r"(-8)^{1/3}", r"\sqrt{-1}",
        r"\infty", "∞", "45°", r"\sin^{-1}(2)", "1.5e3", "(-1)!", "0.5!", "|5|", "nan", "inf",
    ],
)  # fmt: skip
def test_no_value(text: str) -> None:
    assert evaluate(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5)", 5),
        (r"\frac{1}{2}}, so \text{x", Fraction(1, 2)),
        (r"625 \rightarrow 626", 625),
        ("5.b", 5),
        ("5;", None),
        ("5cm", None),
    ],
)
def test_a_partial_reading_ends_where_latex2sympy_stops(
    text: str, value: Fraction | int | None
) -> None:
    assert evaluate(text, partial=True) == value


@pytest.mark.parametrize(
    "text",
    [
        "10^{10^{10}}", "9^9^9^9^9^9^9", "2^{99999999999}", "(((9!)!)!)!", "9!!!!", "7^{-9999999}",
        r"\binom{99999999}{5}", "(" * 10_000, "-" * 1_999, "1" * 1_990, r"\frac" * 300,
        "(" * 999 + "1" + ")" * 999, "^".join(["9"] * 900), "__import__('os').system('true')",
    ],
)  # fmt: skip
def test_hostile_texts_end_soon(text: str) -> None:
    start = time.monotonic()
    value = evaluate(text)
    assert time.monotonic() - start < 1
    assert value is None or (
        isinstance(value, Fraction) and value.numerator.bit_length() < MAX_BITS
    )


def test_a_large_power_within_the_bounds_is_exact() -> None:
    value = evaluate(r"\frac{3^{1008}-1}{3^{1009}}")
    assert value == Fraction(3**1008 - 1, 3**1009)


@given(st.text(alphabet=r"\frac{}sqrtpi0123456789.,+-*/^_()[]!%$ ex", max_size=40))
def test_any_text_has_a_value_or_none(text: str) -> None:
    value = evaluate(text)
    assert value is None or isinstance(value, Fraction) or math.isfinite(value)


NUMBERS = st.integers(0, 99)
TREES = st.recursive(
    NUMBERS.map(lambda n: (str(n), Fraction(n))),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]})+({p[1][0]})", p[0][1] + p[1][1])),
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]})-({p[1][0]})", p[0][1] - p[1][1])),
        st.tuples(inner, inner).map(lambda p: (rf"({p[0][0]})\cdot({p[1][0]})", p[0][1] * p[1][1])),
        st.tuples(inner, NUMBERS.filter(bool)).map(
            lambda p: (rf"\frac{{{p[0][0]}}}{{{p[1]}}}", p[0][1] / p[1])
        ),
    ),
    max_leaves=8,
)


@given(TREES)
def test_rational_expressions_have_their_exact_value(tree: tuple[str, Fraction]) -> None:
    assert evaluate(tree[0]) == tree[1]
