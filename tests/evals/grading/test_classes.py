"""Equal answers vote together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.grading.classes import answer_classes
from evals.grading.maths import grade_maths
from evals.grading.verdict import Context
from reopold.answers import workers
from reopold.config import ConfigError


def test_maths_answers_are_compared_as_mathematics() -> None:
    answers = [r"\frac{1}{2}", "0.5", None, "2", r"\dfrac12", "2.0", "x=2", "3", None]
    assert answer_classes("math500", answers) == [0, 0, None, 1, 0, 1, 1, 2, None]
    assert answer_classes("aime24", ["025", "25", "25.0", "26"]) == [0, 0, 0, 1]
    assert answer_classes("olympiadbench", ["1,2", "2,1", "(1,2)x"]) == [0, 0, 1]


def test_a_class_is_what_equals_its_first_member() -> None:
    # 0.3333 and 0.33333 both equal 1/3, not each other.
    assert answer_classes("math500", ["1/3", "0.3333", "0.33333"]) == [0, 0, 0]
    assert answer_classes("math500", ["0.33333", "0.3333", "1/3"]) == [0, 0, 0]
    assert answer_classes("math500", ["0.3333", "1/3", "0.33338"]) == [0, 0, 1]


def test_either_order_of_gold_and_answer_makes_answers_equal() -> None:
    # As a gold, 4210 with its base is met by 4210; a set by the relation that defines it.
    for pair in (["4210_5", "4210"], ["x \\le 2", "(-\\infty,2]"]):
        assert answer_classes("math500", pair) == [0, 0]
        assert answer_classes("math500", pair[::-1]) == [0, 0]


def test_other_answers_are_compared_as_text() -> None:
    answers = ["Yes.", "yes", "no", None, " YES ", "0.5", "1/2"]
    assert answer_classes("hallusionbench", answers) == [0, 0, 1, None, 0, 2, 3]
    assert answer_classes("mmmu", []) == []
    assert answer_classes("math500", [None, None]) == [None, None]


def test_an_unknown_benchmark_is_refused() -> None:
    with pytest.raises(ConfigError):
        answer_classes("no_such_benchmark", ["1"])


def test_an_answer_that_hangs_is_in_a_class_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CPU_SECONDS", 1.0)
    answers = ["3", "7^{7^{7^{7^{7}}}} + x", "3.0"]
    assert answer_classes("math500", answers) == [0, 1, 0]


@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from(["1/2", "0.5", "2", "x=2", "3", r"\frac{6}{2}"]), max_size=8),
       st.sampled_from(["0.5", "2", "3"]))  # fmt: skip
def test_verdicts_within_a_class_agree(answers: list[str], gold: str) -> None:
    classes = answer_classes("math500", answers)
    verdicts: dict[int | None, set[bool]] = {}
    for answer, number in zip(answers, classes, strict=True):
        right = grade_maths(f"\\boxed{{{answer}}}", {"answer": gold}, Context()).correct
        verdicts.setdefault(number, set()).add(right)
    assert all(len(found) == 1 for found in verdicts.values())
    assert list(dict.fromkeys(classes)) == list(range(len(verdicts)))
