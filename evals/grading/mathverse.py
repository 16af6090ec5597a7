r"""Grader of MathVerse: the "w/o" accuracy, by rule.

The authors (evaluation/extract_answer_s1.py and score_answer_s2.py, ZrrSkywalker/MathVerse) have
one GPT extract an answer from a response and another judge whether it is the standard one. No
model is asked here: letters and final answers are read by rule and compared as mathematics. So
scores are not those of the leaderboard: a response that states its answer in prose, or in another
form than the standard answer's, can be right there and wrong here.
"""

from __future__ import annotations

import re

from evals.benchmarks.base import Row, pick
from evals.grading.choices import LETTERS, chosen_letter, letter_set
from evals.grading.statements import last_sentence, number_in
from evals.grading.verdict import Context, Verdict, verdict
from reopold.answers.equality import equal
from reopold.answers.extract import final_answer

_OPTION = re.compile(r"^([A-J])\s*[:.]\s*(.*)$", re.MULTILINE)
#: "Perimeter $=35.7 \mathrm{~mm}$": the quantity's name is no part of the answer.
_LABEL = re.compile(r"^(?:[A-Za-z][A-Za-z.]+\s*)+[$\s]*=\s*")
#: Units and "T" of true bearings, which questions fix and answers may leave out.
_BEARING = re.compile(r"\s*(?:°|\^\s*\{?\s*\\circ\s*\}?)\s*T$")


def grade_mathverse(response: str, row: Row, context: Context) -> Verdict:
    """The letter, or an answer equal to the standard one.

    Raises:
        ConfigError: the row lacks a field.
    """
    gold = str(pick(row, "answer")).strip()
    letters = [part.strip("() ") for part in gold.split("\n")]
    chooses = all(len(letter) == 1 and letter in LETTERS for letter in letters)
    if pick(row, "question_type") == "multi-choice" and chooses:
        return _choice(response, letters, str(row.get("question") or ""))
    return _free_form(response, gold)


def _choice(response: str, letters: list[str], question: str) -> Verdict:
    if len(letters) > 1:  # two records have two right options
        found = letter_set(response, LETTERS[:10])
        return verdict(found == set(letters), ", ".join(sorted(found)) or None)
    options = dict(_OPTION.findall(question))
    if "".join(options) != LETTERS[: len(options)] or len(options) < 2:  # misprinted, or shown only
        options = dict.fromkeys(LETTERS[:10], "")
    letter = chosen_letter(response, options) or _by_value(response, options)
    return verdict(letter == letters[0], letter)


def _by_value(response: str, options: dict[str, str]) -> str | None:
    """The only option that the final answer equals."""
    answer = final_answer(response)
    if answer is None:
        return None
    same = [letter for letter, option in options.items() if option and equal(option, answer)]
    return same[0] if len(same) == 1 else None


def _free_form(response: str, gold: str) -> Verdict:
    answer = final_answer(response)
    wanted = _plain(gold)
    if answer is None or not equal(wanted, _plain(answer)):
        # "is 14 cm": a number in prose, where the response has no better answer.
        sentence = answer if answer is not None else last_sentence(response)
        number = number_in(sentence)
        if number is None:
            return verdict(False, answer)
        return verdict(equal(wanted, number), answer or number)
    return verdict(True, answer)


def _plain(text: str) -> str:
    text = _BEARING.sub("", text.replace("$", "").strip())
    return _LABEL.sub("", text) or text
