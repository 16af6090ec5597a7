"""Grader of LogicVista (eval/extract_accuracy.py, Yijia-Xiao/LogicVista).

The authors have GPT-4 list the letters that a response chooses and want exactly the gold ones, in
any order and case. Here the letters are read by rule.
"""

from __future__ import annotations

from evals.benchmarks.base import Row, pick
from evals.grading.choices import chosen_letter, letter_set, listed_options
from evals.grading.verdict import Context, Verdict, verdict

#: Options of the 448 questions; one is numbered instead.
_LETTERS, _DIGITS = "ABCDEFGHIJ", "123456789"


def grade_logicvista(response: str, row: Row, context: Context) -> Verdict:
    """The set of letters: all of the gold ones and no other.

    Nothing is right where the gold answer is empty, as in one published record.

    Raises:
        ConfigError: the row has no answer.
    """
    gold = frozenset(part.strip().upper() for part in str(pick(row, "answer")).split(","))
    gold -= {""}
    known = _DIGITS if gold and gold <= set(_DIGITS) else _LETTERS
    letters = letter_set(response, known)
    if not letters and (options := listed_options(str(row.get("question") or ""))):
        letters = frozenset(chosen_letter(response, options) or "")
    extracted = ", ".join(sorted(letters)) or None
    return verdict(bool(gold) and letters == gold, extracted)
