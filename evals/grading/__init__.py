"""Grading: from a response's text to a verdict."""

from __future__ import annotations

from collections.abc import Callable

from evals.benchmarks import find
from evals.benchmarks.problems import Record
from evals.grading.maths import grade_final_answer
from evals.grading.verdict import Status, Verdict

GRADERS: dict[str, Callable[[str, Record], Verdict]] = {"final_answer": grade_final_answer}

__all__ = ["GRADERS", "Status", "Verdict", "grade"]


def grade(benchmark: str, response: str, record: Record) -> Verdict:
    """The verdict on one response to the problem `record`.

    Raises:
        ConfigError: no benchmark of that name.
    """
    return GRADERS[find(benchmark).grader](response, record)
