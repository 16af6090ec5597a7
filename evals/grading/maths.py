"""Graders of maths answers."""

from __future__ import annotations

from evals.benchmarks.problems import Record
from evals.grading.verdict import Verdict
from reopold.data.answers import answer_reward, final_answer


def grade_final_answer(response: str, record: Record) -> Verdict:
    """The answer after the last `#`, compared as text: the rule that grpo is rewarded by."""
    extracted = final_answer(response)
    if extracted is None:
        return Verdict(correct=False, extracted=None, status="no_answer")
    correct = answer_reward(response, record["answer"]) == 1.0
    return Verdict(correct, extracted, "ok" if correct else "wrong")
