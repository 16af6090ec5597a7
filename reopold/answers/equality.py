"""Whether two mathematical answers are the same.

math-verify decides (its parser needs antlr 4.13: 4.11 misreads percent signs), after the cheap
cases and within guards against what it is known to get wrong. It can hang on hostile answers, so
all of this runs in workers.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, count
from typing import Any

from latex2sympy2_extended import NormalizationConfig, normalize_latex
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy import Expr, Float, Rational, Symbol

from reopold.answers.extract import MAX_ANSWER
from reopold.answers.latex import parse_latex

# It warns, once per process, that nobody limits its time: workers do.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_NORMALISATION = NormalizationConfig(
    basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none"
)

#: Numbers given as decimals agree within this, relative to the gold, and half a unit of the last
#: digit that the coarser one shows.
RELATIVE = Fraction(1, 10_000)
#: Decimals that a program printed are off in their last digits.
_FLOATING = Fraction(1, 10**9)
#: Exact expressions that differ by more than this, relatively, at a test point are not equal.
_EXACT = 1e-9

_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/",
    "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "°": r"^{\circ}", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "⁄": "/",
    "∅": r"\emptyset ", "\u200b": "", "\ufeff": "",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")

_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|bigg?[lr]?|Bigg?[lr]?)(?![A-Za-z])\.?", ""),
        (r"\\[dtc]frac(?![a-z])", r"\\frac"),
        (r"\\displaystyle(?![a-z])|\\(?:rm|bf)(?![a-z])", ""),
        (r"\\(?:mathbf|textbf|boldsymbol|bm)\s*\{([^{}]*)\}", r"\1"),
        # The constants, which units are not.
        (r"\\(?:mathrm|text)\s*\{\s*([ei])\s*\}", r"\1 "),
        (r"\\(?:mathrm|mbox|textrm|textit|textnormal|operatorname)(?![a-z])", r"\\text"),
        (r"\\text\s*\{[~\s]*", r"\\text{"),
        (r"\bnp\.(arc)?(sin|cos|tan)", r"\\\1\2"),
        (r"(?<=[0-9])\\[,;: ](?=[0-9]{3})|\\!", ""),
        (r"\{,\}", ","),
        (r"\\[,;: ]|~|\\q?quad(?![a-z])", " "),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))|\\degree(?![a-z])", ""),
        (r"\\\$|[$€£¥]|\\[()\[\]]", ""),
        (r"\\geqslant(?![a-z])|\\geq(?![a-z])", r"\\ge"),
        (r"\\leqslant(?![a-z])|\\leq(?![a-z])", r"\\le"),
        (r",?\s*\\text\{(?:and|or)\s*\}|,?(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])", ","),
        (r"(?<![\\A-Za-z])([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)", r"\1\\frac{\2}{\3}"),
        (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
        (r"\s+", " "),
    )
)

_NUMBER = r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]*)?"
_PLAIN = re.compile(
    rf"(?P<digits>{_NUMBER})"
    r"(?:\s*(?:[eE]|\\(?:cdot|times)\s*10\s*\^)\s*(?P<power>\{?\s*[-+]?[0-9]{1,4}\s*\}?))?"
    r"(?:_\{?\s*(?P<base>[0-9]+)\s*\}?)?"
)
_RATIO = re.compile(
    r"(?P<sign>[-+]?)(?:\\frac\{\s*(?P<a>-?[0-9]+)\s*\}\s*\{\s*(?P<b>-?[0-9]+)\s*\}"
    r"|(?P<c>[0-9]+)\.?\s*/\s*(?P<d>[0-9]+)\.?)"
)
_SCIENTIFIC = re.compile(r"(?<![A-Za-z0-9\\])([0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE]([-+]?[0-9]{1,4})\b")
_UNIT = re.compile(
    r"(?<=[0-9}).])\s*(?:\\cdot\s*)?/?\s*\\text\s*\{[^{}]*\}(?:\s*\^\s*(?:\{\s*-?[0-9]+\s*\}|[0-9]))?$"
)
_WORDS = re.compile(
    rf"(?P<number>{_NUMBER})\s+(?!(?:pi|sin|cos|tan|log|ln|exp|sqrt|mod|to)\b)"
    r"[A-Za-z]{2,}(?:[ /-]+[A-Za-z]+)*\.?(?:\^\{?[0-9]\}?)?"
)
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*(?:percent|\\?%)\s*\}|\s(?:percent|per cent))$")
_INDEX = (
    r"_(?:\{\s*(?:\\(?:max|min)|\\text\s*\{[^{}]*\}|[A-Za-z0-9]+)\s*\}"
    r"|\\(?:max|min)|\\text\s*\{[^{}]*\}|[A-Za-z0-9]+)"
)
_NAME = rf"\s*[A-Za-z](?:{_INDEX})?(?:\s*\([a-z](?:,\s*[a-z])*\))?\s*"
_ASSIGNED = re.compile(rf"(?:^|(?<=,)){_NAME}=\s*")
_ELEMENT = re.compile(rf"^{_NAME}\\in(?![a-z])\s*")


@dataclass(frozen=True)
class _Number:
    value: Fraction
    step: Fraction | None
    """Unit of the last digit shown; None for integers and fractions, which are exact."""
    base: str | None = None


@lru_cache(maxsize=1 << 14)
def equal(gold: str, answer: str) -> bool:
    """Whether an answer, without its box, is the gold one.

    Text that is the same but for LaTeX's ways of writing it is equal. Integers and fractions must
    be the same; decimals agree within :data:`RELATIVE` and what their digits say. Units, degrees
    and currency signs are decoration. "10%" equals "10" (the question asked for percent) and 0.1.
    Lists are order-free, tuples are not. A gold without a base or an assignment accepts any.
    """
    if len(answer) > MAX_ANSWER:
        return False
    (gold, of_gold), (answer, of_answer) = _percent(clean(gold)), _percent(clean(answer))
    if not answer:
        return False
    a, b = number(gold), number(answer)
    # "1/2 %" is no way to write a half, but "50 %" may be asked for by "how many percent".
    if (of_gold or not of_answer or (a is not None and abs(a.value) >= 1)) and _same(gold, answer):
        return True
    if of_gold == of_answer or a is None or b is None:
        return False
    return _agree(_share(a), b) if of_gold else _agree(a, _share(b))


def clean(text: str) -> str:
    """One way of writing where LaTeX has many: spaces, fractions, brackets, signs, units."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    text = unicodedata.normalize("NFKC", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = unbraced(text.strip().strip("*").rstrip(".,;: ")).rstrip(".,;: ")
    framed = re.fullmatch(r"\\text\s*\{([^{}]*[0-9=+][^{}]*)\}", text)
    text = framed[1] if framed else text
    stripped = _UNIT.sub("", text)
    while stripped and stripped != text:
        text, stripped = stripped, _UNIT.sub("", stripped)
    words = _WORDS.fullmatch(text)
    text = words["number"] if words and words["number"] else text
    return text.strip()


