"""Grader of DynaMath (evaluation/*_json_eval.py, DynaMath/DynaMath).

Models answer in JSON with a "short answer". As theirs, a float may differ by 0.001, absolutely and
not relative to its size. Beyond them, a response without JSON is read by its box or statement, the
difference is taken in decimal (theirs loses 1.001 - 1 = 0.001 to binary rounding one way or the
other), fractions and multiples of pi are numbers, and a text must be there as whole words, where
theirs finds the answer "D" within "DE".
"""

from __future__ import annotations

import json
import re
from fractions import Fraction

from evals.benchmarks.base import Row, pick
from evals.grading.arithmetic import Value, evaluate
from evals.grading.choices import chosen_letter, listed_options
from evals.grading.statements import bare, passages, stated_number
from evals.grading.verdict import Context, Verdict, verdict
from reopold.config import ConfigError

TOLERANCE = Fraction(1, 1000)

_SHORT = re.compile(r'"short answer"\s*:\s*("(?:[^"\\]|\\.)*"|\[[^\]]*\]|[^,}\n]+)', re.IGNORECASE)


def grade_dynamath(response: str, row: Row, context: Context) -> Verdict:
    """A float, the letter of a choice, or text.

    Raises:
        ConfigError: the row lacks a field, or its answer is no number where it should be.
    """
    gold = str(pick(row, "answer", "ground_truth")).strip()
    kind = str(pick(row, "answer_type", "question_type"))
    short = _short_answer(response)
    text = response if short is None else short
    if kind in ("float", "int"):
        return _number(text, gold)
    if kind == "multiple choice":
        options = listed_options(str(row.get("question") or "")) or dict.fromkeys("ABCDEFG", "")
        letter = chosen_letter(text, options)
        return verdict(letter is not None and letter == gold.strip("()"), letter)
    return _text(text, gold, whole=short is not None)


def _short_answer(response: str) -> str | None:
    """The last "short answer" in the response, as text; None without one."""
    found = _SHORT.findall(response)
    if not found:
        return None
    written = str(found[-1]).strip()
    try:
        value = json.loads(written, strict=False)
    except ValueError:  # LaTeX's backslashes, as authors expect too
        return written.strip('"').replace("\\\\", "\\")
    return value if isinstance(value, str) else json.dumps(value)


def _number(text: str, gold: str) -> Verdict:
    wanted = evaluate(gold)
    if wanted is None:
        raise ConfigError(f"the answer of a DynaMath record is '{gold}', which is no number")
    answer = _value(text)
    if answer is None:
        return verdict(False, None)
    value, shown = answer
    return verdict(abs(Fraction(value) - Fraction(wanted)) <= TOLERANCE, shown)


def _value(text: str) -> tuple[Value, str] | None:
    """The number that a text states, and how it is written there."""
    for passage in (text, *passages(text)):
        plain = bare(passage.replace("π", r"\pi "))
        plain = re.sub(r"(?<![\\a-z])pi\b", r"\\pi ", plain.split("=")[-1].replace("≈", ""))
        for written in (plain, *_without_wrapping(passage)):
            value = evaluate(written)
            if value is not None:
                return value, written.strip()
    found = stated_number(text)
    value = None if found is None else evaluate(found)
    return None if found is None or value is None else (value, found)


def _without_wrapping(passage: str) -> tuple[str, ...]:
    """The passage with the braces that :func:`bare` takes off, for LaTeX."""
    text = re.sub(r"\\[()\[\]]|\\(?:text|mathrm)\s*\{[^{}]*\}|\$", "", passage)
    return (text.split("=")[-1].split(r"\approx")[-1].strip().rstrip(". "),)


def _text(text: str, gold: str, *, whole: bool) -> Verdict:
    """The gold text as whole words of the short answer, or of the statement."""
    passage = text if whole or len(text) <= 60 else next(iter(passages(text)))
    plain = re.sub(r"\s+", "", bare(passage)).casefold()
    wanted = re.sub(r"\s+", "", gold).casefold()
    words = rf"(?<![\w.]){re.escape(gold.casefold())}(?![\w]|\.\d)"
    right = plain == wanted or re.search(words, bare(passage).casefold()) is not None
    bracketed = wanted[:1] in "([" and wanted in plain
    return verdict(bool(wanted) and (right or bracketed), bare(passage) or None)
