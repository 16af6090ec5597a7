"""The one rule that finds a response's final answer: the outcome reward and the grader share it."""

from __future__ import annotations

ANSWER_MARK = "#"


def final_answer(response: str) -> str | None:
    """The text after the last `#`, stripped; None if there is no `#` or nothing follows it.

    A response cut off before it reached its answer has none: text without the mark is never
    searched for something that looks like an answer.
    """
    _, mark, answer = response.rpartition(ANSWER_MARK)
    return answer.strip() or None if mark else None


def answer_reward(response: str, answer: str) -> float:
    """Outcome reward of a response: 1.0 if its final answer is `answer`, else 0.0."""
    return float(final_answer(response) == answer.strip())
