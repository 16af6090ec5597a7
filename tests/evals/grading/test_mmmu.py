"""MMMU: the authors' parser with its guesses, and the sound reading without."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from evals.grading.mmmu import grade_mmmu, official_choice
from evals.grading.verdict import Context, Rule
from reopold.config import ConfigError

OPTIONS = {"A": "$6", "B": "$7", "C": "a cube", "D": "a cube and more"}
ROW: dict[str, Any] = {
    "question_type": "multiple-choice",
    "options": "['$6', '$7', 'a cube', 'a cube and more']",
    "answer": "B",
}


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("(A) or rather (B)", "B"),  # the last one
        ("B is better than A here", "A"),
        ("(A) is right, B is not", "A"),  # brackets before lone letters
        ("B.", "B"),
        ("The cost of a unit is $7", "B"),  # by text, in more than five words
        ("One unit costs just $7", None),  # five words
        ("One unit there costs just $7", "B"),
        ("What we see in it is a cube and more", "C"),  # both begin at one place: the first
        ("A dramatic scene", "A"),
        ("Nothing of the kind can be seen here", None),
        ("", None),
    ],
)
def test_official_choices(response: str, letter: str | None) -> None:
    assert official_choice(response, OPTIONS) == letter


def test_guesses_are_a_stream_over_the_responses() -> None:
    context = Context("official", random.Random(42))
    guessed = [grade_mmmu("?", ROW, context).extracted for _ in range(20)]
    expected = random.Random(42)
    assert guessed == [expected.choice("ABCD") for _ in range(20)]
    assert set(guessed) == set("ABCD")


def test_a_response_with_an_answer_uses_up_no_guess() -> None:
    context = Context("official", random.Random(7))
    grade_mmmu("B", ROW, context)
    assert grade_mmmu("?", ROW, context).extracted == random.Random(7).choice("ABCD")


@pytest.mark.parametrize(
    ("response", "extracted"),
    [
        ("B", "B"),
        ("The cost is $7.", "B"),
        ("A dramatic scene", None),
        ("I'm sorry", None),
        ("?", None),
        ("D) a cube and more", "D"),
    ],
)
def test_sound_choices(response: str, extracted: str | None) -> None:
    verdict = grade_mmmu(response, ROW, Context())
    assert (verdict.extracted, verdict.correct) == (extracted, extracted == "B")
    assert (verdict.status == "no_answer") is (extracted is None)


def test_words_are_no_options_among_ten() -> None:
    row = {**ROW, "options": [f"word {n}" for n in range(10)], "answer": "I"}
    assert grade_mmmu("I'm sorry, but I can't help.", row, Context()).status == "no_answer"
    assert grade_mmmu("J. A dramatic change", row, Context()).extracted == "J"
    assert grade_mmmu("J. A dramatic change", row, Context("official")).extracted == "A"


def open_row(*answers: str) -> dict[str, Any]:
    answer = answers[0] if len(answers) == 1 else str(list(answers))
    return {"question_type": "open", "options": "[]", "answer": answer}


@pytest.mark.parametrize(
    ("response", "row", "sound", "official"),
    [
        ("24", open_row("24"), True, True),
        ("The answer is 24.", open_row("24"), True, True),
        ("The sum is 1,234.5 in all", open_row("1234.50"), True, False),  # 1234 and 234.5 to them
        ("24.001", open_row("24"), True, True),  # two decimals
        ("24.01", open_row("24"), False, False),
        ("It is 23 or 24", open_row("24"), False, True),  # any number of a conclusion
        ("The answer is a phosphorus atom", open_row("phosphorus"), True, True),
        ("The answer is phosphorusoxide", open_row("phosphorus"), False, True),  # within a word
        ("Turing machine", open_row("automaton", "Turing machine"), True, True),
        ("x = 8.33", open_row("8.33"), True, True),
        ("I do not know", open_row("24"), False, False),
        ("", open_row("24"), False, False),
    ],
)
def test_open_answers(response: str, row: dict[str, Any], sound: bool, official: bool) -> None:
    assert grade_mmmu(response, row, Context()).correct is sound
    assert grade_mmmu(response, row, Context("official")).correct is official


def test_options_that_are_no_list_are_an_error() -> None:
    with pytest.raises(ConfigError, match="no list"):
        grade_mmmu("B", {**ROW, "options": "A or B"}, Context())
    with pytest.raises(ConfigError, match="answer"):
        grade_mmmu("B", {"question_type": "open"}, Context())


@pytest.mark.parametrize("rule", ["sound", "official"])
def test_published_answers_are_right(benchmarks_dir: Path, rule: Rule) -> None:
    rows = json.loads((benchmarks_dir / "mmmu" / "answer_dict_val.json").read_text())
    assert len(rows) == 900
    for name, row in rows.items():
        gold = row["ground_truth"]
        answers = gold if isinstance(gold, list) else [gold]
        assert all(grade_mmmu(str(a), row, Context(rule)).correct for a in answers), name
