"""We-Math: the letter after the last "Answer"."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.grading.verdict import Context, Rule
from evals.grading.wemath import grade_wemath, official_letter
from reopold.config import ConfigError

ROW = {"option": "A. 3, 5, 4; B. 30 m; C. 300; D. 30, 50.; E. No correct answer", "answer": "B"}


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("<Thought process>: <<A is wrong>> <Answer>: <<B>>", "B"),
        ("Answer: A ... Answer: B", "B"),  # the last one
        ("Answer: B. 30 m", "B"),
        ("Answer:\n\n B", "B"),
        ("B", "B"),  # without the word, the response's first character
        ("Bears are big", "B"),
        ("Answer: (B)", None),
        ("Answer: b", None),
        ("Answer: H", "H"),
        ("Answer: I", None),
        ("answer: B", None),  # the word has its capital
        ("The correct option is B", None),
        ("Answer", None),
        ("", None),
    ],
)
def test_official(response: str, letter: str | None) -> None:
    assert official_letter(response) == letter
    verdict = grade_wemath(response, ROW, Context("official"))
    assert (verdict.extracted, verdict.correct) == (letter, letter == "B")


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("<Thought process>: <<A is wrong>> <Answer>: <<B>>", "B"),
        ("Answer: (B)", "B"),
        (r"so \boxed{B}", "B"),
        ("The correct option is B", "B"),
        ("answer: B", "B"),
        ("We add and get 300.", "C"),
        ("I get 30 m", "B"),
        ("It is so.\nB", "B"),
        ("Bears are big", None),
        ("Answer: H", None),
        ("", None),
    ],
)
def test_sound(response: str, letter: str | None) -> None:
    verdict = grade_wemath(response, ROW, Context())
    assert (verdict.extracted, verdict.correct) == (letter, letter == "B")


def test_a_row_without_options_is_an_error() -> None:
    with pytest.raises(ConfigError, match="option"):
        grade_wemath("B", {"answer": "B"}, Context())


@pytest.mark.parametrize("rule", ["sound", "official"])
def test_published_answers_are_right(benchmarks_dir: Path, rule: Rule) -> None:
    rows = json.loads((benchmarks_dir / "wemath_NC" / "sample.json").read_text())
    assert len(rows) == 54
    for row in rows:
        response = f"<Thought process>: <<Not E>> <Answer>: <<{row['answer']}>>"
        assert grade_wemath(response, row, Context(rule)).correct
