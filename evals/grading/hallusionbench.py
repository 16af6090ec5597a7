"""Grader of HallusionBench (utils.py and evaluation.py, tianyi-lab/HallusionBench).

The authors have GPT-4 judge whether a response conflicts with the reference. Here yes or no is
read by rule. Rule `official` reads it as VLMEvalKit does (the word "yes" without the word "no", or
the reverse; anything else is uncertain) and counts as the authors do: an uncertain answer to a VS
question without its figure is right. Rule `sound` reads a box, a statement or the first word, and
an uncertain answer is none.
"""

from __future__ import annotations

import re
from typing import Literal

from evals.benchmarks.base import Row, pick
from evals.grading.statements import bare, passages
from evals.grading.verdict import Context, Verdict, verdict
from reopold.config import ConfigError

Answer = Literal["yes", "no", "uncertain"]

#: evaluation.py: 0 no, 1 yes, 2 uncertain.
_CODES: dict[str, Answer] = {"0": "no", "1": "yes", "2": "uncertain"}


def grade_hallusion(response: str, row: Row, context: Context) -> Verdict:
    """Yes or no.

    Raises:
        ConfigError: the row lacks a field, or its answer is neither yes nor no.
    """
    gold = _gold(row)
    answer: str | None = _CODES.get(response.strip())
    if context.rule == "official":
        answer = answer or _by_words(response)
        uncertain_is_right = pick(row, "category") == "VS" and str(pick(row, "figure_id")) == "0"
        right = answer == gold or (answer == "uncertain" and uncertain_is_right)
        return verdict(right, answer)
    answer = answer or _stated(response)
    return verdict(answer == gold, None if answer == "uncertain" else answer)


def _gold(row: Row) -> Answer:
    gold = str(pick(row, "gt_answer")).strip().lower()
    if gold in ("1", "yes"):
        return "yes"
    if gold in ("0", "no"):
        return "no"
    raise ConfigError(f"gt_answer of a HallusionBench record is '{gold}', not 0, 1, yes or no")


def _by_words(text: str) -> Answer | None:
    words = set(re.findall(r"[a-z]+", text.lower()))
    if not words:
        return None
    if ("yes" in words) == ("no" in words):
        return "uncertain"
    return "yes" if "yes" in words else "no"


def _stated(response: str) -> Answer | None:
    """In a box or statement, else the first word, else the only one in the last sentence."""
    *stated, last = passages(response)
    for passage in (*stated, response):
        opening = re.match(r"(yes|no)\b(?!\s+(?:one|longer|more)\b)", bare(passage).lower())
        if opening is not None:
            return "yes" if opening[1] == "yes" else "no"
    answer = _by_words(last)
    return answer if answer != "uncertain" else None
