"""micro_tools: lines as the suite writes them, asked as dialogues, graded by the last message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.benchmarks import find
from evals.benchmarks.problems import load_problems
from evals.grading import grade
from reopold.config import ConfigError
from reopold.environments import find_environment
from reopold.micro.tools import write
from reopold.study_config import MicroConfig

TOOLS = find("micro_tools")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    write(
        tmp_path / "micro_tools",
        MicroConfig(train_problems=2, validation_problems=2, test_problems=6),
    )
    return tmp_path


def test_a_suite_is_found_by_its_folder(suite: Path) -> None:
    problems = load_problems(TOOLS, suite).problems
    assert len({problem.id for problem in problems}) == 6
    assert find_environment(TOOLS.environment).style == "tool_call"
    for problem in problems:
        assert problem.row["environment"] == TOOLS.environment
        assert [m["role"] for m in problem.messages] == ["user"]
        assert grade("micro_tools", f"#{problem.gold}", problem.row).correct
        assert not grade("micro_tools", problem.gold, problem.row).correct
        assert not grade("micro_tools", f"#{int(problem.gold) + 1}", problem.row).correct


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environment": "python"}, "environment: Input should be 'calculator'"),
        ({"environment": None}, "environment"),
        ({"images": ["a.png"]}, "images: List should have at most 0 items"),
    ],
)
def test_a_faulty_line_is_named(suite: Path, change: dict[str, Any], message: str) -> None:
    file = suite / "micro_tools" / "test.jsonl"
    first, *_ = file.read_text().splitlines()
    file.write_text(json.dumps(json.loads(first) | change))
    with pytest.raises(ConfigError, match=message):
        load_problems(TOOLS, suite)
