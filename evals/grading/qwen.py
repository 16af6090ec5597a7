"""The rule of the Qwen2.5-Math evaluation harness, which most published MATH, Minerva and
OlympiadBench scores come from (evaluation/parser.py and grader.py of QwenLM/Qwen2.5-Math; ToRA's
is its ancestor).

It is lenient: a text without a stated answer is credited with its last number, x/100 and 100x are
taken for x, numbers agree within 1e-4, text in braces is cut off as a unit. Where its symbolic
comparison tries three parsers, this one has latex2sympy alone, and nothing is ever evaluated as
Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isclose
from typing import Any

from sympy import MatrixBase, N, simplify

from reopold.answers.extract import MAX_ANSWER
from reopold.answers.latex import parse_latex

#: Words that are cut off as units, in the harness's order and with its oddities.
_UNIT_NAMES = (
    "east|degree|mph|kmph|ft|m sqaure| m east|sq m|deg|mile|q .|monkey|prime|ratio|profit of rs|rd"
    "|o|gm|p . m|lb|tile|per|dm|lt|gain|ab|way|west|a .|b .|c .|d .|e .|f .|g .|h .|t|a|h"
    "|no change|men|soldier|pie|bc|excess|st|inches|noon|percent|by|gal|kmh|c|acre|rise|a . m|th"
    "|π r 2|sq|mark|l|toy|coin|sq . m|gallon|° f|profit|minw|yr|women|feet|am|pm|hr|cu cm|square"
    "|v â € ™|are|rupee|rounds|cubic|cc|mtr|s|ohm|number|kmph|day|hour|minute|min|second|man|woman"
    "|sec|cube|mt|sq inch|mp|∏ cm ³|hectare|more|sec|unit|cu . m|cm 2|rs .|rs|kg|g|month|km|m|cm"
    "|mm|apple|liter|loss|yard|pure|year|increase|decrease|d|less|Surface|litre|pi sq m|s .|metre"
    "|meter|inch"
)
_UNIT_PATTERNS = tuple(
    re.compile(rf"(^|\W){unit}{plural}($|\W)")
    for plural in ("", "s")
    for unit in _UNIT_NAMES.split("|")
)

_Step = Callable[[str], str]


def _replacing(*pairs: tuple[str, str]) -> _Step:
    def step(text: str) -> str:
        for old, new in pairs:
            text = text.replace(old, new)
        return text

    return step


def _substituting(*pairs: tuple[str, str]) -> _Step:
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in pairs]

    def step(text: str) -> str:
        for pattern, replacement in compiled:
            text = pattern.sub(replacement, text)
        return text

    return step


_BRACKETS_AND_NAMES = _replacing(
    ("bmatrix", "pmatrix"), ("tfrac", "frac"), ("dfrac", "frac"),
    ("\\neq", "\\ne"), ("\\leq", "\\le"), ("\\geq", "\\ge"),
    ("\\left", ""), ("\\right", ""), ("\\{", "{"), ("\\}", "}"),
)  # fmt: skip
_SIGNS = _replacing(
    ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""), ("$", ""), ("\\(", ""), ("\\)", "")
)
_VARIABLES = _replacing(
    *((f"{name}{sign}", "") for sign in ("=", "\\in", "\\to") for name in "xyz"),
    ("\\emptyset", "{}"), ("(-\\infty,\\infty)", "\\mathbb{R}"),
    ("\\%", ""), ("%", ""), (" .", " 0."), ("{.", "{0."), ("infinity", "\\infty"),
)  # fmt: skip
_ARRAYS = _substituting(
    (r"\\begin\{array\}\{.*?\}", r"\\begin{pmatrix}"), (r"\\end\{array\}", r"\\end{pmatrix}")
)
_TRAILING_ZEROS = _substituting((r"(\d+)\.0*([^\d])", r"\1\2"), (r"(\d+)\.0*$", r"\1"))
_FRACTIONS = _substituting(
    (r"\\frac([^{])([^{])", r"\\frac{\1}{\2}"), (r"\\frac([^{])\{", r"\\frac{\1}{")
)
_SLASH = re.compile(r"(-?(?:0|[1-9]\d*)|[^/]*sqrt[^/]*)/(-?(?:0|[1-9]\d*)|[^/]*sqrt[^/]*)")

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: value for value, word in enumerate(_SMALL.split())} | {
    word: 10 * value for value, word in enumerate(_TENS.split(), start=2)
}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}


def extract(response: str, *, units: bool = True, last_number: bool = True) -> str:
    """The answer that the harness reads off a response, normalised; "" if there is none or one of
    more than MAX_ANSWER characters.

    Args:
        units: cut off words that stand for units (Minerva keeps them).
        last_number: fall back to the last number of the text.
    """
    text = response.replace("\u043a\u0438", "")
    if "final answer is $" in text and "$. I hope" in text:
        found = text.split("final answer is $", 1)[1].split("$. I hope", 1)[0].strip()
    elif "boxed" in text:
        found = _after_box(text.rsplit("boxed", 1)[1])
    elif "he answer is" in text:
        found = text.rsplit("he answer is", 1)[1].strip()
    elif "final answer is" in text:
        found = text.rsplit("final answer is", 1)[1].strip()
    elif "答案是" in text:
        found = text.split("答案是")[1].strip().split("\n\n")[0].strip()
    else:
        numbers = re.findall(r"-?\d*\.?\d+", text.replace(",", "")) if last_number else []
        found = numbers[-1] if numbers else ""
    if len(found) > MAX_ANSWER:
        return ""
    found = re.sub(r"\n\s*", "", found).removeprefix(":").removesuffix(".").removesuffix("/")
    return normalise(found, units=units)


def _after_box(text: str) -> str:
    if not text.startswith("{"):
        return text.split("$")[0].strip()
    depth = 0
    for place, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return text[1:place]
    return text[1:]


def normalise(text: str, *, units: bool = True) -> str:
    """The harness's way of writing an answer (its strip_string)."""
    text = text.strip().replace("\n", "").rstrip(".").replace("\\!", "")
    text = _BRACKETS_AND_NAMES(_ARRAYS(text))
    text = re.sub(r"\\text{.*?}$", "", text).strip() or text
    if units and any(char.isalpha() for char in text):
        for pattern in _UNIT_PATTERNS * 2:
            text = pattern.sub(r"\1\2", text) or text
    text = words_to_digits(_SIGNS(text))
    text = _VARIABLES(re.sub(r"\\text\{(.*?)\}", r"\1", text))
    if "\\infty" not in text:
        text = text.replace("inf", "\\infty")
    text = re.sub(r"\\mbox{.*?}", "", text.replace("and", "").replace("\\mathbf", ""))
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    text = _TRAILING_ZEROS(text)
    if text.startswith("."):
        text = "0" + text
    name, _, value = text.partition("=")
    if text.count("=") == 1 and len(name) <= 2:
        text = value
    text = re.sub(r"\\sqrt(\w+)", r"\\sqrt{\1}", text).replace(" ", "")
    text = _FRACTIONS(text)
    slash = _SLASH.fullmatch(text)
    return f"\\frac{{{slash[1]}}}{{{slash[2]}}}" if slash else text


