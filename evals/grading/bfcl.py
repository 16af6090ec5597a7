"""Grading the single-turn categories of the Berkeley Function Calling Leaderboard, v4."""

from __future__ import annotations

from evals.benchmarks.base import Row
from evals.benchmarks.bfcl import bfcl_answers, bfcl_category, bfcl_functions, bfcl_language
from evals.grading.bfcl_check import Task, check
from evals.grading.bfcl_decode import canonical, decode
from evals.grading.verdict import Context, Verdict, verdict


def grade_bfcl(response: str, row: Row, context: Context) -> Verdict:
    """The verdict on function calls: right if they are among the possible answers.

    irrelevance: right if the response makes no call. relevance: right if it makes any. What is
    extracted is the calls, sorted, so that votes do not depend on their order.

    Args:
        context: the rule `official` does as the authors' code, its mistakes included
            (:func:`evals.grading.bfcl_decode.decode`, :func:`evals.grading.bfcl_check.check`).

    Raises:
        ConfigError: the row is of a category that is not graded here, or lacks a field.
    """
    official = context.rule == "official"
    category = bfcl_category(row)
    language = bfcl_language(category)
    decoded = decode(response, language, official)
    calls = decoded.calls if decoded else []
    extracted = canonical(calls) if calls else None
    if category.endswith("relevance"):
        return verdict(bool(calls) != category.endswith("irrelevance"), extracted)
    if decoded is None or not calls:
        return verdict(False, extracted)
    kind = next((kind for kind in ("parallel", "multiple") if kind in category), "simple")
    task = Task(bfcl_functions(row), bfcl_answers(row), language, kind)
    return verdict(check(task, calls, decoded.called, official), extracted)
