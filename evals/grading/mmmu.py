"""Grader of MMMU (mmmu/utils/eval_utils.py, MMMU-Benchmark/MMMU).

Rule `official` is theirs: the last option named in brackets, else alone between spaces, else by
its text in a response of more than five words, else one at random. The guesses come from
`context.rng` in the order of the responses; with the subjects in alphabetical order and the
file's order within them, seed 42 gives the authors' figures. An open answer is right if any part
of the response that looks like a conclusion contains the gold answer or has its number.

Rule `sound` guesses nothing, reads an option where the response says that it is the answer, and
an open answer from its final statement.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from evals.benchmarks.base import Row, pick
from evals.grading.choices import LETTERS, chosen_letter, option_list, options_by_letter
from evals.grading.statements import bare, number_in, passages
from evals.grading.verdict import Context, Verdict, verdict

#: Of MMMU-Pro, the most options there are; for rows that hold nothing but the gold answer.
_MOST_OPTIONS = 10

_INDICATORS = (
    "could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result "
)  # fmt: skip
_MARKS = frozenset(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def grade_mmmu(response: str, row: Row, context: Context) -> Verdict:
    """A letter against the gold letter, or an open answer.

    Raises:
        ConfigError: the row has no answer, or its options are no list.
    """
    golds = _golds(pick(row, "answer", "ground_truth"))
    official = context.rule == "official"
    if pick(row, "question_type") != "multiple-choice":
        return _official_open(response, golds) if official else _sound_open(response, golds)
    given = _options(row)
    options = given or dict.fromkeys(LETTERS[:_MOST_OPTIONS], "")
    if not official:
        letter = chosen_letter(response, options)
    else:
        letter = official_choice(response, options)
        if letter is None and given:
            letter = context.rng.choice(list(given))
    return verdict(letter in golds, letter)


def _golds(gold: Any) -> list[str]:
    """The hub writes several accepted answers as the text of a list."""
    if isinstance(gold, str) and gold.startswith("["):
        try:
            gold = ast.literal_eval(gold)
        except (ValueError, SyntaxError):
            return [gold]
    return [str(one) for one in gold] if isinstance(gold, list) else [str(gold)]


def _options(row: Row) -> dict[str, str]:
    """Letter -> text; empty for a row of gold answers only.

    Raises:
        ConfigError: they are no list.
    """
    if isinstance(given := row.get("index2ans"), Mapping):
        return {str(letter): str(text) for letter, text in given.items()}
    return options_by_letter(option_list(row.get("options")))


def official_choice(response: str, options: Mapping[str, str]) -> str | None:
    """Their parse_multi_choice_response; None where it would guess. Of options at the same place
    the first counts, as for their argmax."""
    for mark in ",.!?;:'":
        response = response.strip(mark)
    response = f" {response} "
    for form in ("({})", " {} "):
        places = {letter: response.rfind(form.format(letter)) for letter in options}
        if max(places.values(), default=-1) >= 0:
            return max(places, key=lambda letter: places[letter])
    if len(response.split()) <= 5:
        return None
    lower = response.lower()
    places = {letter: lower.rfind(text.lower()) for letter, text in options.items() if text}
    best = max(places, key=lambda letter: places[letter], default=None)
    return best if best is not None and places[best] >= 0 else None


def _official_open(response: str, golds: list[str]) -> Verdict:
    conclusions = _conclusions(response)
    predictions: list[str | float] = []
    for text in [*conclusions, *(n for c in conclusions for f in _NUMBERS for n in f.findall(c))]:
        predictions += _normalised(text)
    accepted = [one for gold in golds for one in _normalised(gold)]
    texts = [one for one in accepted if isinstance(one, str)]
    right = any(
        any(text in prediction for text in texts)
        if isinstance(prediction, str)
        else prediction in accepted
        for prediction in predictions
    )
    return verdict(right, conclusions[-1] or None)


def _conclusions(response: str) -> list[str]:
    """What follows the last indicator word in each line, the shortest; else the response.

    They also mean to split at sentences, but look for a capital in a text already lower-cased.
    """
    response = response.strip().strip(".").lower()
    lines = response.split("\n")
    conclusions = []
    for place, line in enumerate(lines):
        indicators = (*_INDICATORS, "=") if place == len(lines) - 1 else _INDICATORS
        tails = [line.split(word)[-1].strip() for word in indicators if word in line]
        # An empty tail is replaced by any later one, as theirs is by `not shortest`.
        shortest = ""
        for tail in tails:
            shortest = tail if not shortest or len(tail) < len(shortest) else shortest
        if shortest and shortest not in _MARKS:
            conclusions.append(shortest)
    return conclusions or [response]


def _normalised(text: str) -> list[str | float]:
    """A number to two decimals; other text in lower case, a single letter with a space around."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _sound_open(response: str, golds: list[str]) -> Verdict:
    passage = response if len(response) <= 60 else next(iter(passages(response)))
    number, plain = number_in(passage), bare(passage)
    for gold in golds:
        (accepted,) = _normalised(gold) if len(gold.strip()) > 1 else [gold.strip().lower()]
        if isinstance(accepted, str) and (value := _float(accepted)) is not None:
            accepted = value
        if isinstance(accepted, str):
            right = re.search(rf"(?<!\w){re.escape(accepted)}(?!\w)", plain.lower()) is not None
        else:
            right = number is not None and round(float(number), 2) == accepted
        if right:
            return verdict(True, number if isinstance(accepted, float) else plain)
    return verdict(False, number or plain or None)


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
