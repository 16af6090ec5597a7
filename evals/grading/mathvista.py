"""Grader of MathVista (evaluation/extract_answer.py and calculate_score.py, lupantech/MathVista).

The authors ask a GPT model for the answer in a response and normalise what it returns. Rules
`official` and `current` (the same) and `legacy` are their normalisation: they take the text as
that returned answer, so they re-derive published scores from stored `extraction` fields.
`legacy` is the code of 2023, which read an integer with int(): "5.0" was wrong then. Rule `sound`
reads the answer off the response by rule, and text that names no choice is no answer, where the
authors take the choice at the smallest edit distance.
"""

from __future__ import annotations

import ast
import re

from evals.benchmarks.base import Row, pick
from evals.grading.choices import chosen_letter, option_list, options_by_letter
from evals.grading.statements import passages, stated_number
from evals.grading.verdict import Context, Rule, Verdict, verdict
from reopold.config import ConfigError

_QUICK = re.compile(r'The answer is "(.*)"\.')
_LETTER = re.compile(r"\(([a-zA-Z])\)")
_LIST = re.compile(r"\[[^\[\]]*\]")


def grade_mathvista(response: str, row: Row, context: Context) -> Verdict:
    """The normalised answer, compared as text.

    Raises:
        ConfigError: the row lacks a field, or its type of answer is unknown.
    """
    if context.rule == "sound":
        extraction = _extracted(response, row)
    else:
        quick = _QUICK.search(response)
        extraction = quick[1] if quick else response
    prediction = None if extraction is None else _normalised(extraction, row, context.rule)
    return verdict(prediction is not None and prediction == str(pick(row, "answer")), prediction)


def _choices(row: Row) -> list[str]:
    return option_list(pick(row, "choices"))


def _extracted(response: str, row: Row) -> str | None:
    """What the GPT model is asked for: a choice, a number or a list."""
    if pick(row, "question_type") == "multi_choice":
        options = options_by_letter(_choices(row))
        letter = chosen_letter(response, options)
        return None if letter is None else options[letter]
    if pick(row, "answer_type") != "list":
        return stated_number(response)
    for passage in (response.strip(), *passages(response)):
        lists = _LIST.findall(passage)
        if len(lists) == 1:
            return _spaced(lists[0])
    return None


def _spaced(text: str) -> str:
    """A list as Python writes it, since lists are compared as text."""
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _normalised(extraction: str, row: Row, rule: Rule) -> str | None:
    if pick(row, "question_type") == "multi_choice":
        choices = _choices(row)
        return extraction if rule == "sound" else _official_choice(extraction, choices)
    kind = pick(row, "answer_type")
    try:
        if kind == "integer":
            return str(int(extraction) if rule == "legacy" else int(float(extraction)))
        if kind == "float":
            return str(round(float(extraction), int(pick(row, "precision"))))
    except (ValueError, OverflowError):
        return None
    if kind == "list":
        return extraction
    raise ConfigError(f"a MathVista record has answer_type '{kind}', which no rule is known for")


def _official_choice(extraction: str, choices: list[str]) -> str:
    extraction = extraction.strip()
    bracketed = _LETTER.search(extraction)
    if bracketed:
        extraction = bracketed[1].upper()
    options = options_by_letter(choices)
    if extraction in options:
        return options[extraction]
    return min(choices, key=lambda choice: edit_distance(extraction, choice))


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's, in Hyyrö's bit-parallel form: a response may be long.

    One column of the distance matrix is held as two integers, the places where it rises and where
    it falls (Hyyrö 2003, A bit-vector algorithm for computing Levenshtein and Damerau distances).
    """
    a, b = sorted((a, b), key=len)
    if not a:
        return len(b)
    places: dict[str, int] = {}
    for place, char in enumerate(a):
        places[char] = places.get(char, 0) | 1 << place
    mask, top = (1 << len(a)) - 1, 1 << (len(a) - 1)
    rises, falls, distance = mask, 0, len(a)
    for char in b:
        equal = places.get(char, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        up = falls | ~(diagonal | rises)
        down = rises & diagonal
        distance += bool(up & top) - bool(down & top)
        up = up << 1 | 1
        rises = ((down << 1) | ~(diagonal | up)) & mask
        falls = up & diagonal & mask
    return distance
