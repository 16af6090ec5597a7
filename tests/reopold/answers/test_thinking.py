"""Only what follows the last closed thought is graded."""

from __future__ import annotations

import pytest

from reopold.answers.thinking import answer_text


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("It is 4.", "It is 4."),
        ("<think>2+2</think>It is 4.", "It is 4."),
        ("2+2</think>It is 4.", "It is 4."),  # the prompt had opened the thought
        ("<think>a</think>3<think>b</think>4", "4"),
        ("<think>\\boxed{4}", None),  # the budget ended within the thought
        ("<think>a</think>3<think>\\boxed{4}", None),
        ("<think>a</think>", ""),
        ("", ""),
    ],
)
def test_answer_text(response: str, answer: str | None) -> None:
    assert answer_text(response) == answer
