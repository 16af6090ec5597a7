"""MathVerse: letters and final answers, by rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.grading.mathverse import grade_mathverse
from evals.grading.verdict import Context
from reopold.config import ConfigError

CHOICE: dict[str, Any] = {
    "question": "The size of angle CED is ()\nChoices:\nA:40°\nB:60°\nC:120°\nD:140°",
    "question_type": "multi-choice",
    "answer": "D",
}


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("D", "D"),
        (r"\boxed{D}", "D"),
        ("D:140°", "D"),
        ("So the angle is 140°.", "D"),
        (r"\boxed{140^\circ}", "D"),
        ("The answer is 140", "D"),
        ("The answer is 40°", "A"),
        ("It is 150°", None),
        ("", None),
    ],
)
def test_choices(response: str, letter: str | None) -> None:
    verdict = grade_mathverse(response, CHOICE, Context())
    assert (verdict.extracted, verdict.correct) == (letter, letter == "D")


def test_a_question_within_the_figure_has_letters_only() -> None:
    row = {**CHOICE, "question": ""}
    assert grade_mathverse("The answer is (D).", row, Context()).correct
    assert not grade_mathverse("The answer is 140°.", row, Context()).correct


def test_two_right_options() -> None:
    row = {**CHOICE, "answer": "C\nD"}
    assert grade_mathverse("C, D", row, Context()).correct
    assert not grade_mathverse("C", row, Context()).correct


def free(answer: str) -> dict[str, Any]:
    return {"question": "Find it.", "question_type": "free-form", "answer": answer}


@pytest.mark.parametrize(
    ("gold", "response", "correct"),
    [
        ("14", "L is approximately 14.32, rounded down.\n\nFinal answer: 14", True),
        ("14", "Therefore, the length of the longest straw is 14 cm.", True),
        ("14", "Therefore, the length of the longest straw is 15 cm.", False),
        ("14", r"\[ L \approx 14 \] Therefore it is: \boxed{14}", True),
        (r"Perimeter $=35.7 \mathrm{~mm}$", r"\boxed{35.7}", True),
        (r"Perimeter $=35.7 \mathrm{~mm}$", r"\boxed{35.7 \text{ mm}}", True),
        (r"Perimeter $=35.7 \mathrm{~mm}$", r"\boxed{37.5}", False),
        ("329° T", r"\boxed{329^\circ}", True),
        (r"\frac{\sqrt{30}}{2}", r"\boxed{\sqrt{30}/2}", True),
        ("y=-2 x+5", r"\boxed{y = 5 - 2x}", True),
        ("y=-2 x+5", r"\boxed{y = 5 + 2x}", False),
        ("(0,0)", "The answer is (0, 0).", True),
        ("14", "", False),
    ],
)
def test_free_answers(gold: str, response: str, correct: bool) -> None:
    assert grade_mathverse(response, free(gold), Context()).correct is correct


def test_a_row_without_its_kind_is_an_error() -> None:
    with pytest.raises(ConfigError, match="question_type"):
        grade_mathverse("1", {"answer": "1"}, Context())


def test_published_answers_are_right(benchmarks_dir: Path) -> None:
    rows = json.loads((benchmarks_dir / "mathverse" / "testmini_text_only.json").read_text())
    assert len(rows) == 788
    wrong = [
        row["sample_index"]
        for row in rows
        if not grade_mathverse(rf"\boxed{{{row['answer']}}}", row, Context()).correct
    ]
    assert wrong == []
