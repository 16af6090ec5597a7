"""MATH-Vision: the authors' steps without their `eval`, and the sound comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.grading.mathvision import grade_mathvision, official_answer, official_equal
from evals.grading.verdict import Context, Rule
from reopold.config import ConfigError

FREE: dict[str, Any] = {"options": []}
CHOICE: dict[str, Any] = {
    "options": [r"$\frac{1}{2}$", r"$\frac{1}{4}$", "12", r"$2 \pi$", "none"],
    "answer": "A",
}


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("B", "b"),
        ("It is red. So it is C.", "c"),
        ("It is (C).", "c"),
        ("B\nbecause", "b"),
        ("(B) B\nbecause", "b"),
        ("Altogether there is 12.", "12"),
        ("The answer is 12. Really", "12"),
        ("I think the final answer is 12\nor so", "12"),
        (r"\boxed{A}, no: \boxed{B}", "b"),
        (r"\boxed{x = 5}", "5"),
        (r"\boxed{5 \text{ km}}", "5"),
        (r"\boxed{90^{\circ}}", "90"),
        (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{7/3}", r"\frac{7}{3}"),
        (r"\boxed{0.5}", r"\frac{1}{2}"),
        (r"\boxed{.5}", r"\frac{1}{2}"),
        (r"\boxed{2\sqrt3}", r"2\sqrt{3}"),
        (r"\boxed{\frac12\sqrt3}", r"\frac{1}{2}\sqrt{3}"),
        (r"\boxed{50\%}", "50"),
        (r"\boxed{(C)}", "c"),
        (r"\boxed{\frac{1}{2}} of {it}", r"\frac{1}{2}}of{it"),  # to the last brace
        (r"\boxed{5} of {it}", "5"),
        ("", ""),
    ],
)
def test_official_answers(response: str, answer: str) -> None:
    assert official_answer(response) == answer


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("B", "b", True),
        ("12", "12.00", True),
        ("12", "12.004", True),
        ("12", "12.006", False),
        (r"$5 \sqrt{3}$", "8.66", True),
        (r"\frac{1}{3}", "0.33", True),
        ("(3,-4)", "(3.0,-8/2)", True),
        ("(3,-4)", "(-4,3)", False),
        ("(a,2)", "(a,4/2)", True),
        (r"(-\infty,2)", r"(-\infty,2.0)", True),
        ("[1,2]", "(1,2)", False),
        ("2", r"\frac{4}{2}}.so\text{2", True),  # the rest is not read
        ("2.68", "2.675", False),  # 2.675 is below itself in binary
        ("12", "x", False),
        ("", "", False),
        ("12", "", False),
        ("1", "__import__('os')", False),
        ("1", "9^{9^{9^9}}", False),
    ],
)
def test_official_equality(gold: str, answer: str, equal: bool) -> None:
    assert official_equal(gold, answer) is equal


def correct(response: str, row: dict[str, Any], rule: Rule) -> bool:
    return grade_mathvision(response, row, Context(rule=rule)).correct


@pytest.mark.parametrize(
    ("response", "sound", "official"),
    [
        (r"\boxed{A}", True, True),
        (r"\boxed{\frac{1}{2}}", True, True),
        (r"\boxed{0.5}", True, True),
        ("The answer is A because of symmetry.", True, False),
        (r"\boxed{0.504}", False, True),  # rounds to 0.5
        (r"\boxed{B}", False, False),
        ("no idea", False, False),
    ],
)
def test_choices(response: str, sound: bool, official: bool) -> None:
    assert correct(response, CHOICE, "sound") is sound
    assert correct(response, CHOICE, "official") is official


@pytest.mark.parametrize(
    ("gold", "response", "sound", "official"),
    [
        ("12", r"\boxed{12}", True, True),
        ("12", "We find 12 of them. The answer is 12.", True, True),
        ("12", r"\boxed{12.004}", False, True),
        (r"\frac{1}{2}", r"\boxed{\frac12}", True, False),
        (r"\frac{1}{2}", r"\boxed{\frac{1}{2}} of all \text{x}", True, True),
        ("$\\boxed{\\frac{16}{7}}$", r"\boxed{\frac{16}{7}}", True, False),
        ("\x0crac{36}{13}", r"\boxed{\frac{36}{13}}", True, False),
        ("69{degrees}", r"\boxed{69^\circ}", True, False),
        ("(3,-4)", r"\boxed{(3, -4)}", True, True),
        ("12", "I cannot see the figure.", False, False),
    ],
)
def test_free_answers(gold: str, response: str, sound: bool, official: bool) -> None:
    assert correct(response, {**FREE, "answer": gold}, "sound") is sound
    assert correct(response, {**FREE, "answer": gold}, "official") is official


def test_a_row_without_an_answer_is_an_error() -> None:
    with pytest.raises(ConfigError, match="answer"):
        grade_mathvision("1", {"options": []}, Context())


@given(st.text(alphabet="\\boxedfracsqrt{}()12,.= \nABCThe answer is", max_size=60))
def test_any_response_is_graded(text: str) -> None:
    grade_mathvision(text, CHOICE, Context(rule="official"))
    grade_mathvision(text, {**FREE, "answer": "(1,2)"}, Context(rule="official"))


def test_published_answers_are_right(benchmarks_dir: Path) -> None:
    lines = (benchmarks_dir / "mathvision" / "testmini.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 304
    for row in rows:
        response = rf"Thus \boxed{{{row['answer']}}}"
        assert correct(response, row, "sound") and correct(response, row, "official"), row["id"]
