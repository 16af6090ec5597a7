"""`reopold grade`: saved outputs in, verdicts and metrics out, or one clear message and nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.saved import grade_file
from evals.scores import Unscored
from reopold.config import ConfigError

LINES = [
    {"record": {"id": "a", "prompt": [], "answer": "3"}, "responses": ["#3", "#4", "#3", "none"]},
    {"record": {"id": "b", "prompt": [], "answer": "5"}, "responses": ["#1", "#2", "#1", "#5"]},
]


def write(path: Path, lines: list[Any]) -> Path:
    text = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
    path.write_text(text, encoding="utf-8")
    return path


def test_verdicts_and_metrics(tmp_path: Path) -> None:
    file, out = write(tmp_path / "r.jsonl", LINES), tmp_path / "r.graded.jsonl"
    grades = grade_file("micro_maths", file, out).as_json()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a", "b"]
    assert [v["correct"] for v in rows[0]["verdicts"]] == [True, False, True, False]
    assert rows[0]["verdicts"][3] == {"correct": False, "extracted": None, "status": "no_answer"}
    assert set(rows[1]["verdicts"][0]) == {"correct", "extracted", "status"}
    metrics = grades["metrics"]
    assert (grades["n"], grades["responses"], grades["correct"]) == (2, 8, 3)
    assert metrics["avg@4"]["value"] == pytest.approx(3 / 8)
    assert metrics["pass@1"]["value"] == pytest.approx(3 / 8)
    # Of a two right of four, of b one: 1 - C(2,2)/C(4,2) = 5/6 and 1 - C(3,2)/C(4,2) = 1/2.
    assert metrics["pass@2"]["value"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert metrics["pass@4"]["value"] == 1.0
    # a: two votes for 3, one for 4; b: two for 1.
    assert metrics["maj@4"]["value"] == pytest.approx(0.5)
    assert grades["statuses"] == {"no_answer": 1, "ok": 3, "wrong": 4}
    assert grades["no_answer_fraction"] == 1 / 8
    assert metrics["avg@4"]["low"] < 3 / 8 < metrics["avg@4"]["high"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is not JSON"),
        ("[" * 100_000, "line 2: is not JSON"),
        ({"record": {}}, "line 2: is not"),
        ({"record": 1, "responses": ["x"]}, "line 2: record is no JSON object"),
        ({"record": {"id": "c", "answer": "1"}, "responses": []}, "line 2: responses is no list"),
        ({"record": {"id": "c", "answer": "1"}, "responses": [1]}, "line 2: responses holds"),
        ({"record": {"id": "c"}, "responses": ["x"]}, "line 2: a record has no field"),
    ],
)
def test_a_malformed_line_is_named_and_nothing_is_written(
    tmp_path: Path, line: Any, message: str
) -> None:
    file = write(tmp_path / "r.jsonl", [LINES[0], line, LINES[1]])
    with pytest.raises(ConfigError) as caught:
        grade_file("micro_maths", file, tmp_path / "out.jsonl")
    assert message in str(caught.value) and "Nothing was graded" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["r.jsonl"]


def test_other_bad_input(tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", LINES)
    for arguments, message in (
        (("micro_math", file, tmp_path / "o"), "did you mean 'micro_maths'"),
        (("micro_maths", tmp_path / "absent", tmp_path / "o"), "cannot be read"),
        (("micro_maths", write(tmp_path / "e", []), tmp_path / "o"), "holds no responses"),
        (("micro_maths", file, file / "sub" / "o"), "cannot write"),
    ):
        with pytest.raises(ConfigError, match=message):
            grade_file(*arguments)
    with pytest.raises(ConfigError, match="has no rule 'legacy'; it has: sound"):
        grade_file("micro_maths", file, tmp_path / "o", rule="legacy")


def test_a_broken_sandbox_is_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evals.saved
    from evals.grading import Verdict

    broken = Verdict(False, None, "sandbox_failure")
    monkeypatch.setattr(evals.saved, "grade_many", lambda *_: [broken] * 8)
    with pytest.raises(Unscored, match="8 of 8 responses"):
        grade_file("micro_maths", write(tmp_path / "r.jsonl", LINES), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_line_without_an_id_is_named_by_its_number(tmp_path: Path) -> None:
    lines = [{"record": {"answer": "1"}, "responses": ["#1"]}]
    out = tmp_path / "out.jsonl"
    grade_file("micro_maths", write(tmp_path / "r.jsonl", lines), out)
    assert json.loads(out.read_text())["id"] == "line-1"
