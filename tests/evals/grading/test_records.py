"""Records as people really have them: other types, lost fields, lists as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.grading import grade
from evals.saved import grade_file
from reopold.config import ConfigError

NUMBER = {"pid": 1, "choices": None, "precision": None, "question_type": "free_form"} | {
    "answer_type": "integer"
}
CHOICE = {"question_type": "multiple-choice", "options": ["1", "3", "2"], "answer": "C"}


@pytest.mark.parametrize(
    ("benchmark", "record", "response", "right"),
    [
        # A box that is no option is not overruled by a number beside it.
        ("mmmu", CHOICE, "The answer is \\boxed{7}. Note that side lengths exceed 2.", False),
        ("mmmu", CHOICE, "The answer is \\boxed{2}. Note that side lengths exceed 3.", True),
        ("mmmu", CHOICE, "The side lengths exceed 2.", True),
        (
            "mathvista",
            NUMBER | {"answer": "1982"},
            "So the answer is 1982 with an actual total income of $931,441.",
            True,
        ),
        (
            "mathvista",
            NUMBER | {"answer": "0"},
            "If it is not provided, it's impossible to find the value of f(0).",
            False,
        ),
        (
            "mathvista",
            NUMBER | {"answer": "2123"},
            "We do it by adding 4 to each digit of 1719, which gives us 2123.",
            True,
        ),
        (
            "mathvista",
            {"question_type": "multi_choice", "choices": "['97', '102']", "answer": "97"},
            "A",
            True,
        ),
        ("mathvision", {"id": 4, "options": "['1','6']", "answer": "B"}, "\\boxed{6}", True),
        ("mathvision", {"id": 4, "options": "[]", "answer": "6"}, "\\boxed{6}", True),
        ("olympiadbench", {"id": 1, "final_answer": ["v_{\\max}=2"]}, "\\boxed{2}", True),
        ("olympiadbench", {"id": 1, "final_answer": ["v_{\\max}=2"]}, "\\boxed{3}", False),
        ("math500", {"answer": "I_{\\text{max}}=2"}, "\\boxed{2}", True),
        ("math500", {"answer": "", "solution": "\\boxed{2}"}, "\\boxed{2}", True),
        ("olympiadbench", {"id": 1, "final_answer": "['2']"}, "\\boxed{2}", True),
        (
            "olympiadbench",
            {"id": 1, "final_answer": ["2", "3"], "is_multiple_answer": True},
            "\\boxed{3, 2}",
            True,
        ),
    ],
)
def test_verdicts(benchmark: str, record: dict[str, Any], response: str, right: bool) -> None:
    assert grade(benchmark, response, record).correct == right


def test_official_rules_read_the_same_golds() -> None:
    assert grade("gsm8k", "#### 1080", {"answer": 1080.0}, "Official").correct
    assert grade("olympiadbench", "\\boxed{2}", {"id": 1, "final_answer": "['2']"}, "official")
    with pytest.raises(ConfigError, match="no '#### number'"):
        grade("gsm8k", "#### 1080", {"answer": "He sells 16 for a total of 1080"})


def test_a_lost_function_name_is_read_off_the_starter_code() -> None:
    tests = [{"input": "1\n2", "output": "3", "testtype": "functional"}]
    record = {
        "question_id": "1",
        "starter_code": "class Solution:\n    def add(self, a: int, b: int) -> int:\n        ",
        "public_test_cases": json.dumps(tests),
        "private_test_cases": "",
        "metadata": "{}",
    }
    program = "```python\nclass Solution:\n    def add(self, a, b):\n        return a + b\n```"
    assert grade("livecodebench", program, record).correct


def write(file: Path, *records: dict[str, Any]) -> Path:
    lines = (json.dumps({"record": record, "responses": ["6"]}) for record in records)
    file.write_text("\ufeff" + "".join(line + "\n" for line in lines), encoding="utf-8")
    return file


def test_a_field_that_only_a_breakdown_needs_may_be_absent(tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", {"id": 4, "options": [], "answer": "6"})
    grades = grade_file("mathvision", file, tmp_path / "out.jsonl").as_json()
    assert grades["metrics"]["avg@1"]["value"] == 1.0
    assert not any(name.startswith("level/") for name in grades["metrics"])


def test_a_fault_found_while_grading_names_its_line(tmp_path: Path) -> None:
    good = NUMBER | {"answer": "6"}
    bad = {key: value for key, value in good.items() if key != "answer_type"}
    file = write(tmp_path / "r.jsonl", good, bad)
    with pytest.raises(ConfigError, match=r"r\.jsonl: line 2: .*answer_type"):
        grade_file("mathvista", file, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_the_input_is_not_written_over(tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", NUMBER | {"answer": "6"})
    before = file.read_bytes()
    with pytest.raises(ConfigError, match="is the input"):
        grade_file("mathvista", file, file)
    assert file.read_bytes() == before