def words_to_digits(text: str) -> str:
    """ "twenty-one" as 21; a text without such words as it is."""
    words = [w for w in text.lower().replace("-", " ").split() if w in _WORDS or w in _SCALES]
    if not words:
        return text
    total, group = 0, 0
    for word in words:
        if word in _WORDS:
            group += _WORDS[word]
        elif word == "hundred":
            group = (group or 1) * 100
        else:
            total, group = total + (group or 1) * _SCALES[word], 0
    return str(total + group)


def equal(answer: str, gold: str, *, percent: bool = True) -> bool:
    """Whether the harness calls a normalised answer right (its math_equal).

    Args:
        percent: take x/100 and 100x for x.
    """
    if answer.strip().lower() == gold.strip().lower():
        return True
    if gold in ("A", "B", "C", "D", "E") and _choice(answer) == gold:
        return True
    a, g = _digits(answer), _digits(gold)
    if a is not None and g is not None:
        return any(isclose(x, a, rel_tol=1e-4) for x in ([g / 100, g, g * 100] if percent else [g]))
    if not answer:
        return False
    answer, gold = answer.strip(), gold.strip()
    return (
        _same_without_brackets(answer, gold)
        or _same_parts(answer, gold, percent)
        or _same_matrix(answer, gold, percent)
        or _same_equation(answer, gold, percent)
        or _symbolic(answer, gold)
    )


def _choice(text: str) -> str:
    text = text.strip("\n").rstrip(".").rstrip("/").strip(" ").lstrip(":")
    letters = re.findall(r"\b(A|B|C|D|E)\b", text.upper())
    return str(letters[-1]) if letters else text.strip().strip(".").rstrip(".").rstrip("/")


def _digits(text: str) -> float | None:
    text = text.replace(",", "")
    try:
        return float(text)
    except ValueError:
        pass
    if text.endswith("%"):
        try:
            return float(text[:-1].removesuffix("\\")) / 100
        except ValueError:
            pass
    return None


