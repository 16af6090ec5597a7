"""Graders of maths benchmarks with one final answer."""

from __future__ import annotations

import re

from evals.benchmarks.base import Row, pick
from evals.grading import qwen
from evals.grading.verdict import NO_ANSWER, Context, Verdict, verdict
from reopold.answers.equality import clean, equal, number
from reopold.answers.extract import (
    MAX_ANSWER,
    boxed,
    closing_words,
    final_answer,
    last_output,
    own_words,
    stated,
)
from reopold.config import ConfigError

_HASHES = re.compile(r"####\s*([^\n]+)")
#: openai/grade-school-math, dataset.py: the first match is the answer.
_OPENAI = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(
    r"(?:(?<![\w)}])-)?\\?\$?"
    r"(?:[0-9]+/[0-9]+|(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:\\?%)?"
)
_TAIL = 20_000
_PROGRAM_OUTPUT = re.compile(r"```output(.*?)(?:```|\Z)", re.DOTALL)


def grade_integer(response: str, row: Row, context: Context) -> Verdict:
    r"""AIME and AMC: the gold is an integer, however it is stored ("025", 25, 25.0, "25.0").

    The answer is the clearly stated one (:func:`reopold.answers.extract.final_answer`). It is right
    if it is that integer in any form: 025, 25.0, m+n=25, \frac{50}{2}.

    Raises:
        ConfigError: the gold is no integer, or there is none.
    """
    gold = pick(row, "expected_answer", "answer", "Answer")
    try:
        value = float(str(gold).strip().strip("$").replace(",", ""))
        if value != int(value):
            raise ValueError
    except (ValueError, OverflowError):
        raise ConfigError(f"the gold answer must be an integer, not {gold!r}") from None
    return _compared(str(int(value)), final_answer(response))


def grade_maths(response: str, row: Row, context: Context) -> Verdict:
    """MATH, MATH-500, Minerva (OCW): the gold is LaTeX, in `answer` or boxed in `solution`.

    sound: the clearly stated answer, compared by :func:`reopold.answers.equality.equal`.
    official: the Qwen2.5-Math harness (:mod:`evals.grading.qwen`), which papers report.

    Raises:
        ConfigError: no gold.
    """
    gold = maths_gold(row)
    if context.rule == "sound":
        return _compared(gold, final_answer(response))
    if "answer" not in row and "level" not in row:  # Minerva: units are kept, the gold is as it is
        answer = qwen.normalise(qwen.extract(response, units=False), units=False)
        return _official(answer, qwen.extract(str(row["solution"]), units=False))
    # It normalises twice, as a second pass takes off what the first leaves ("x\\in").
    return _official(qwen.normalise(qwen.extract(response)), qwen.normalise(qwen.normalise(gold)))


def maths_gold(row: Row) -> str:
    r"""`answer`, else the last \boxed{} of `solution`.

    Raises:
        ConfigError: neither is there.
    """
    if row.get("answer") not in (None, ""):
        return str(row["answer"])
    gold = boxed(str(row.get("solution") or pick(row, "answer", "solution")))
    if gold is None:
        raise ConfigError("a record has no field 'answer' and no \\boxed{} in its 'solution'")
    return gold


def grade_gsm8k(response: str, row: Row, context: Context) -> Verdict:
    r"""GSM8K: the gold is the number after "####" in `answer`.

    sound: in what the model itself says (after the last tool output, then anywhere) the last
    \boxed{}, else what "the answer is", else what follows "####"; else, after the last output,
    the number that repeats it, else the last number. Equal as a number.
    percent: as ToRA and the Qwen harness report: last box, "he answer is", the last program
    output, the last number; within 1e-4, and x/100 or 100x for x.
    official: OpenAI's rule for responses in the data set's own format: the first "#### number",
    equal as text without commas. It says nothing of others; they are read as under `percent`,
    but x/100 and 100x are wrong.

    Raises:
        ConfigError: no gold.
    """
    gold = gsm8k_gold(row)
    if context.rule == "sound":
        return _compared(gold, _gsm8k_answer(response))
    marked = _OPENAI.search(response)
    if context.rule == "official" and marked:
        answer = marked[1].replace(",", "")
        return verdict(answer == gold, answer)
    outputs = _PROGRAM_OUTPUT.findall(response)
    if outputs and "boxed" not in response and "he answer is" not in response:
        answer = qwen.normalise(outputs[-1].strip().split("\n")[0])
    else:
        answer = qwen.normalise(qwen.extract(response))
    return _official(answer, qwen.normalise(gold), percent=context.rule == "percent")


def gsm8k_gold(row: Row) -> str:
    """The number after "####" without commas; `answer` itself where it is only a number.

    Raises:
        ConfigError: neither.
    """
    text = str(pick(row, "answer"))
    _, mark, last = text.rpartition("####")
    found = _NUMBER.search(last) if mark else _NUMBER.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"a record's 'answer' ends with no '#### number': {text[-60:]!r}")
    return re.sub(r"[$,%\\]|\.0+$", "", found[0])


def _gsm8k_answer(response: str) -> str | None:
    closing = closing_words(response)
    for text in dict.fromkeys((closing, own_words(response))):
        marked = _HASHES.findall(text)
        for answer in (boxed(text), stated(text), marked[-1] if marked else None):
            found = _number_in(answer) if answer else None
            if found is not None:
                return found
    return _reported_output(closing, response) or _last(_numbers(closing))


def _number_in(answer: str) -> str | None:
    """ "18" of "18 dollars a day" and of "20 - 2 = 18"; an answer without digits as it is."""
    if number(clean(answer)) is not None:
        return answer
    numbers = _numbers(answer)
    if not numbers:
        return answer if len(answer) <= MAX_ANSWER else None
    return (_numbers(answer.rpartition("=")[2]) or numbers)[0]


def _reported_output(closing: str, response: str) -> str | None:
    """The last tool output where the closing words repeat it, in digits or as a word: "Three
    trucks carry the 80 stones" after an output of 3.0."""
    output = (last_output(response) or "").rpartition("\n")[2]
    value = number(output)
    if value is None:
        return None
    words = (qwen.words_to_digits(word) for word in re.findall(r"[A-Za-z-]+", closing))
    repeated = (number(clean(found)) for found in (*_numbers(closing), *words))
    return output if any(said and said.value == value.value for said in repeated) else None


def _numbers(text: str) -> list[str]:
    """In a text's last characters, where answers are; without those too long for one."""
    return [n for n in map(str, _NUMBER.findall(text[-_TAIL:])) if len(n) <= MAX_ANSWER]


def _last(numbers: list[str]) -> str | None:
    return numbers[-1] if numbers else None


def _compared(gold: str, answer: str | None) -> Verdict:
    return NO_ANSWER if answer is None else verdict(equal(gold, answer), answer)


def _official(answer: str, gold: str, *, percent: bool = True) -> Verdict:
    if not answer and gold:  # of some answers the harness leaves nothing, of their golds as well
        return NO_ANSWER
    return verdict(qwen.equal(answer, gold, percent=percent), answer)
