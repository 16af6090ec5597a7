"""The maths graders: by hand-made cases for every rule, on every gold, and by properties."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evals.grading import grade_in_workers, qwen
from evals.grading.maths import grade_gsm8k, grade_integer, grade_maths, gsm8k_gold, maths_gold
from evals.grading.verdict import NO_ANSWER, Context
from reopold.answers import equality, workers
from reopold.answers.equality import equal
from reopold.answers.workers import call_in_workers
from reopold.config import ConfigError

SOUND, OFFICIAL, PERCENT = Context("sound"), Context("official"), Context("percent")


EQUAL = [
    (r"\frac{1}{2}", r"\dfrac12"), (r"\frac{1}{2}", "0.5"), (r"\frac{1}{2}", "1/2"),
    ("1,2", "2,1"), ("1,-2", r"x=1 \text{ or } x=-2"), (r"\{1,2,3\}", r"\{3,2,1\}"),
    ("5", "x=5"), ("25", "m+n=25"), ("10,000", "10000"), ("10{,}000", "10000"),
    ("10000", r"10\,000"), ("4210_5", "4210"), (r"\text{Evelyn}", "evelyn"), (r"\text{(B)}", "B"),
    (r"2\frac12", "2.5"), ("5/2", "2 1/2"), (r"(-\infty,2]", r"x \le 2"), ("(-2,7)", "-2<x<7"),
    (r"3\pm\sqrt2", r"3-\sqrt2,3+\sqrt2"), ("90", r"90^\circ"), (r"5 \text{ cm}", "5"),
    ("12", "12 inches"), ("x^2+1", "1+x²"), ("18.90", r"\$18.90"), ("f(x)=2x", "2x"),
    ("2x", "f(x)=2x"), (r"\sqrt{2}", "1.41421"), (r"-\frac34", r"\frac{-3}{4}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
    ("6+9i", "9i+6"), ("[2,5)", r"\left[2,5\right)"), (r"x \in [-2,7]", "[-2,7]"),
    ("6.6e-34", r"6.6 \times 10^{-34}"), (r"\frac{1}{3}", "0.3333"),
    ("43/48", "0.8958333333333334"),
    (r"10\%", "10"), (r"10\%", "0.1"), ("10", r"10\%"), ("0.1", r"10\%"), (r"\frac12", r"50\%"),
    (r"\pi(R^2-r^2)", r"\pi(R-r)(R+r)"), (r"1-1/e", r"1-\frac{1}{\mathrm{e}}"),
    (r"\frac13 E_{1}+\frac23 E_{2}", r"\frac{E_1+2E_2}{3}"), ("x^2+y^2=1", "y^2+x^2-1=0"),
    (r"\binom{2n}{n}", r"\frac{(2n)!}{(n!)^2}"), (r"\emptyset", r"\varnothing"), ("7", "７"),
]  # fmt: skip
DIFFERENT = [
    (r"1-1/\mathrm{e}", r"1+1/\mathrm{e}"),  # math-verify's known false positive
    ("6.6e-34", "1e-30"), ("10^{-30}", "0." + "0" * 19 + "1"),  # equal to six decimal places
    (r"\frac{1}{3}", "0.33"), (r"\frac{1}{3}", "0.3334"), ("(1,2)", "(2,1)"), ("100", "100.4"),
    ("100000", "100001"), ("18.90", "18.91"), ("1234.56", "1234.57"), ("4210_5", "4210_7"),
    ("[2,5)", "(2,5)"), ("p-q", "q-p"), (r"\text{even}", "odd"), ("5", "-5"), ("n^2", "n^3"),
    (r"\pi(R^2-r^2)", r"\pi(r^2-R^2)"),  # both are 0 where R is r
    ("y=2x+3", "x=2y+3"), (r"\sqrt{2}", "1.41"), ("x^2+y^2=1", "x^2+y^2=2"), ("10", "0.1"),
    ("0.5", r"0.5\%"), (r"\frac{1}{90}", r"\frac{1}{90}\%"), ("1,2", "1"), ("1,2", "1,2,3"),
    (r"\text{(C)}", r"\text{(D)}"), ("5", "five hundred"), ("2", ""), ("27", "27.001"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal_answers(gold: str, answer: str) -> None:
    assert equal(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different_answers(gold: str, answer: str) -> None:
    assert not equal(gold, answer)


@pytest.mark.parametrize(
    ("gold", "response", "correct"),
    [
        ("025", r"\boxed{25}", True), (25, r"\boxed{025}", True), (27.0, r"\boxed{27}", True),
        ("27", r"\boxed{27.0}", True), ("142.0", "The answer is 142.", True),
        ("1234", r"\boxed{1,234}", True), ("25", r"\boxed{m+n=25}", True),
        ("25", r"$\boxed{\text{m+n=25}}$", True), ("336", r"\boxed{336^\circ}", True),
        ("27", r"\boxed{\frac{54}{2}}", True), ("27", r"\boxed{3^3}", True),
        ("0", r"\boxed{0}", True),
        ("25", r"\boxed{26}", False), ("25", r"\boxed{250}", False), ("27", r"\boxed{27.5}", False),
        ("25", "We try.\nPerhaps it is 25", False),
    ],
)  # fmt: skip
def test_integers(gold: Any, response: str, correct: bool) -> None:
    verdict = grade_integer(response, {"answer": gold}, SOUND)
    assert verdict.correct == correct
    assert (verdict.status == "ok") == correct


def test_a_gold_that_is_no_integer_is_refused() -> None:
    for gold in ("x", "1.5", "nan", None):
        with pytest.raises(ConfigError):
            grade_integer("1", {"answer": gold}, SOUND)


def test_maths_golds() -> None:
    assert maths_gold({"answer": "3", "solution": r"\boxed{4}"}) == "3"
    assert maths_gold({"solution": r"$\boxed{3}$ no, $\boxed{4}$"}) == "4"
    with pytest.raises(ConfigError, match="boxed"):
        maths_gold({"solution": "none"})
    with pytest.raises(ConfigError, match="'answer'"):
        maths_gold({})


@pytest.mark.parametrize(
    ("gold", "response", "sound", "official"),
    [
        (r"\frac{1}{2}", r"\boxed{\dfrac{1}{2}}", True, True),
        ("420", "So we get 420 at last, or\nperhaps 42", False, False),
        ("2", "rambling,\nthe last number of the text is 2", False, True),
        ("50", r"\boxed{0.5}", False, True),  # x/100
        ("50", r"\boxed{5000}", False, True),  # 100x
        ("100000", r"\boxed{100001}", False, True),  # within 1e-4
        ("10{,}000", r"\boxed{10000}", True, False),
        ("1,-2", r"\boxed{-2,1}", True, False),
        ("(1,2)", r"\boxed{[1,2]}", False, True),
        ("2", r"\boxed{two}", False, True),
        (r"\text{east}", r"\boxed{\text{west}}", False, True),  # both are units: nothing is left
        ("7", r"\boxed{x=7}", True, True),
        ("7", r"\boxed{7 \text{ apples}}", True, True),
        ("x^2-1", r"\boxed{(x-1)(x+1)}", True, True),
        ("8", "he answer is 8.", True, True),
        ("B", r"\boxed{\text{(B)}}", True, True),
        ("5", r"\boxed{6}", False, False),
    ],
)  # fmt: skip
def test_rules_of_maths(gold: str, response: str, sound: bool, official: bool) -> None:
    row = {"answer": gold}
    assert grade_maths(response, row, SOUND).correct == sound
    assert grade_maths(response, row, OFFICIAL).correct == official


def test_minerva_keeps_units_under_the_harness_rule() -> None:
    row = {"solution": r"It is $\boxed{37 m}$.", "type": "course", "idx": 1}
    assert grade_maths(r"\boxed{37 m}", row, OFFICIAL).correct
    assert not grade_maths(r"\boxed{37}", row, OFFICIAL).correct
    assert grade_maths(r"\boxed{37}", {**row, "level": "Level 1"}, OFFICIAL).correct


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (r"\dfrac{1}{2}", r"\frac{1}{2}"), (r"\frac12", r"\frac{1}{2}"), ("1/2", r"\frac{1}{2}"),
        ("x=5", "5"), ("ab=5", "5"), ("abc=5", "abc=5"),
        ("3.0", "3"), ("3.00x", "3x"), (".5", "0.5"),
        (r"\$5", "5"), (r"50\%", "50"), (r"5\text{ cm}", "5"), ("5 cm", "5"), ("twenty-one", "21"),
        (r"\sqrt3", r"\sqrt{3}"), (r"(-\infty,\infty)", r"\mathbb{R}"),
        ("j", "i"), ("two hundred", "200"),
        (r"\left( 3, 4 \right)", "(3,4)"), (r"90^\circ", "90"), ("infinity", r"\infty"),
    ],
)  # fmt: skip
def test_how_the_harness_writes_answers(text: str, normal: str) -> None:
    assert qwen.normalise(text) == normal


GSM = {"answer": "He has 5*1000 = <<5*1000=5000>>5000.\n#### 5,000"}


@pytest.mark.parametrize(
    ("response", "sound", "official", "percent"),
    [
        (r"\boxed{5000}", True, True, True),
        (r"\boxed{5,000 \text{ dollars}}", True, True, True),
        (r"\boxed{\$5{,}000}", True, False, False),
        ("The answer is 5000 dollars a day.", True, False, False),  # dollars are no unit to it
        ("The answer is 5000 miles a day.", True, True, True),
        ("The answer is 10000/2 = 5000", True, False, False),
        ("Steps.\n#### 5000", True, True, True),
        ("Steps.\n#### 5000.0", True, False, True),  # OpenAI's rule compares texts
        ("#### 5000\n#### 6000", False, True, False),  # and takes the first
        ("We add 1 and get 5000 cars", True, True, True),
        (r"\boxed{50}", False, False, True),  # x/100
        (r"\boxed{500000}", False, False, True),  # 100x
        (r"\boxed{5000.4}", False, True, True),  # within 1e-4
        ("```output\n5000\n```\n", False, True, True),  # printed, not said
        ("```output\n5000.0\n```\nIn 15 days he has 5000 cars, not 12", True, True, True),
        ("```output\n7\n```\n<interpreter>5000</interpreter>It is 6000.", False, False, False),
        ("no idea", False, False, False),
    ],
)
def test_rules_of_gsm8k(response: str, sound: bool, official: bool, percent: bool) -> None:
    for context, correct in ((SOUND, sound), (OFFICIAL, official), (PERCENT, percent)):
        assert grade_gsm8k(response, GSM, context).correct == correct, context.rule


def test_a_number_word_that_repeats_the_output_is_an_answer() -> None:
    row = {"answer": "#### 3"}
    text = "```output\n3.0\n```\nThree trucks will be needed for 80 stones in one trip."
    assert grade_gsm8k(text, row, SOUND).correct
    assert not grade_gsm8k(text.replace("Three", "Four"), row, SOUND).correct
    assert grade_gsm8k("no idea", GSM, SOUND) == NO_ANSWER
    with pytest.raises(ConfigError, match="####"):
        grade_gsm8k("1", {"answer": "#### none"}, SOUND)


# Every gold

#: Minerva: the harness normalises answers twice and golds once, and cuts at \text the second time.
SPOILT = {139}


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / name
    if not path.is_file():
        pytest.skip(f"benchmark data are absent: {path}")
    text = path.read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = (
        json.loads(text)
        if name.endswith(".json")
        else [json.loads(line) for line in text.splitlines()]
    )
    return rows


def test_every_integer_gold_verifies_and_its_neighbour_does_not(benchmarks_dir: Path) -> None:
    counts = []
    for name in ("aime24/test.jsonl", "aime25/test.jsonl", "amc23/test.jsonl",
                 "amc23/amc_2022_2023_83.json"):  # fmt: skip
        rows = rows_of(benchmarks_dir, name)
        counts.append(len(rows))
        for row in rows:
            gold = int(float(row.get("expected_answer", row.get("answer"))))
            assert grade_integer(f"It is $\\boxed{{{gold:03d}}}$.", row, SOUND).correct
            assert not grade_integer(f"It is $\\boxed{{{gold + 1}}}$.", row, SOUND).correct
    assert counts == [30, 30, 40, 83]


def test_every_gsm8k_gold_verifies_and_its_neighbour_does_not(benchmarks_dir: Path) -> None:
    rows = rows_of(benchmarks_dir, "gsm8k/test.jsonl")
    assert len(rows) == 1319
    for place, row in enumerate(rows):
        gold = gsm8k_gold(row)
        for context in (SOUND, OFFICIAL, PERCENT) if place % 20 == 0 else (SOUND,):
            assert grade_gsm8k(f"So \\boxed{{{gold}}}.", row, context).correct
            assert not grade_gsm8k(f"So \\boxed{{{int(gold) * 2 + 1}}}.", row, context).correct


@pytest.mark.parametrize(
    ("name", "count"), [("math500/test.jsonl", 500), ("minerva_math/test.jsonl", 272)]
)
def test_every_maths_gold_verifies(benchmarks_dir: Path, name: str, count: int) -> None:
    rows = rows_of(benchmarks_dir, name)
    assert len(rows) == count
    for row in rows:
        response = f"Thus $\\boxed{{{maths_gold(row)}}}$."
        for context in (SOUND, OFFICIAL):
            if context is OFFICIAL and row.get("idx") in SPOILT:
                continue
            assert grade_maths(response, row, context).correct, (maths_gold(row), context.rule)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["math500/test.jsonl", "minerva_math/test.jsonl"])
def test_golds_verify_as_mathematics_too(benchmarks_dir: Path, name: str) -> None:
    """Not only as the same text: what cannot be parsed is known by name."""
    unread = []
    for row in rows_of(benchmarks_dir, name):
        text, _ = equality._percent(equality.clean(maths_gold(row)))
        words = re.fullmatch(r"\\text\{.*\}|[A-Za-z ]+", text)
        if equality.number(text) is None and not words and not equality._verified(text, text + " "):
            unread.append(text)
    assert unread == ([] if "500" in name else [r"\lambda_{\text{red}} / \sqrt{2}"])


# Properties

GOLDS = [
    r"\frac{1}{2}", r"\left( 3, \frac{\pi}{2} \right)", r"\sqrt{51}", "x^3 + 3x - 6", "-2, 1, 7",
    r"\{1, 4, 9\}", "[0, 5)", r"11\sqrt{2}", r"-\frac{3}{4}", r"\text{even}", "6 - 5i", "27",
]  # fmt: skip
WAYS = {
    "spaces": lambda gold: "  " + re.sub(r"(?<!\\),", " , ", gold) + " ",
    "dfrac": lambda gold: gold.replace("\\frac", "\\dfrac"),
    "left": lambda gold: re.sub(r"(?<!\\left)\((.*)\)", r"\\left(\1\\right)", gold),
    "thin": lambda gold: gold.replace(",", ",\\,").replace("-", "-\\!"),
    "display": lambda gold: f"\\displaystyle {gold}",
    "dot": lambda gold: f"{gold}.",
    "braces": lambda gold: f"{{{gold}}}",
}
FRAMES = [
    "So $\\boxed{%s}$.", "\\boxed{%s}", "The answer is $%s$.",
    "Text.\n\\[\\boxed{ %s }\\]\n", "**Answer:** $%s$",
]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(GOLDS), st.lists(st.sampled_from(sorted(WAYS)), max_size=3, unique=True),
       st.sampled_from(FRAMES))  # fmt: skip
def test_ways_of_writing_change_no_verdict(gold: str, ways: list[str], frame: str) -> None:
    answer = gold
    for way in ways:
        answer = WAYS[way](answer)
    for other in (gold, GOLDS[GOLDS.index(gold) - 1]):
        verdict = grade_maths(frame % answer, {"answer": other}, SOUND)
        assert verdict.correct == (other == gold), (answer, other, verdict)


NUMBERS = st.fractions(min_value=-10_000, max_value=10_000, max_denominator=60)


def ways_of(value: Fraction) -> list[str]:
    a, b = abs(value.numerator), value.denominator
    sign = "-" if value < 0 else ""
    ways = [f"{sign}\\frac{{{a}}}{{{b}}}", f"{sign}{a}/{b}", f"{sign}\\dfrac{{{a}}}{{{b}}}"]
    return [*ways, f"{sign}{a}", f"{sign}00{a}", f"{sign}{a:,}", f"{sign}{a}.0"] if b == 1 else ways


@settings(deadline=None, max_examples=150)
@given(NUMBERS, NUMBERS, st.data())
def test_numbers_are_equal_if_they_are_the_same(
    gold: Fraction, answer: Fraction, data: st.DataObject
) -> None:
    written = data.draw(st.sampled_from(ways_of(gold)))
    same = data.draw(st.sampled_from(ways_of(gold)))
    other = data.draw(st.sampled_from(ways_of(answer)))
    assert equal(written, same)
    assume(gold != answer)
    assert not equal(written, other)


@settings(deadline=None, max_examples=12)
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5, unique=True), st.randoms())
def test_sets_have_no_order_and_tuples_have_one(numbers: list[int], random: Any) -> None:
    mixed = numbers[:]
    random.shuffle(mixed)
    gold, answer = (", ".join(map(str, listed)) for listed in (numbers, mixed))
    assert equal(gold, answer) and equal(f"\\{{{gold}\\}}", f"\\{{{answer}\\}}")
    assert equal(f"({gold})", f"({answer})") == (numbers == mixed)
    assert not equal(gold, answer.replace(str(mixed[0]), str(mixed[0] + 100), 1))


# Hostile answers

HOSTILE = [
    "10^(10^10)", "\\frac{" * 160 + "1" + "}{2}" * 160, "((((" * 240, "1e999999",
    "__import__('os').system('touch never')", "\u202e\u0661\u0662\u200b", "\x00\x01",
]  # fmt: skip
MORE_HOSTILE = [
    "9^{9^{9^{9}}}", "10^{10^{10^{10}}}", "(10^9)!", "\\" * 500, "100000000!!",
    "7^{10^9} \\mod 13", "9" * 999, "1e9999",
    "\\sqrt{" * 150 + "2" + "}" * 150, "\\sum_{k=1}^{10^9} \\frac{1}{k^k}", "\\int_0^1 x^x dx",
    "x^{" * 200, "eval(exec('1'))", "\\input{/etc/passwd}", "💥" * 300, "२७", "∞-∞", "$" * 500,
    "%" * 500, "\\frac{1}{0}", "\\text{" * 200, "\\begin{pmatrix}" * 60, "x=" * 400, "1," * 450,
]  # fmt: skip


def check_hostile(answers: list[str]) -> None:
    work = [
        (f"\\boxed{{{text}}}", {"answer": gold}, context)
        for text in answers
        for gold, context in (("x^2+1", SOUND), ("3", OFFICIAL))
    ]
    verdicts = grade_in_workers("evals.grading.maths:grade_maths", work)
    assert len(verdicts) == len(work)
    assert not any(verdict.correct for verdict in verdicts)
    assert not list(Path.cwd().glob("never"))


def test_hostile_answers_end_with_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CPU_SECONDS", 0.5)
    check_hostile(HOSTILE)


@pytest.mark.slow
def test_more_hostile_answers_end_with_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CPU_SECONDS", 1.0)
    check_hostile(MORE_HOSTILE)


@pytest.mark.parametrize(
    "response",
    ["\\boxed{" + "{" * 3_000_000, "\\boxed{" * 300_000, "\\boxed{1}" * 30_000,
     "answer is " * 200_000, "```output\n" * 100_000, "$" * 1_000_000, "1" * 1_000_000,
     "#### " * 200_000, "<code>" * 200_000],
    ids=["braces", "open", "many", "statements", "outputs", "dollars", "digits", "hashes", "code"],
)  # fmt: skip
def test_megabytes_are_read_in_linear_time(response: str) -> None:
    calls = [(response, {"answer": "#### 3"}, rule) for rule in (SOUND, OFFICIAL)]
    results = call_in_workers("evals.grading.maths:grade_gsm8k", calls)
    assert {result.status for result in results} == {"ok"}
    assert not any(result.value[0] for result in results)
