"""BFCL's rows, prompts and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.benchmarks.base import Graded, Problem, Row
from evals.benchmarks.bfcl import (
    CATEGORIES,
    bfcl_answers,
    bfcl_category,
    bfcl_functions,
    bfcl_gold,
    bfcl_language,
    bfcl_messages,
    load_bfcl,
)
from evals.benchmarks.bfcl_metrics import COMPOSITES, bfcl_tally
from evals.grading.verdict import Verdict
from reopold.config import ConfigError


@pytest.mark.parametrize(
    ("identifier", "category"),
    [
        ("simple_python_0", "simple_python"),
        ("live_simple_12-3-0", "live_simple"),
        ("parallel_multiple_7", "parallel_multiple"),
        ("irrelevance_3", "irrelevance"),
        ("live_relevance_3-3-0", "live_relevance"),
        ("simple_java_1", "simple_java"),
        ("simple_javascript_1", "simple_javascript"),
        ("simple_0", "simple_python"),
        ("java_3", "simple_java"),
        ("javascript_3", "simple_javascript"),
    ],
)
def test_category_from_the_id(identifier: str, category: str) -> None:
    assert bfcl_category({"id": identifier}) == category


def test_category_from_its_field() -> None:
    assert bfcl_category({"id": "17", "category": "parallel"}) == "parallel"
    assert bfcl_category({"id": "simple_1", "test_category": "java"}) == "simple_java"


@pytest.mark.parametrize(
    "identifier",
    ["multi_turn_base_0", "memory_kv_3", "web_search_base_1", "format_sensitivity_0:x:y_1"],
)
def test_other_parts_of_the_leaderboard_are_refused(identifier: str) -> None:
    with pytest.raises(ConfigError, match="only the single-turn categories"):
        bfcl_category({"id": identifier})


@pytest.mark.parametrize("identifier", ["exec_simple_1", "sql_2", "7", ""])
def test_unknown_categories_are_refused(identifier: str) -> None:
    with pytest.raises(ConfigError, match="of no BFCL category"):
        bfcl_category({"id": identifier})


def test_languages() -> None:
    languages = {category: bfcl_language(category) for category in CATEGORIES}
    assert languages.pop("simple_java") == "java"
    assert languages.pop("simple_javascript") == "javascript"
    assert set(languages.values()) == {"python"}


def graded(category: str, *right: bool) -> Graded:
    row: Row = {"id": f"{category}_0"}
    verdicts = [Verdict(correct, "[]", "ok" if correct else "wrong") for correct in right]
    return Graded(Problem(row["id"], [], row, ""), verdicts)


def composite(items: list[Graded], name: str) -> float:
    tally = bfcl_tally(items)
    weights = COMPOSITES[name]
    return sum(weight * tally[part][0] / tally[part][1] for part, weight in weights.items())


def test_scores_by_hand() -> None:
    items = [
        *[graded("simple_python", True)] * 3,
        graded("simple_python", False),  # 3/4
        graded("simple_java", True, False),  # 1/2 of two samples
        graded("simple_javascript", True),  # 1
        graded("multiple", True),  # 1
        graded("parallel", False),  # 0
        *[graded("parallel_multiple", True), graded("parallel_multiple", False)],  # 1/2
        *[graded("live_simple", True)] * 2,
        graded("live_multiple", False),
        graded("live_parallel", True, True, False, False),  # 1/2
        *[graded("irrelevance", True), graded("live_irrelevance", False)],
    ]
    tally = bfcl_tally(items)
    assert tally["simple_python"] == (3.0, 4.0)
    assert tally["simple_java"] == (0.5, 1.0)
    # Weighted by count: three categories, but four items.
    assert tally["live_ast"] == (2.5, 4.0)
    assert composite(items, "simple") == pytest.approx((0.75 + 0.5 + 1) / 3)
    assert composite(items, "non_live_ast") == pytest.approx((0.75 + 1 + 0 + 0.5) / 4)
    assert composite(items, "non_live_ast_python") == pytest.approx((0.75 + 1 + 0 + 0.5) / 4)
    assert composite(items, "irrelevance_all") == pytest.approx(0.5)
    assert sum(right for right, _ in [tally["irrelevance"], tally["live_irrelevance"]]) == 1.0


def test_composites_are_means() -> None:
    for weights in COMPOSITES.values():
        assert sum(weights.values()) == pytest.approx(1.0)
        assert set(weights) <= set(CATEGORIES)


FUNCTION: dict[str, Any] = {
    "name": "f",
    "description": "Does.",
    "parameters": {
        "type": "dict",
        "properties": {
            "a": {"type": "Array", "description": "Many.", "items": {"type": "String"}},
            "b": {"type": "any", "description": "One."},
        },
        "required": ["a"],
    },
}


def shown(row: Row) -> Any:
    system = bfcl_messages(row)[0]["content"]
    return json.loads(system[system.index("in JSON:\n") + len("in JSON:\n") :].split("\n\n")[0])


def test_java_parameters_are_described_as_text() -> None:
    row: Row = {"id": "simple_java_0", "function": [FUNCTION]}
    row["question"] = [[{"role": "user", "content": "Do."}]]
    (function,) = shown(row)
    properties = function["parameters"]["properties"]
    assert {schema["type"] for schema in properties.values()} == {"string"}
    assert "items" not in properties["a"]
    assert "Java Array" in properties["a"]["description"]
    assert "String" in properties["a"]["description"]
    assert FUNCTION["parameters"]["properties"]["a"]["type"] == "Array"  # the row stays as it was
    assert bfcl_messages(row)[1:] == [{"role": "user", "content": "Do."}]


def test_a_question_brings_its_own_system_message() -> None:
    row: Row = {"id": "live_simple_0-0-0", "function": [FUNCTION]}
    row["question"] = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Do."}]
    ]
    messages = bfcl_messages(row)
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"].endswith("\n\nBe brief.")
    assert shown(row)[0]["parameters"] == FUNCTION["parameters"]
    assert row["question"][0][0]["content"] == "Be brief."


def test_malformed_rows_are_named() -> None:
    with pytest.raises(ConfigError, match="'x_1': 'function' must be"):
        bfcl_functions({"id": "x_1", "function": [{"name": "f"}]})
    with pytest.raises(ConfigError, match="no field 'ground_truth' or 'possible_answer'"):
        bfcl_answers({"id": "x_1"})
    malformed: list[Any] = [[], [{"f": {"a": 1}}], ["f()"], [{"f": {}, "g": {}}]]
    for answers in malformed:
        with pytest.raises(ConfigError, match="'x_1': 'ground_truth' must be"):
            bfcl_answers({"id": "x_1", "ground_truth": answers})
    with pytest.raises(ConfigError, match="'question' must be"):
        bfcl_messages({"id": "simple_1", "function": [FUNCTION], "question": "Do."})


def write(folder: Path, name: str, rows: list[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / f"BFCL_v4_{name}.json").write_text(text, encoding="utf-8")


def test_questions_meet_their_answers_by_id(tmp_path: Path) -> None:
    write(tmp_path, "multiple", [{"id": "multiple_0", "q": "a\u2028b"}, {"id": "multiple_1"}])
    answers = [{"id": f"multiple_{n}", "ground_truth": [{"f": {"a": [n]}}]} for n in (1, 0)]
    write(tmp_path / "possible_answer", "multiple", answers)
    write(tmp_path, "irrelevance", [{"id": "irrelevance_0"}])
    rows = load_bfcl(tmp_path)
    assert [row.get("ground_truth") for row in rows] == [
        [{"f": {"a": [0]}}],
        [{"f": {"a": [1]}}],
        None,
    ]
    assert [bfcl_gold(row) for row in rows] == [
        '[{"f": {"a": [0]}}]',
        '[{"f": {"a": [1]}}]',
        "no call",
    ]
    assert load_bfcl(tmp_path, ["irrelevance"]) == [{"id": "irrelevance_0"}]
    write(tmp_path / "possible_answer", "multiple", answers[:1])
    with pytest.raises(ConfigError, match="no possible answers for BFCL items multiple_0"):
        load_bfcl(tmp_path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no files"):
        load_bfcl(tmp_path)
    with pytest.raises(ConfigError, match="no BFCL category 'simple'"):
        load_bfcl(tmp_path, ["simple"])
    with pytest.raises(ConfigError, match="cannot be read"):
        load_bfcl(tmp_path, ["multiple"])
    (tmp_path / "BFCL_v4_irrelevance.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="not JSON Lines"):
        load_bfcl(tmp_path)


def test_published_rows_make_prompts(benchmarks_dir: Path) -> None:
    folder = benchmarks_dir / "bfcl_v4"
    if not folder.is_dir():
        pytest.skip(f"BFCL data are absent: {folder}")
    rows = load_bfcl(folder)
    counts = dict.fromkeys(CATEGORIES, 0)
    for row in rows:
        messages = bfcl_messages(row)
        assert [message["role"] for message in messages[:2]] == ["system", "user"]
        assert all(function["name"] in messages[0]["content"] for function in bfcl_functions(row))
        assert bfcl_gold(row)
        counts[bfcl_category(row)] += 1
    assert {c: n for c, n in counts.items() if n} == {
        c: CATEGORIES[c] for c, n in counts.items() if n
    }
    assert sum(counts.values()) == 1554