def unbraced(text: str) -> str:
    """Without braces around the whole of it."""
    while text.startswith("{") and text.endswith("}"):
        depths = accumulate((char == "{") - (char == "}") for char in text)
        if 0 in list(depths)[:-1]:
            break
        text = text[1:-1].strip()
    return text


def number(text: str) -> _Number | None:
    """A cleaned answer that is a single number."""
    ratio = _RATIO.fullmatch(text)
    if ratio:
        above, below = int(ratio["a"] or ratio["c"]), int(ratio["b"] or ratio["d"])
        sign = -1 if ratio["sign"] == "-" else 1
        return _Number(sign * Fraction(above, below), None) if below else None
    plain = _PLAIN.fullmatch(text)
    if plain is None or not any(char.isdigit() for char in plain["digits"]):
        return None
    digits = plain["digits"].replace(",", "").rstrip(".")
    power = int(plain["power"].strip("{} ")) if plain["power"] else 0
    decimals = len(digits.partition(".")[2])
    scale = Fraction(10) ** power
    step = Fraction(1, 10**decimals) * scale if decimals or plain["power"] else None
    return _Number(Fraction(digits) * scale, step, plain["base"])


def _percent(text: str) -> tuple[str, bool]:
    """The text without a percent sign at its end, and whether it had one."""
    stripped = _PERCENT.sub("", text)
    return (stripped, True) if stripped and stripped != text else (text, False)


