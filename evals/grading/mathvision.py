r"""Grader of MATH-Vision (evaluation/evaluate.py and utils.py, mathllm/MATH-V).

Rule `official` follows the authors step by step but for their `eval` of the model's text: numbers
are read by :mod:`evals.grading.arithmetic`. It is loose (5.00 and 4.996 are equal, a box runs to
the last brace of the text) and strict (\frac12 is no number). Rule `sound` takes the last closed
box or statement and compares mathematically.
"""

from __future__ import annotations

import re

from evals.benchmarks.base import Row, pick
from evals.grading.arithmetic import evaluate
from evals.grading.choices import chosen_letter, option_list, options_by_letter
from evals.grading.statements import stated_number
from evals.grading.verdict import Context, Verdict, verdict
from reopold.answers.equality import equal
from reopold.answers.extract import boxed, final_answer

_FLAGS = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")
#: In the authors' order: each step sees what those before it left.
_CLEANING = (
    (" ", ""), (r"\,", ""), ("∞", r"\infty"), (r"+\infty", r"\infty"), ("\\\\", "\\"), ("\n", ""),
    (r"\text", ""), (r"\mbox", ""), ("bmatrix", "pmatrix"), (r"\left", ""), (r"\right", ""),
    (r"^{\circ}", ""), (r"^\circ", ""), ("{m}^3", ""), ("m^3", ""), ("{units}", ""), ("units", ""),
    ("{km}", ""), ("km", ""), (r"\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"),
    (r"\left", ""), (r"\right", ""), (r"^{\circ}", ""), (r"^\circ", ""), (r"\$", ""), ("$", ""),
    (r"\%", ""), ("{.", "{0."),
)  # fmt: skip


def grade_mathvision(response: str, row: Row, context: Context) -> Verdict:
    """Right if the answer is the letter or the text of its option.

    Raises:
        ConfigError: the row has no answer.
    """
    gold = str(pick(row, "answer"))
    options = options_by_letter(option_list(row.get("options")))
    if context.rule == "sound":
        return _sound(response, gold, options)
    answer = official_answer(response)
    right = official_equal(gold, answer) or official_equal(options.get(gold, ""), answer)
    return verdict(right, answer or None)


def official_answer(response: str) -> str:
    """What the authors' `evaluate` reads off a response; empty if nothing is left of it."""
    answer = response.strip()
    for letter in "ABCDE":
        ends = (f" {letter}.", f" ({letter}).")
        begins = (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")
        if answer.endswith(ends) or answer.startswith(begins):
            answer = letter
    after_is = answer.split("is ")[-1].rstrip(".")
    if _is_float(after_is):
        answer = after_is
    if "oxed{" not in answer:
        for flag in _FLAGS:
            for wording in (flag, flag.replace("the", "The")):
                if wording in answer:
                    answer = answer.split(wording)[-1].strip().split("\n")[0].split(". ")[0]
                else:
                    answer = answer.strip()
    elif answer.count("oxed{") > 1:
        answer = r"\boxed{" + answer.split("oxed{")[-1]
    answer = _cleaned(answer.lower())
    for brackets in ("()", "{}"):
        for letter in "abcde":
            answer = answer.replace(brackets[0] + letter + brackets[1], letter)
    return answer.rstrip(".").lstrip(":").strip()


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cleaned(text: str) -> str:
    """The authors' find_math_answer and _strip_string."""
    text = text.replace("{}", "")
    boxes = re.findall(r"oxed\{(.*)\}", text, re.DOTALL)
    text = boxes[-1] if boxes else text
    closing, opening = text.find("}"), text.find("{")
    if closing != -1 and (opening == -1 or closing < opening):
        text = text[:closing]
    text = text.split("=")[-1].split(r"\approx")[-1]
    for old, new in _CLEANING:
        text = text.replace(old, new)
    text = "0" + text if text.startswith(".") else text
    if "sqrt" in text:
        text = _braced_fractions(re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text))
    text = r"\frac{1}{2}" if text == "0.5" else text
    whole = re.fullmatch(r"(0|-?[1-9]\d*)/(0|-?[1-9]\d*)", text)
    return rf"\frac{{{whole[1]}}}{{{whole[2]}}}" if whole else text


def _braced_fractions(text: str) -> str:
    r"""Braces around the single-character arguments of `\frac`."""
    first, *parts = text.split(r"\frac")
    braced = first
    for part in parts:
        if part.startswith("{"):
            braced += r"\frac" + part
        elif len(part) < 2:
            return text
        else:
            below = part[1:] if part[1] == "{" else f"{{{part[1]}}}{part[2:]}"
            braced += rf"\frac{{{part[0]}}}{below}"
    return braced


def official_equal(gold: str, answer: str) -> bool:
    """The authors' is_equal: the same text, the same tuple, or numbers that round alike."""
    gold, answer = gold.lower(), answer.lower()
    if not gold.replace(" ", "") or not answer.replace(" ", ""):
        return False
    if gold.strip() == answer.strip():
        return True
    gold, answer = _rounded_tuple(gold), _rounded_tuple(answer)
    if gold == answer:
        return True
    a, b = _rounded(gold), _rounded(answer)
    return a is not None and a == b


def _rounded(text: str) -> float | int | None:
    """To two decimals, of a binary float as theirs: 2.675 rounds down."""
    value = evaluate(text, partial=True)
    if value is None:
        return None
    try:
        return int(value) if value == int(value) else round(float(value), 2)
    except OverflowError:
        return None


def _rounded_tuple(text: str) -> str:
    if text[:1] + text[-1:] not in ("()", "[]") or "," not in text:
        return text
    parts: list[str] = []
    for part in text[1:-1].split(","):
        kept = "infty" in part or part in ("a", "-a")
        value = None if kept else _rounded(part)
        if value is None and not kept:
            return text
        parts.append(part if kept else str(value))
    return text[0] + ",".join(parts) + text[-1]


def _sound(response: str, gold: str, options: dict[str, str]) -> Verdict:
    if options:
        letter = chosen_letter(response, options) or _by_value(response, options)
        return verdict(letter is not None and letter == gold.strip(), letter)
    answer = final_answer(response) or stated_number(response)
    return verdict(answer is not None and equal(_plain(gold), _plain(answer)), answer)


def _by_value(response: str, options: dict[str, str]) -> str | None:
    """The only option that the box or statement equals as mathematics."""
    answer = final_answer(response)
    if answer is None:
        return None
    same = [letter for letter, option in options.items() if equal(_plain(option), _plain(answer))]
    return same[0] if len(same) == 1 else None


def _plain(text: str) -> str:
    """Without what stands around an answer in the data: a box, `$`, a unit in braces, and with
    the backslash that two records lost to a form feed."""
    text = text.replace("\x0crac", r"\frac").replace("$", "")
    return re.sub(r"(?<=[\d}i])\s*\{[a-z]{4,}\}\s*$", "", boxed(text) or text)
