"""Grader of OlympiadBench (open-ended maths in English)."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from sympy import Expr, Pow, Symbol, simplify
from sympy.core.relational import Relational

from evals.benchmarks.base import Row, pick
from evals.grading.assignment import assignable
from evals.grading.verdict import NO_ANSWER, Context, Verdict, verdict
from reopold.answers.equality import clean, equal, number, unbraced
from reopold.answers.extract import MAX_ANSWER, final_answer
from reopold.answers.latex import parse_latex
from reopold.config import ConfigError

#: Within which numbers are equal under the official rule, where a row gives no `error`.
_PRECISION = 1e-8
_SIGNALS = {
    "\\left": "", "\\right": "", "∶": ":", "，": ",", "$": "", "\\approx": "=", "\\simeq": "=",
    "\\sim": "=", "^\\prime": "'", "^{\\prime}": "'", "^\\circ": "", "%": "",
}  # fmt: skip
_ENDS = "\n$,.:;^_=+`!@#%&*~，。"
_MAX_EXPONENT = 1000
#: What is said of a gold behind it: "f(x)=ax+b, where b is an integer".
_CONDITION = re.compile(r"\$?\s*,?\s*\bwhere\b.*", re.DOTALL)


def grade_olympiad(response: str, row: Row, context: Context) -> Verdict:
    r"""The gold is LaTeX in `final_answer`, a list (mostly of one entry) or a string.

    sound: the clearly stated answer (:func:`reopold.answers.extract.final_answer`), part by part:
    several answers in any order, each gold with one of its own; \pm is two; ends of intervals
    count; numbers within the row's `error` if it has one; units are decoration.
    official: the judge of the authors (OpenBMB/OlympiadBench, eval/auto_scoring_judge.py and
    inference/judge.py): all boxes of what follows "So the final answer is", else of the whole
    response, joined; pairing in order of appearance; 1e-8 or the row's `error`; x/100 and 100x
    for numbers; units count as factors, percent signs do not.

    Raises:
        ConfigError: no gold, or an `error` that is no number.
    """
    gold, errors = _gold(row), _errors(row)
    if context.rule == "official":
        return _judged(response, gold, errors)
    answer = final_answer(response)
    if answer is None:
        return NO_ANSWER
    interval = row.get("answer_type") == "Interval"
    golds, answers = (_plain(text, interval) for text in (_with_unit(gold, row), answer))
    return verdict(_sound(golds, answers, errors), answer)


def _gold(row: Row) -> str:
    gold = pick(row, "final_answer", "answer")
    if isinstance(gold, str) and re.fullmatch(r"\s*\[\s*(['\"]).*\1\s*\]\s*", gold, re.DOTALL):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            gold = ast.literal_eval(gold)  # the list as text, as tables keep it
    if isinstance(gold, list):
        if not gold:
            raise ConfigError("'final_answer' is empty")
        gold = ", ".join(map(str, gold))
    return str(gold)


def _errors(row: Row) -> list[float]:
    """The row's tolerances, one for all parts or one for each; empty if it has none."""
    error = row.get("error")
    if error in (None, "") or "Tuple" in str(row.get("answer_type")):
        return []
    try:
        return [float(part) if part.strip() else _PRECISION for part in str(error).split(",")]
    except ValueError:
        raise ConfigError(f"'error' must be a number or several, not {error!r}") from None


def _with_unit(gold: str, row: Row) -> str:
    unit = str(row.get("unit") or "").strip("$ ")
    if unit == "%":
        return gold + "\\%"
    return f"{gold.strip('$')} \\text{{{unit}}}" if re.match("[a-z]", unit) else gold


def _plain(text: str, interval: bool) -> str:
    text = _CONDITION.sub("", text)
    # One gold reads "t(0,4]".
    return re.sub(r"^\$?\s*[A-Za-z]\s*(?=[(\[])", "", text) if interval else text


# The sound rule


def _sound(gold: str, answer: str, errors: list[float]) -> bool:
    golds, answers = parts(gold), parts(answer)
    if len(golds) == 1 and not errors:
        return equal(gold, answer)
    if len(golds) != len(answers):
        return False
    errors = errors * len(golds) if len(errors) == 1 else errors
    matches = [
        [_part_equal(g, a, errors[place] if errors else None) for a in answers]
        for place, g in enumerate(golds)
    ]
    return assignable(matches)


def _part_equal(gold: str, answer: str, error: float | None) -> bool:
    if equal(gold, answer):
        return True
    g, a = number(clean(gold)), number(clean(answer))
    if error is None or g is None or a is None:
        return False
    return abs(g.value - a.value) <= Fraction(str(error))


def parts(text: str) -> list[str]:
    r"""Answers between commas outside brackets; `\pm` is two."""
    text = clean(text)
    inner = re.fullmatch(r"\\\{(.*)\\\}", text)
    found = split_by_comma(inner[1] if inner else text, "([{", ")]}")
    return [sign for part in found if part for sign in _signs(part)]


def _signs(part: str) -> list[str]:
    if "\\pm" not in part:
        return [part]
    return [part.replace("\\pm", sign).strip().removeprefix("+").strip() for sign in "+-"]


def split_by_comma(text: str, opening: str, closing: str) -> list[str]:
    depth, start, found = 0, 0, []
    for place, char in enumerate(text):
        depth += (char in opening) - (char in closing)
        if char == "," and depth == 0:
            found.append(text[start:place].strip())
            start = place + 1
    return [*found, text[start:].strip()] if start < len(text) else found


