"""micro_visual: lines as the suite writes them, scored as a whole and by version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.benchmarks import find
from evals.benchmarks.base import Graded, Problem
from evals.benchmarks.problems import load_problems
from evals.grading import grade
from reopold.config import ConfigError
from reopold.micro.visual import write
from reopold.study_config import MicroConfig

VISUAL = find("micro_visual")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    config = MicroConfig(train_problems=2, validation_problems=2, test_problems=6)
    write(tmp_path / "micro_visual", config)
    return tmp_path


def test_a_suite_is_found_by_its_folder_and_its_pictures_beside_it(suite: Path) -> None:
    problems = load_problems(VISUAL, suite).problems
    assert len(problems) == 6
    for text, vision in zip(problems[::2], problems[1::2], strict=True):
        assert text.row["version"] == "text_dominant" and vision.row["version"] == "vision_only"
        assert text.cluster == vision.cluster and text.gold == vision.gold
        assert text.images == vision.images
        (image,) = text.images
        assert Path(image).is_file() and Path(image).parent == suite / "micro_visual" / "images"
    assert len({problem.cluster for problem in problems}) == 3
    # A limit keeps both versions of a problem.
    assert [p.id for p in load_problems(VISUAL, suite, limit=3).problems] == [
        p.id for p in problems[:2]
    ]


def test_versions_are_scored_by_hand() -> None:
    def graded(version: str, *responses: str) -> Graded:
        row = {"id": f"c1s2t3d4/cs+/{version}", "version": version, "answer": "3"}
        problem = Problem(row["id"], [], row, "3")
        return Graded(problem, [grade("micro_visual", text, row) for text in responses])

    pair = [
        graded("text_dominant", "c1s2;1+2=3;#3", "c1s2;1+2=3;#3"),
        graded("vision_only", "c1s4;1+4=5;#5", "c1s2;1+2=3;#3"),
    ]
    assert VISUAL.tally is not None
    assert VISUAL.tally(pair) == {"text_dominant": (2, 2), "vision_only": (1, 2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "images: List should have at least 1 item"),
        ({"images": "a.png"}, "images: Input should be a valid list"),
        ({"version": ""}, "version: String should have at least 1 character"),
        ({"version": None}, "version: Input should be a valid string"),
    ],
)
def test_a_faulty_line_is_named(suite: Path, change: dict[str, Any], message: str) -> None:
    file = suite / "micro_visual" / "test.jsonl"
    first, *_ = file.read_text().splitlines()
    file.write_text(json.dumps(json.loads(first) | change))
    with pytest.raises(ConfigError, match=message):
        load_problems(VISUAL, file)
