"""Cutting off what a reasoning model thought before it answered."""

from __future__ import annotations

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
