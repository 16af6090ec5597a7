"""MathVista: the authors' normalisation of today and of 2023, and the sound reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.grading.mathvista import edit_distance, grade_mathvista
from evals.grading.verdict import Context, Rule
from reopold.config import ConfigError


def choice(*choices: str, answer: str) -> dict[str, Any]:
    return {
        "question_type": "multi_choice",
        "answer_type": "text",
        "choices": list(choices),
        "precision": None,
        "answer": answer,
    }


def free(kind: str, answer: str, precision: float | None = None) -> dict[str, Any]:
    return {
        "question_type": "free_form",
        "answer_type": kind,
        "choices": None,
        "precision": precision,
        "answer": answer,
    }


YES_NO = choice("yes", "no", answer="no")


def graded(response: str, row: dict[str, Any], rule: Rule) -> tuple[bool, str | None]:
    verdict = grade_mathvista(response, row, Context(rule=rule))
    return verdict.correct, verdict.extracted


@pytest.mark.parametrize("rule", ["official", "current", "legacy"])
@pytest.mark.parametrize(
    ("extraction", "prediction"),
    [
        ("B", "no"),
        ("(b) yes", "no"),  # a letter in brackets comes first
        (" no ", "no"),
        ("b", "no"),  # no letter of theirs: two edits from "no", three from "yes"
        ("C", "no"),
        ("", "no"),
        ("yesterday", "yes"),
        ('The answer is "yes".', "yes"),
    ],
)
def test_official_choices(rule: Rule, extraction: str, prediction: str) -> None:
    assert graded(extraction, YES_NO, rule) == (prediction == "no", prediction)


def test_of_choices_at_one_distance_the_first_counts() -> None:
    assert graded("x", choice("a", "b", answer="a"), "official") == (True, "a")


@pytest.mark.parametrize(
    ("extraction", "kind", "answer", "precision", "current", "legacy"),
    [
        ("5", "integer", "5", None, "5", "5"),
        ("5.0", "integer", "5", None, "5", None),
        ('So: The answer is "5". Done', "integer", "5", None, "5", "5"),
        ("5.9", "integer", "5", None, "5", None),  # cut, not rounded
        (" 5 ", "integer", "5", None, "5", "5"),
        ("5 cm", "integer", "5", None, None, None),
        ("1e400", "integer", "5", None, None, None),
        ("nan", "integer", "5", None, None, None),
        ("1.24", "float", "1.2", 1, "1.2", "1.2"),
        ("1.25", "float", "1.2", 1.0, "1.2", "1.2"),  # half to even; the hub's precision is a float
        ("1", "float", "1.0", 1, "1.0", "1.0"),
        ("x", "float", "1.0", 1, None, None),
        ("[1, 2]", "list", "[1, 2]", None, "[1, 2]", "[1, 2]"),
        ("[1,2]", "list", "[1, 2]", None, "[1,2]", "[1,2]"),
    ],
)
def test_official_numbers_and_lists(
    extraction: str,
    kind: str,
    answer: str,
    precision: float | None,
    current: str | None,
    legacy: str | None,
) -> None:
    row = free(kind, answer, precision)
    assert graded(extraction, row, "current") == (current == answer, current)
    assert graded(extraction, row, "legacy") == (legacy == answer, legacy)
    assert graded(extraction, row, "official") == graded(extraction, row, "current")


@pytest.mark.parametrize(
    ("response", "row", "prediction"),
    [
        ("no", YES_NO, "no"),
        ("The lines never meet. So the answer is (B).", YES_NO, "no"),
        (r"It does not, thus \boxed{B}", YES_NO, "no"),
        ('The answer is "no".', YES_NO, "no"),
        ("No, they are parallel.", YES_NO, "no"),
        ("Cannot be determined", YES_NO, None),  # the nearest choice to the authors
        ("C", YES_NO, None),
        ("Therefore there are 3 objects left.", free("integer", "3"), "3"),
        ("5.0", free("integer", "5"), "5"),
        (r"So \boxed{1.24} m", free("float", "1.2", 1), "1.2"),
        ("I cannot see it", free("integer", "3"), None),
        ("So the list is [2014,2016].", free("list", "[2014, 2016]"), "[2014, 2016]"),
        ("[1, 2] or [2, 1]", free("list", "[1, 2]"), None),
    ],
)
def test_sound(response: str, row: dict[str, Any], prediction: str | None) -> None:
    assert graded(response, row, "sound") == (prediction == row["answer"], prediction)


def test_an_unknown_kind_of_answer_is_an_error() -> None:
    with pytest.raises(ConfigError, match="answer_type 'set'"):
        grade_mathvista("1", free("set", "{1}"), Context(rule="official"))
    with pytest.raises(ConfigError, match="question_type"):
        grade_mathvista("1", {"answer": "1"}, Context())


def slow_distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_edit_distance_is_levenshteins(a: str, b: str) -> None:
    assert edit_distance(a, b) == slow_distance(a, b)


def test_published_answers_are_right_under_every_rule(benchmarks_dir: Path) -> None:
    rows = json.loads((benchmarks_dir / "mathvista" / "testmini.json").read_text()).values()
    assert len(rows) == 1000
    rules: list[Rule] = ["sound", "official", "legacy"]
    wrong = {
        rule: [r["pid"] for r in rows if not graded(r["answer"], r, rule)[0]] for rule in rules
    }
    assert wrong["sound"] == []
    # Two options read "(b)" and the like in another place: the authors take the letter.
    assert len(wrong["official"]) == 2 and wrong["legacy"] == wrong["official"]
