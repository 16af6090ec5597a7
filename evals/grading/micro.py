"""Grader of the micro suite's maths."""

from __future__ import annotations

from evals.benchmarks.base import Row
from evals.grading.verdict import Context, Verdict, verdict
from reopold.answers.marked import answer_reward, final_answer


def grade_final_answer(response: str, row: Row, context: Context) -> Verdict:
    """The answer after the last `#`, compared as text: the rule that grpo is rewarded by."""
    return verdict(answer_reward(response, row["answer"]) == 1.0, final_answer(response))