def _same_without_brackets(answer: str, gold: str) -> bool:
    if "pmatrix" in answer and "pmatrix" not in gold:
        gold = _as_matrix(gold)
    square = answer.startswith("[") and answer.endswith("]") and not gold.startswith("(")
    round_ = answer.startswith("(") and answer.endswith(")") and not gold.startswith("[")
    if square or round_:
        answer, gold = answer.strip("[]()"), gold.strip("[]()")
    drop = str.maketrans("", "", "{}()")
    return answer.translate(drop).lower() == gold.translate(drop).lower()


def _as_matrix(text: str) -> str:
    rows = (found.strip("{}").replace(",", "\\") for found in re.findall(r"\{.*,.*\}", text))
    return ", ".join(f"\\begin{{pmatrix}}{row}\\end{{pmatrix}}" for row in rows)


def _same_parts(answer: str, gold: str, percent: bool) -> bool:
    """Tuples and intervals, element by element; the kind of bracket does not matter."""
    if not all(re.match(r"(\(|\[).+(\)|\])", text) for text in (answer, gold)):
        return False
    return _all_equal(answer[1:-1].split(","), gold[1:-1].split(","), percent)


def _all_equal(answers: list[str], golds: list[str], percent: bool) -> bool:
    return len(answers) == len(golds) and all(
        equal(answer, gold, percent=percent) for answer, gold in zip(answers, golds, strict=True)
    )


def _same_matrix(answer: str, gold: str, percent: bool) -> bool:
    begin, end = "\\begin{pmatrix}", "\\end{pmatrix}"
    if not all(text.startswith(begin) and text.endswith(end) for text in (answer, gold)):
        return False
    rows, gold_rows = (
        [row.strip() for row in text[len(begin) : -len(end)].split("\\\\") if row.strip()]
        for text in (answer, gold)
    )
    return len(rows) == len(gold_rows) and all(
        _all_equal(row.split("&"), gold_row.split("&"), percent)
        for row, gold_row in zip(rows, gold_rows, strict=True)
    )


def _same_equation(answer: str, gold: str, percent: bool) -> bool:
    if answer.count("=") == 1 and gold.count("=") == 1:
        (left, right), (gold_left, gold_right) = answer.split("="), gold.split("=")
        difference = f"{left.strip()} - ({right.strip()})"
        gold_difference = f"{gold_left.strip()} - ({gold_right.strip()})"
        return _symbolic(difference, gold_difference) or _symbolic(
            f"-({difference})", gold_difference
        )
    name, _, value = answer.partition("=")
    if answer.count("=") == 1 and len(name.strip()) <= 2 and "=" not in gold:
        return equal(value, gold, percent=percent)
    name, _, value = gold.partition("=")
    if gold.count("=") == 1 and len(name.strip()) <= 2 and "=" not in answer:
        return equal(answer, value, percent=percent)
    return False


def _symbolic(answer: str, gold: str) -> bool:
    a, g = _parsed(answer), _parsed(gold)
    if a is None or g is None:
        return False
    return any(_holds(test, a, g) for test in (_identical, _numerically_close, _close_matrices))


def _holds(test: Callable[[Any, Any], bool], a: Any, g: Any) -> bool:
    try:
        return test(a, g)
    except MemoryError:
        raise
    except Exception:  # sympy raises anything; the harness takes it for "no"
        return False


def _parsed(text: str) -> Any:
    # The harness's first parser stops at a comma outside brackets and ignores the rest.
    for latex in dict.fromkeys((text.replace("\\\\", "\\"), text)):
        found = parse_latex(re.split(r",(?![^(\[{]*[)\]}])", latex)[0])
        if found is not None:
            return found
    return None


def _identical(a: Any, g: Any) -> bool:
    if str(a) == str(g) or a == g:
        return True
    if hasattr(a, "lhs") and hasattr(g, "lhs"):
        return bool(abs(a.lhs - a.rhs).equals(abs(g.lhs - g.rhs)))
    return bool(a.equals(g)) or bool(simplify(a - g) == 0)


def _numerically_close(a: Any, g: Any) -> bool:
    return isclose(float(N(g)), float(N(a)), rel_tol=1e-4)


def _close_matrices(a: Any, g: Any) -> bool:
    if not (isinstance(a, MatrixBase) and isinstance(g, MatrixBase) and a.shape == g.shape):
        return False
    rounded, gold_rounded = (m.applyfunc(lambda x: round(x, 3)) for m in (a, g))
    return bool(rounded.equals(gold_rounded))