# The official rule


def _judged(response: str, gold: str, errors: list[float]) -> Verdict:
    stated = re.findall(r"So the final answer is (.*)", response)
    answer = _judged_text(stated[-1].strip() if stated else response)
    reference = _judged_text(gold)
    if answer is None or len(answer) > MAX_ANSWER:
        return NO_ANSWER
    return verdict(reference is not None and _paired(reference, answer, errors), answer)


def _judged_text(text: str) -> str | None:
    """What the judge compares; None where braces do not match."""
    found = ""
    for box in re.finditer(r"\\boxed{", text):
        depth, end = 1, box.end()
        while depth and end < len(text):
            depth += (text[end] == "{") - (text[end] == "}")
            end += 1
        if depth:
            return None
        found += text[box.end() : end - 1] + ","
    if not found:
        formulas = re.findall(r"\$(.*?)\$", text.strip().split("\n")[-1])
        found = "".join(formula + "," for formula in formulas) or text
    if "\\in " in found:
        found = found.split("\\in ")[1]
    for signal, replacement in _SIGNALS.items():
        found = found.replace(signal, replacement)
    found = found.strip(_ENDS)
    return re.sub(r"\\(?:mathrm|mathbf)\{~?([^}]*)\}", r"\1", found)


def _paired(gold: str, answer: str, errors: list[float]) -> bool:
    if gold == answer:
        return True
    golds, answers = (
        _signed(split_by_comma(re.sub(r"[\u4e00-\u9fff]+", "", text), "([", ")]"))
        for text in (gold, answer)
    )
    if len(golds) != len(answers):
        return False
    tolerances = errors or [_PRECISION]
    tolerances = tolerances * len(golds) if len(tolerances) == 1 else tolerances
    for item, tolerance in zip(golds, tolerances, strict=False):
        match = next((other for other in answers if _judge(item, other, tolerance)), None)
        if match is None:
            return False
        answers.remove(match)
    return len(tolerances) >= len(golds)


def _signed(items: list[str]) -> list[str]:
    return [
        item.replace("\\pm", sign) if "\\pm" in item else item
        for item in items
        for sign in ("+-" if "\\pm" in item else "+")
    ]


def _judge(gold: str, answer: str, tolerance: float) -> bool:
    if gold == answer and gold:
        return True
    if all(text.startswith(("(", "[")) and text.endswith((")", "]")) for text in (gold, answer)):
        try:
            if _same_intervals(gold, answer, tolerance):
                return True
        except _UNCOMPARABLE:
            return False
    tests: list[Callable[[str, str, float], bool]] = [_same_number, _same_equation]
    if not ("=" in gold and "=" in answer):
        tests.insert(1, _same_expression)
    return any(_holds(test, gold, answer, tolerance) for test in tests)


#: sympy and its parser raise anything; the judge takes it for "not equal".
_UNCOMPARABLE = (Exception,)


def _holds(
    test: Callable[[str, str, float], bool], gold: str, answer: str, tolerance: float
) -> bool:
    try:
        return test(gold, answer, tolerance)
    except MemoryError:
        raise
    except _UNCOMPARABLE:
        return False


def _same_intervals(gold: str, answer: str, tolerance: float) -> bool:
    golds, answers = gold.split("\\cup"), answer.split("\\cup")
    return len(golds) == len(answers) and all(
        g[0] == a[0]
        and g[-1] == a[-1]
        and all(
            _same_expression(x, y, tolerance)
            for x, y in zip(g.strip("[]()").split(","), a.strip("[]()").split(","), strict=False)
        )
        for g, a in zip(golds, answers, strict=True)
    )


def _same_number(gold: str, answer: str, tolerance: float) -> bool:
    g, a = float(gold), float(answer)
    return any(abs(x - a) <= tolerance * 1.01 for x in (g / 100, g, g * 100))


def _same_expression(gold: str, answer: str, tolerance: float) -> bool:
    g, a = (_parsed(t.split("=")[1] if "=" in t else t) for t in (gold, answer))
    if g == a:
        return True
    if g.has(Symbol) != a.has(Symbol):
        return False
    if g.has(Symbol):
        return bool(abs(simplify(g - a).evalf()) < 1e-3)
    if not (_computable(g) and _computable(a)):
        return False
    return bool(abs(g.evalf() - a.evalf()) <= tolerance * 1.01)


def _computable(value: Any) -> bool:
    if not isinstance(value, Pow):
        return True
    base, exponent = value.as_base_exp()
    return bool(base.is_number and exponent.is_number and abs(exponent.evalf()) <= _MAX_EXPONENT)


def _same_equation(gold: str, answer: str, tolerance: float) -> bool:
    (left, right), (other_left, other_right) = gold.split("="), answer.split("=")
    g = simplify(_parsed(left) - _parsed(right))
    a = simplify(_parsed(other_left) - _parsed(other_right))
    return any(ratio.is_Integer and ratio != 0 for ratio in (simplify(g / a), simplify(a / g)))


def _parsed(latex: str) -> Any:
    """An expression or a relation, as sympy's own parser would read: it knows no tuples."""
    found = parse_latex(unbraced(latex.strip()).replace("\\circ", "\\Theta "))
    if not isinstance(found, Expr | Relational):
        raise ValueError(f"unreadable: {latex[:80]}")
    return found
