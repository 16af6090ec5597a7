"""The answer rule, by examples, and that reward and grader agree on anything."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.benchmarks import BENCHMARKS, find
from evals.benchmarks.base import Row
from evals.grading import GRADERS, Verdict, grade
from reopold.answers.marked import answer_reward, final_answer
from reopold.config import ConfigError

RESPONSES = st.text(alphabet="0123456789+-*=;# \n", max_size=30)


def record(answer: str) -> Row:
    return {"id": "q", "prompt": [{"role": "user", "content": "1+1="}], "answer": answer}


@pytest.mark.parametrize(
    ("response", "extracted", "status"),
    [
        ("3+4=7;7*2=4;4-5=9;#9", "9", "ok"),
        ("#9", "9", "ok"),
        ("#1 #9", "9", "ok"),  # the last mark counts
        ("#9#1", "1", "wrong"),
        ("# 9\n", "9", "ok"),
        ("#09", "09", "wrong"),  # text, not number: the reward would not pay for it either
        ("#99", "99", "wrong"),
        ("3+4=7;7*2=4;4-5=9", None, "no_answer"),  # cut off: the last number is no answer
        ("9", None, "no_answer"),
        ("3+4=7;#", None, "no_answer"),
        ("#9# ", None, "no_answer"),
        ("", None, "no_answer"),
    ],
)
def test_verdicts(response: str, extracted: str | None, status: str) -> None:
    verdict = grade("micro_maths", response, record("9"))
    assert verdict == Verdict(status == "ok", extracted, status)  # type: ignore[arg-type]


@settings(deadline=None)
@given(RESPONSES, st.sampled_from("0123456789"))
def test_grader_and_reward_follow_one_rule(response: str, answer: str) -> None:
    verdict = grade("micro_maths", response, record(answer))
    assert verdict.correct == (answer_reward(response, answer) == 1.0) == (verdict.status == "ok")
    assert (verdict.extracted is None) == (verdict.status == "no_answer")


@settings(deadline=None)
@given(RESPONSES, st.text(alphabet="0123456789", min_size=1, max_size=3))
def test_whatever_comes_before_the_mark_does_not_matter(before: str, answer: str) -> None:
    assert final_answer(f"{before}#{answer}") == answer
    assert answer_reward(f"{before}#{answer}", answer) == 1.0
    assert answer_reward(f"{before}#{answer}", answer + "0") == 0.0


def test_benchmarks_are_whole() -> None:
    for name, benchmark in BENCHMARKS.items():
        assert find(name) is benchmark and benchmark.name == name
        assert callable(GRADERS[benchmark.grader].load())
        assert all(find(alias) is benchmark for alias in benchmark.aliases)


def test_a_misspelt_benchmark_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'micro_maths'"):
        find("micro_math")
    with pytest.raises(ConfigError, match=r"valid names: .*micro_maths"):
        grade("zzz", "", record("1"))
