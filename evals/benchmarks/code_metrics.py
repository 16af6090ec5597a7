"""LiveCodeBench by difficulty, platform and date window."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from evals.benchmarks.base import Graded, Row, Tally
from reopold.config import ConfigError

DIFFICULTIES = ("easy", "medium", "hard")
PLATFORMS = ("leetcode", "codeforces", "atcoder")


def tally(graded: Sequence[Graded]) -> Tally:
    """pass@1 of the problems of each difficulty and of each platform, which each count once.

    A row without these fields, or with other values, counts in none.
    """
    sums: dict[str, list[float]] = {}
    for item in graded:
        right = sum(verdict.correct for verdict in item.verdicts) / len(item.verdicts)
        row = item.problem.row
        groups = (row.get("difficulty"), DIFFICULTIES), (row.get("platform"), PLATFORMS)
        for name, known in groups:
            if name in known:
                sums.setdefault(str(name), []).append(right)
    return {name: (sum(values), float(len(values))) for name, values in sums.items()}


def contest_day(row: Row) -> date:
    """The day of a problem's contest.

    Raises:
        ConfigError: `contest_date` is missing or no ISO date.
    """
    return _day(str(row.get("contest_date")), f"problem {row.get('question_id')}: contest_date")


def in_window(rows: Sequence[Row], first: str | None = None, last: str | None = None) -> list[Row]:
    """The rows whose contest was on a day from `first` to `last` (ISO dates), both included.

    Both days count whole. The authors' own filter (compute_scores.py) takes an end as its
    midnight, and so leaves out contests in the course of that day.

    Raises:
        ConfigError: a date is none, or `first` is after `last`.
    """
    start = date.min if first is None else _day(first, "the window's first day")
    end = date.max if last is None else _day(last, "the window's last day")
    if start > end:
        raise ConfigError(f"the window ends before it begins: {first} to {last}")
    return [row for row in rows if start <= contest_day(row) <= end]


def window(rows: Sequence[Row]) -> str:
    """What must stand beside any LiveCodeBench score: how many problems, from which days.

    "v6" is 175 problems in some papers and 1055 in others.
    """
    if not rows:
        return "0 problems"
    days = [contest_day(row) for row in rows]
    count = f"{len(rows)} problem{'s' * (len(rows) > 1)}"
    return f"{count}, {min(days).isoformat()} to {max(days).isoformat()}"


def _day(text: str, what: str) -> date:
    try:
        return date.fromisoformat(text[:10])
    except ValueError as error:
        raise ConfigError(f"{what} is {text!r}, which is no date such as 2025-01-31") from error
