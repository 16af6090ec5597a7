"""DynaMath: floats within 0.001, letters and text, from JSON or prose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.grading.dynamath import grade_dynamath
from evals.grading.verdict import Context, Verdict
from reopold.config import ConfigError


def graded(response: str, answer: str, kind: str, question: str = "") -> Verdict:
    row = {"answer": answer, "answer_type": kind, "question": question}
    return grade_dynamath(response, row, Context())


def short(answer: object) -> str:
    return json.dumps({"solution": "First 7, then 8.", "short answer": answer}, indent=4)


@pytest.mark.parametrize(
    ("response", "gold", "correct"),
    [
        (short("2.094"), "2.0944", True),
        (short("2.0954"), "2.0944", True),  # 0.001 away
        (short("2.0955"), "2.0944", False),
        (short("1.001"), "1", True),
        (short("1000.9"), "1000", False),  # absolute, whatever the size
        (short(2.0944), "2.0944", True),
        (short("2π/3"), "2.0944", True),
        (short(r"\frac{2\pi}{3}"), "2.0944", True),
        (short("3/4"), "0.75", True),
        (short("13 cm"), "13", True),
        (short("x = 13"), "13", True),
        (short("-37"), "-37", True),
        (short("unknown"), "13", False),
        ("The period is 2.094.", "2.0944", True),
        (r"Hence \boxed{\frac{3}{4}}", "0.75", True),
        (r"\boxed{2\pi/3}", "2.0944", True),
        ("I cannot tell", "13", False),
        ('{"short answer": 13', "13", True),  # cut off
        ('{"solution": "so \\(x\\)", "short answer": "\\(13\\)"}', "13", True),  # no JSON
    ],
)
def test_floats(response: str, gold: str, correct: bool) -> None:
    assert graded(response, gold, "float").correct is correct


def test_no_number_is_no_answer() -> None:
    assert graded("I cannot tell", "13", "float").status == "no_answer"


@pytest.mark.parametrize(
    ("response", "correct"),
    [
        (short("B"), True),
        (short("(B)"), True),
        (short("B) no"), True),
        (short("no"), True),
        (short("A"), False),
        ("The answer is (B).", True),
        ("A dramatic scene", False),
    ],
)
def test_choices(response: str, correct: bool) -> None:
    question = "Is this a periodic function? Choices: (A) Yes (B) No"
    assert graded(response, "B", "multiple choice", question).correct is correct


@pytest.mark.parametrize(
    ("response", "gold", "correct"),
    [
        (short("May"), "May", True),
        (short("It is May."), "May", True),
        (short("may"), "May", True),
        (short("Mayor"), "May", False),
        (short("DE"), "D", False),
        (short("(-1,1)"), "(-1, 1)", True),
        (short("the point (-1, 1)"), "(-1, 1)", True),
        (short("y=-3"), "y = -3", True),
        (short([1, 6, 2]), "[1, 6, 2]", True),
        (short("13:18"), "13:18", True),
        ("The hottest month is not June. The answer is May.", "May", True),
        ("", "May", False),
    ],
)
def test_texts(response: str, gold: str, correct: bool) -> None:
    assert graded(response, gold, "text").correct is correct


def test_faulty_rows_are_errors() -> None:
    with pytest.raises(ConfigError, match="no number"):
        graded("1", "May", "float")
    with pytest.raises(ConfigError, match="answer_type"):
        grade_dynamath("1", {"answer": "1"}, Context())


def test_the_hubs_field_names() -> None:
    row = {"ground_truth": "13", "question_type": "float"}
    assert grade_dynamath("13", row, Context()).correct


@given(st.integers(-(10**6), 10**6), st.integers(-20, 20))
def test_the_tolerance_is_decimal(whole: int, difference: int) -> None:
    """In steps of 0.0001 around any number, ten are within and eleven are not."""
    gold, near = f"{whole}", f"{(whole * 10_000 + difference) / 10_000:.4f}"
    assert graded(near, gold, "float").correct is (abs(difference) <= 10)


def test_published_answers_are_right(benchmarks_dir: Path) -> None:
    rows = json.loads((benchmarks_dir / "dynamath" / "dataset.json").read_text()).values()
    assert len(rows) == 501
    for row in rows:
        for response in (short(row["answer"]), f"The answer is {row['answer']}."):
            assert grade_dynamath(response, row, Context()).correct, row
