"""LogicVista: the set of letters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.grading.logicvista import grade_logicvista
from evals.grading.verdict import Context
from reopold.config import ConfigError

LISTED = "Is it so? Select from A, B and C. (A) True (B)False (C)Insufficient Information"


@pytest.mark.parametrize(
    ("response", "gold", "correct", "extracted"),
    [
        ("C", "C", True, "C"),
        ("c", "C", True, "C"),
        ("A, C", "A, C", True, "A, C"),
        ("C and A", "A, C", True, "A, C"),
        ("A", "A, C", False, "A"),  # all of them
        ("A, B, C", "A, C", False, "A, B, C"),  # and no other
        (r"They match: \boxed{A, C}", "A, C", True, "A, C"),
        ("The correct answers are B and D.", "B, D", True, "B, D"),
        ("3", "3", True, "3"),
        ("3", "C", False, None),
        ("The statement is true.", "A", True, "A"),
        ("I don't know", "I", False, None),
        ("", "A", False, None),
        ("", "", False, None),  # one record was published without an answer
        ("A", "", False, "A"),
    ],
)
def test_letters(response: str, gold: str, correct: bool, extracted: str | None) -> None:
    verdict = grade_logicvista(response, {"answer": gold, "question": LISTED}, Context())
    assert (verdict.correct, verdict.extracted) == (correct, extracted)


def test_a_row_without_an_answer_is_an_error() -> None:
    with pytest.raises(ConfigError, match="answer"):
        grade_logicvista("A", {}, Context())


def test_published_answers_are_right(benchmarks_dir: Path) -> None:
    path = benchmarks_dir / "logicvista_licensed_subset" / "dataset.json"
    rows = json.loads(path.read_text()).values()
    assert len(rows) == 161
    wrong = [row for row in rows if not grade_logicvista(row["answer"], row, Context()).correct]
    assert [row["answer"] for row in wrong] == [""]
