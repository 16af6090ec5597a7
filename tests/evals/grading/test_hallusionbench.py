"""HallusionBench: yes, no and, without a figure, uncertain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.grading.hallusionbench import grade_hallusion
from evals.grading.verdict import Context, Rule
from reopold.config import ConfigError


def row(answer: str, category: str = "VD", figure: str = "1") -> dict[str, Any]:
    return {"gt_answer": answer, "category": category, "figure_id": figure}


@pytest.mark.parametrize(
    ("response", "sound", "official"),
    [
        ("Yes.", "yes", "yes"),
        ("No, they are equal.", "no", "no"),
        (r"\boxed{No}", "no", "no"),
        ("It looks so. The answer is yes.", "yes", "yes"),
        ("Yes, although there is no line.", "yes", "uncertain"),
        ("I would say it does, yes", "yes", "yes"),
        ("Nobody knows", None, "uncertain"),  # "no" within a word
        ("They are of the same size.", None, "uncertain"),
        ("1", "yes", "yes"),
        ("0", "no", "no"),
        ("2", None, "uncertain"),
        ("", None, None),
    ],
)
def test_readings(response: str, sound: str | None, official: str | None) -> None:
    for gold, name in (("1", "yes"), ("0", "no"), ("yes", "yes")):
        found = grade_hallusion(response, row(gold), Context())
        assert (found.extracted, found.correct) == (sound, sound == name)
        found = grade_hallusion(response, row(gold), Context("official"))
        assert (found.extracted, found.correct) == (official, official == name)


@pytest.mark.parametrize(
    ("category", "figure", "right"),
    [("VS", "0", True), ("VS", "1", False), ("VD", "0", False)],
)
def test_uncertain_is_right_officially_where_a_vs_question_has_no_figure(
    category: str, figure: str, right: bool
) -> None:
    asked = row("1", category, figure)
    assert grade_hallusion("I cannot tell.", asked, Context("official")).correct is right
    assert not grade_hallusion("I cannot tell.", asked, Context()).correct
    assert not grade_hallusion("", asked, Context("official")).correct
    assert not grade_hallusion("No.", asked, Context("official")).correct


def test_an_answer_that_is_neither_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'maybe'"):
        grade_hallusion("Yes", row("maybe"), Context())


@pytest.mark.parametrize("rule", ["sound", "official"])
def test_published_answers_are_right(benchmarks_dir: Path, rule: Rule) -> None:
    rows = json.loads((benchmarks_dir / "hallusionbench" / "HallusionBench.json").read_text())
    assert len(rows) == 1129
    for item in rows:
        response = "Yes, it is." if item["gt_answer"] == "1" else "No, it is not."
        assert grade_hallusion(response, item, Context(rule)).correct