def _share(percent: _Number) -> _Number:
    step = percent.step / 100 if percent.step else None
    return _Number(percent.value / 100, step, percent.base)


def _agree(gold: _Number, answer: _Number) -> bool:
    if gold.base and answer.base and gold.base != answer.base:
        return False
    difference = abs(gold.value - answer.value)
    return difference <= _tolerance(abs(gold.value), gold, answer)


def _tolerance(size: Fraction, *numbers: _Number | None) -> Fraction:
    steps = [number.step for number in numbers if number is not None and number.step is not None]
    if not steps:
        return Fraction(0)
    return min(RELATIVE * size, max(max(steps) / 2, _FLOATING * size))


def _same(gold: str, answer: str) -> bool:
    if _key(gold) == _key(answer):
        return True
    gold, answer = _ELEMENT.sub("", gold), _ELEMENT.sub("", answer)
    if "=" not in gold:
        answer = _ASSIGNED.sub("", answer) or answer
        if answer.count("=") == 1 and "," not in answer:
            answer = answer.partition("=")[2].strip() or answer
    elif "=" not in answer:
        gold = _ASSIGNED.sub("", gold) or gold
    a, b = number(gold), number(answer)
    if a is not None and b is not None:
        return _agree(a, b)
    return _verified(gold, answer)


def _key(text: str) -> str:
    """For comparing as text."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", re.sub(r"\s+", "", text))
    return text.casefold() if re.fullmatch(r"[A-Za-z.'-]{2,}", text) else text


def _verified(gold: str, answer: str) -> bool:
    """math-verify's verdict, unless numbers contradict it; decimals by our own tolerance."""
    a, b = _parse(gold), _parse(answer)
    if a is None or b is None:
        return False
    decimals = [number(gold), number(answer)]
    if verify(a, b, allow_set_relation_comp=True, timeout_seconds=None):
        return not _contradicted(a, b)
    if any(decimals) and not (a.free_symbols or b.free_symbols):
        x, y = _values(a, b)
        if x is not None and y is not None and not (x.imag or y.imag):
            tolerance = float(_tolerance(Fraction(abs(x.real)), *decimals))
            return abs(x - y) <= tolerance
    return False


def _parse(text: str) -> Any:
    """As a sympy object; None if it is no expression."""
    latex = _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    normal = normalize_latex(latex, config=_NORMALISATION)
    return parse_latex(normal, real=not should_treat_as_complex(normal))


def _contradicted(gold: Any, answer: Any) -> bool:
    """Whether two expressions called equal have different values at a point.

    math-verify rounds to six places after the point, so that 1e-30 equals 6.6e-34, and takes
    1-1/e for 1+1/e in some spellings (its own tests keep the case).
    """
    x, y = _values(gold, answer)
    if x is None or y is None:
        return False
    exact = not (gold.has(Float) or answer.has(Float))
    return abs(x - y) > (_EXACT if exact else float(RELATIVE)) * max(abs(x), abs(y))


def _values(gold: Any, answer: Any) -> tuple[complex | None, complex | None]:
    """Both at the same arbitrary point; None for what has no value there."""
    if not (isinstance(gold, Expr) and isinstance(answer, Expr)):
        return None, None
    names = sorted({symbol.name for symbol in gold.free_symbols | answer.free_symbols})
    point = dict(zip(names, (Rational(5 * k + 8, 7) for k in count()), strict=False))
    return _value(gold, point), _value(answer, point)


def _value(expression: Expr, point: dict[str, Rational]) -> complex | None:
    symbols = [symbol for symbol in expression.free_symbols if isinstance(symbol, Symbol)]
    try:
        value = complex(expression.subs({s: point[s.name] for s in symbols}).evalf(20))
    except (TypeError, ValueError, OverflowError, ArithmeticError):
        return None
    return value if abs(value) < float("inf") else None


def either_way(answer: str, other: str) -> bool:
    """Whether one of them, taken as gold, makes the other right: :func:`equal` is not symmetric."""
    return equal(answer, other) or equal(other, answer)
