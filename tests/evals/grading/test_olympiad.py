"""OlympiadBench: the sound rule and the authors' judge, by cases and on every gold."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.grading.assignment import assignable
from evals.grading.olympiad import grade_olympiad, parts, split_by_comma
from evals.grading.verdict import Context
from reopold.config import ConfigError

SOUND, OFFICIAL = Context("sound"), Context("official")


def row(gold: str, **fields: Any) -> dict[str, Any]:
    return {"final_answer": [gold], "answer_type": "Numerical", "error": None, **fields}


def right(gold: str, answer: str, context: Context, **fields: Any) -> bool:
    return grade_olympiad(f"So $\\boxed{{{answer}}}$.", row(gold, **fields), context).correct


@pytest.mark.parametrize(
    ("gold", "answer", "sound", "official"),
    [
        ("1,3,5", "5, 1,3", True, True),  # in any order
        ("1,3,5", "1,3", False, False),
        ("1,3", "1,3,5", False, False),
        ("-2,-2", "-2", False, False),  # each gold has an answer of its own
        ("-2,-2", "-2,-2", True, True),
        ("$(1,8), (2,7)$", "(2,7),(1,8)", True, True),
        ("$(1,8)$", "(8,1)", False, False),
        ("$1+\\sqrt{2}, 1-\\sqrt{2}$", "1 \\pm \\sqrt{2}", True, True),
        ("$\\pm 3$", "3,-3", True, True),
        ("$[2,5)$", "[2,5)", True, True),
        ("$[2,5)$", "(2,5)", False, False),
        ("$[2,5)$", "[2,5]", False, False),
        ("$[\\frac{1}{2}, 8]$", "[0.5,8]", True, True),
        ("$(-\\infty, 0) \\cup\\{1\\}$.", "(-\\infty,0)\\cup\\{1\\}", True, False),  # unread by it
        ("$221,$8$", "8,221", True, False),  # the judge reads 221 alone
        ("0.64N", "\\frac{16}{25}N", True, True),
        ("0.64N", "0.64", False, False),  # a unit is a factor
        ("0.6", "60\\%", True, False),  # it takes the sign and leaves the backslash
        ("0.6", "60%", True, True),
        ("60", "0.6", False, True),  # x/100
        ("0.5", "0.50000002", True, False),  # 1e-8
        ("1003", "1003.0", True, True),
        ("x=1", "1", True, True),
        ("x^2+y^2=1", "1-x^{2}-y^{2}=0", True, True),
        ("x^2+y^2=1", "x^{2}-y^{2}=1", False, False),
        ("$f(x)=2 x$", "f(x)=x+x", True, True),
        ("$f(x)=a x+b$, where $b$ is an integer", "f(x)=ax+b", True, False),
        ("$44^{\\circ}$", "44", True, False),
        ("$\\frac{(n-1)!}{k!} \\frac{n}{(n-k)!}$", "\\frac{n!}{k!(n-k)!}", True, True),
        ("$\\cos \\theta_1$", "\\cos \\theta _1", True, True),
        ("2", "3", False, False),
    ],
)
def test_rules(gold: str, answer: str, sound: bool, official: bool) -> None:
    assert right(gold, answer, SOUND) == sound
    assert right(gold, answer, OFFICIAL) == official


@pytest.mark.parametrize("context", [SOUND, OFFICIAL])
def test_the_rows_error_is_the_tolerance(context: Context) -> None:
    assert right("4.2", "4.25", context, error="1e-1")
    assert not right("4.2", "4.35", context, error="1e-1")
    assert not right("4.2", "4.25", context)
    assert right("4.2,7", "7.4,4.2", context, error="1e-1,0.5")
    assert not right("4.2,7", "7.4,4.4", context, error="1e-1,0.5")
    # The judge gives tuples no tolerance.
    assert not right("(4.2,7)", "(4.25,7)", context, error="1e-1", answer_type="Tuple")
    with pytest.raises(ConfigError, match="'error'"):
        right("4.2", "4.2", context, error="small")


def test_units_of_the_row_may_be_left_out() -> None:
    for answer in ("50", "50 \\text{ minutes}"):
        assert right("50", answer, SOUND, unit="minutes")
    assert right("4.2", "4.2\\%", SOUND, unit="%") and right("4.2", "0.042", SOUND, unit="%")
    assert right("$90$,$60$", "60^\\circ, 90^\\circ", SOUND, unit="^{\\circ}")
    assert not right("50", "50\\text{min}", OFFICIAL, unit="minutes")


def test_an_interval_may_be_said_of_its_variable() -> None:
    fields = {"answer_type": "Interval"}
    assert right("$t(0,4]$", "t(0,4]", SOUND, **fields)
    assert right("$t(0,4]$", "(0,4]", SOUND, **fields)
    assert right("$t(0,4]$", "t \\in (0,4]", SOUND, **fields)
    assert not right("$t(0,4]$", "(0,4)", SOUND, **fields)


def test_what_the_judge_reads_of_a_response() -> None:
    def judged(response: str, gold: str) -> bool:
        return grade_olympiad(response, row(gold), OFFICIAL).correct

    assert judged("\\boxed{9}\nSo the final answer is \\boxed{5}.", "5")
    assert judged("First \\boxed{1}, then \\boxed{2}.", "1,2")  # every box
    assert not judged("First \\boxed{1}, then \\boxed{2}.", "2")
    assert judged("some words\nso it is $5$.", "5")  # formulas of the last line
    assert not judged("\\boxed{5} and \\boxed{5", "5")  # braces must match
    sound = grade_olympiad("First \\boxed{1}, so in the end it is \\boxed{2}.", row("2"), SOUND)
    assert sound.correct and sound.extracted == "2"


def test_golds_come_as_list_or_string() -> None:
    assert grade_olympiad("\\boxed{5}", {"final_answer": "5"}, SOUND).correct
    assert grade_olympiad("\\boxed{6, 5}", {"final_answer": ["5", "6"]}, SOUND).correct
    with pytest.raises(ConfigError, match="is empty"):
        grade_olympiad("\\boxed{5}", {"final_answer": []}, SOUND)
    with pytest.raises(ConfigError, match="final_answer"):
        grade_olympiad("\\boxed{5}", {}, SOUND)


def test_a_number_that_nobody_can_compute_is_wrong_at_once() -> None:
    assert not right("10^{10^{10^{10}}}", "10^{10}", OFFICIAL)  # an example of the authors


def test_parts() -> None:
    assert split_by_comma("(1,2),[3,4) , 5", "([", ")]") == ["(1,2)", "[3,4)", "5"]
    assert parts("\\{1, 2\\}") == ["1", "2"]
    assert parts("1, \\pm 2") == ["1", "2", "- 2"]


@settings(deadline=None)
@given(st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=n, max_size=n)
))  # fmt: skip
def test_an_assignment_is_found_where_one_exists(matches: list[list[bool]]) -> None:
    size = len(matches)
    exists = any(
        all(matches[place][column] for place, column in enumerate(columns))
        for columns in itertools.permutations(range(size))
    )
    assert assignable(matches) == exists


#: Golds that the authors' judge does not find in themselves.
SPOILT = ("$f(x)=a x+b$, where", "$221,$8$")


def test_every_gold_verifies(benchmarks_dir: Path) -> None:
    path = benchmarks_dir / "olympiadbench" / "test.jsonl"
    if not path.is_file():
        pytest.skip(f"benchmark data are absent: {path}")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 675
    for place, item in enumerate(rows):
        gold = item["final_answer"][0]
        response = f"Thus \\boxed{{{gold}}}."
        assert grade_olympiad(response, item, SOUND).correct, gold
        assert grade_olympiad(response, item, OFFICIAL).correct != gold.startswith(SPOILT), gold
        other = rows[place - 1]["final_answer"][0]
        if place % 20 == 0 and other != gold:
            assert not grade_olympiad(f"Thus \\boxed{{{other}}}.", item, SOUND).correct, gold
