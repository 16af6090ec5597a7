"""Cutting off what a reasoning model thought before it answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

OPEN, CLOSE = "<think>", "</think>"


def answer_text(response: str) -> str | None:
    """What follows the last closed thought; None where a thought was never closed.

    A budget that ends within a thought leaves no answer, whatever the thought contains: a boxed
    guess in it must not count (lm-evaluation-harness issue 3382).
    """
    _, close, after = response.rpartition(CLOSE)
    if not close:
        return None if OPEN in response else response
    return None if OPEN in after else after


def opened_thought(tokenizer: Any, prompt_ids: Sequence[int]) -> str:
    """The mark of a thought that the chat template opens before the model says its first word.

    Without it a response whose budget ends in the thought would look like an answer.
    """
    tail = str(tokenizer.decode(prompt_ids[-8:])).rstrip()
    return OPEN + "\n" if tail.endswith(OPEN) else ""
