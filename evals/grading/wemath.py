"""Grader of We-Math (evaluation/four_dimensional_metrics.py, We-Math/We-Math)."""

from __future__ import annotations

import re

from evals.benchmarks.base import Row, pick
from evals.grading.choices import chosen_letter
from evals.grading.verdict import Context, Verdict, verdict

_MARKS = re.compile("[><:.]")
#: Letters that the authors' code takes for answers, although options end at E.
_OFFICIAL_LETTERS = frozenset("ABCDEFGH")
_OPTION = re.compile(r"(?:^|[;\s])([A-H])\s*[.:]\s*(.*?)(?=[;\s]+[A-H]\s*[.:]|$)", re.DOTALL)


def grade_wemath(response: str, row: Row, context: Context) -> Verdict:
    """The option's letter. Rule `official`: the first character after the last "Answer" once
    `> < : .` are gone. Rule `sound` reads boxes, statements and lone last letters too.

    Raises:
        ConfigError: the row has no answer or no options.
    """
    gold = str(pick(row, "answer")).strip()
    if context.rule == "official":
        letter = official_letter(response)
    else:
        options = _options(str(pick(row, "option")))
        marked = _marked(response)
        letter = marked if marked in options else chosen_letter(response, options)
    return verdict(letter is not None and letter == gold, letter)


def official_letter(response: str) -> str | None:
    """The letter that the authors' code reads; None if there is none from A to H."""
    first = _MARKS.sub("", response.split("Answer")[-1].strip()).strip()[:1]
    return first if first in _OFFICIAL_LETTERS else None


def _marked(response: str) -> str | None:
    """The letter in the prompt's own format, `<Answer>: <<B>>`."""
    found = re.findall(r"<Answer>\s*:?\s*<*\s*\(?([A-H])\)?\s*(?=[>.:;,\s]|$)", response)
    return str(found[-1]) if found else None


def _options(text: str) -> dict[str, str]:
    """`A. 3; B. 5; ...` by letter; A to E where the text lists none."""
    listed = {letter: option.strip(" ;.") for letter, option in _OPTION.findall(text)}
    return listed or dict.fromkeys("ABCDE", "")
