"""LiveCodeBench by difficulty, platform and window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.benchmarks.base import Graded, Problem
from evals.benchmarks.code_metrics import in_window, tally, window
from evals.grading.verdict import Verdict
from reopold.config import ConfigError


def graded(right: int, samples: int, **row: Any) -> Graded:
    verdicts = [Verdict(i < right, "x", "ok" if i < right else "wrong") for i in range(samples)]
    return Graded(Problem("p", [], row, ""), verdicts)


def at(*dates: str) -> list[dict[str, Any]]:
    return [{"question_id": str(i), "contest_date": day} for i, day in enumerate(dates)]


def test_every_problem_counts_once_in_its_groups() -> None:
    found = tally(
        [
            graded(1, 2, difficulty="easy", platform="atcoder"),
            graded(4, 4, difficulty="easy", platform="leetcode"),
            graded(0, 2, difficulty="hard", platform="atcoder"),
            graded(2, 2, difficulty="unheard of"),
        ]
    )
    assert found == {"easy": (1.5, 2), "hard": (0, 1), "atcoder": (0.5, 2), "leetcode": (1, 1)}


def test_a_cluster_of_one_problem() -> None:
    item = graded(3, 4, difficulty="medium", platform="codeforces")
    assert tally([item]) == {"medium": (0.75, 1), "codeforces": (0.75, 1)}


def test_both_ends_of_a_window_are_in_it() -> None:
    rows = at("2024-07-31T19:30:00", "2024-08-01T00:00:00", "2025-02-01T18:30:00", "2025-02-02")
    assert in_window(rows, "2024-08-01", "2025-02-01") == rows[1:3]
    assert in_window(rows, first="2025-02-01") == rows[2:]
    assert in_window(rows, last="2024-07-31") == rows[:1]
    assert in_window(rows) == rows


@given(st.lists(st.dates()), st.dates(), st.dates())
def test_a_window_splits_the_rows(days: list[Any], one: Any, other: Any) -> None:
    first, last = sorted((one, other))
    rows = at(*(day.isoformat() for day in days))
    inside = in_window(rows, first.isoformat(), last.isoformat())
    assert [row["contest_date"] for row in inside] == [
        day.isoformat() for day in days if first <= day <= last
    ]


def test_a_window_is_said_with_its_count() -> None:
    rows = at("2025-01-04T18:30:00", "2024-08-03T00:00:00")
    assert window(rows) == "2 problems, 2024-08-03 to 2025-01-04"
    assert window(rows[:1]) == "1 problem, 2025-01-04 to 2025-01-04"
    assert window([]) == "0 problems"


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [("2025-02-01", "2025-01-01", "ends before"), ("Jan 2025", None, "first day"),
     (None, "2025-13-01", "last day")],
)  # fmt: skip
def test_a_window_that_is_none_is_refused(first: Any, last: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        in_window(at("2025-01-01"), first, last)


def test_a_row_without_a_date_is_refused() -> None:
    with pytest.raises(ConfigError, match="problem 7: contest_date"):
        window([{"question_id": "7"}])


def test_the_window_of_the_published_279_problems(benchmarks_dir: Path) -> None:
    path = benchmarks_dir / "livecodebench" / "livecodebench_v5_window_prompts.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert in_window(rows, "2024-08-01", "2025-02-01") == rows
    assert window(rows) == "279 problems, 2024-08-03 to 2025-01-04"
    # One biweekly contest is on the last of these days, in the evening.
    assert 0 < len(rows) - len(in_window(rows, last="2025-01-03")) < 10
