"""Test files are read strictly: a fault is named by its line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from evals.benchmarks.problems import load_problems
from reopold.config import ConfigError

GOOD = {"id": "a", "prompt": [{"role": "user", "content": "1+1="}], "answer": "2"}


def test_problems_are_read_in_order_with_the_file_s_digest(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    # U+2028 is a line separator to str.splitlines, and plain text to JSON.
    second = GOOD | {"id": "b", "answer": "\u2028 3", "completion": "1+1=2;#2"}
    text = f"{json.dumps(GOOD)}\n\n{json.dumps(second, ensure_ascii=False)}\n"
    file.write_text(text, encoding="utf-8")
    problems = load_problems(file)
    assert [record["id"] for record in problems.records] == ["a", "b"]
    assert problems.records[0] == GOOD
    assert problems.digest == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ('{"id": "b", "prompt"', "line 2 is not JSON"),
        ("[1]", "line 2: the line"),
        (json.dumps(GOOD), "line 2: id 'a' is there twice"),
        (json.dumps({"id": "b", "answer": "2"}), "line 2: prompt: Field required"),
        (json.dumps(GOOD | {"id": "b", "answer": 2}), "line 2: answer"),
        (json.dumps(GOOD | {"id": "b", "answer": ""}), "line 2: answer"),
        (json.dumps(GOOD | {"id": "b", "prompt": []}), "line 2: prompt"),
        (json.dumps(GOOD | {"id": "b", "prompt": GOOD["prompt"] * 2}), "line 2: prompt"),  # type: ignore[operator]
        (
            json.dumps(GOOD | {"id": "b", "prompt": [{"role": "system", "content": "x"}]}),
            "line 2: prompt.0.role: Input should be 'user'",
        ),
    ],
)
def test_a_fault_is_named_by_its_line(tmp_path: Path, fault: str, message: str) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n{fault}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_problems(file)
    assert message in str(caught.value) and str(file) in str(caught.value)


def test_missing_empty_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no test problems at"):
        load_problems(tmp_path / "absent.jsonl")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_problems(tmp_path)
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(ConfigError, match="holds no problems"):
        load_problems(tmp_path / "empty")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_problems(tmp_path / "binary")
