"""The files of an evaluation keep to the contract and are never half there."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import evals.results
from evals.results import (
    DatasetIdentity,
    GenerationSettings,
    GraderIdentity,
    Results,
    SampleRow,
    load_results,
    read_results,
    write_results,
)
from evals.scores import Score
from reopold.config import ConfigError

CONTRACT = Path(__file__).parents[2] / "docs/design/run-directory.md"


def make(**changes: Any) -> Results:
    fields: dict[str, Any] = {
        "benchmark": "micro_maths",
        "grader": GraderIdentity(name="final_answer", rule="sound", version=1),
        "dtype": "float32",
        "family": "maths",
        "checkpoint_step": 75,
        "checkpoint_digest": "d",
        "n": 2,
        "k": 1,
        "parameters": 10,
        "metric": "avg@k",
        "scores": [
            Score(
                metric="avg@k",
                k=1,
                n=2,
                value=0.5,
                low=0.1,
                high=0.9,
                question_se=0.2,
                seed_se=None,
            )
        ],
        "statuses": {"no_answer": 2},
        "tokens": 6,
        "isolation": "",
        "truncated_fraction": 0.0,
        "no_answer_fraction": 0.0,
        "seconds": 1.0,
        "generation": GenerationSettings(
            engine="hf",
            temperature=1.0,
            top_p=1.0,
            max_new_tokens=4,
            max_turns=1,
            thinking_tokens=0,
            ignore_end=0,
            seed=0,
        ),
        "dataset": DatasetIdentity(path="test.jsonl", revision=None, digest="e", limit=0),
        "versions": {"python": "3"},
    }
    return Results(**(fields | changes))


def row(question: str, sample: int, extracted: str | None = None) -> SampleRow:
    return SampleRow(
        question_id=question,
        sample=sample,
        prompt="1+1=",
        images=[],
        cluster=question,
        response="#2",
        answer=None,
        response_ids=[4, 5],
        extracted=extracted,
        vote=None,
        gold="2",
        correct=False,
        status="no_answer",
        finish_reason="length",
        tokens=3,
        prompt_tokens=2,
        seconds=0.1,
        calls=0,
        failed_calls=0,
    )


def test_files_hold_what_the_contract_names(tmp_path: Path) -> None:
    write_results(tmp_path, make(), [row("a", 0)])
    text = CONTRACT.read_text(encoding="utf-8").split("## Evaluation results")[1]
    results, samples = text.split("\n\n")[1:3]
    written = json.loads((tmp_path / "results.json").read_text())
    named = set(re.findall(r"`(\w+)`", results.split(": a list of")[0]))
    named |= set(re.findall(r"`(\w+)`", results.split("own (")[1].split("Intervals")[0]))
    assert set(written) == named - {"score_strict"} and written["schema"] == 2
    for field in ("grader", "generation", "dataset"):
        fields = re.search(rf"`{field}` {{([^}}]*)}}", results)
        assert fields and list(written[field]) == re.split(r",\s+", fields[1])
    score = re.search(r"a list of `{([^}]*)}`", results)
    assert score and list(written["scores"][0]) == score[1].split(", ")
    columns = pq.read_schema(tmp_path / "samples.parquet").names
    wanted = re.findall(r"`(\w+)`", samples.split("then sample:")[1])
    assert columns == [name for name in wanted if name != "right"]
    assert read_results(tmp_path) == make()


def test_samples_are_sorted_and_keep_their_types(tmp_path: Path) -> None:
    rows = [row(question, sample) for question in "cab" for sample in range(3)]
    random.Random(0).shuffle(rows)
    write_results(tmp_path, make(), rows)
    table = pq.read_table(tmp_path / "samples.parquet")
    keys = list(zip(table["question_id"].to_pylist(), table["sample"].to_pylist(), strict=True))
    assert keys == [(question, sample) for question in "abc" for sample in range(3)]
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds["extracted"] == "string"  # although every value is null
    assert (kinds["correct"], kinds["sample"], kinds["tokens"]) == ("bool", "int32", "int32")


def test_a_death_half_way_leaves_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_results(tmp_path, make(), [row("a", 0)])

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evals.results, "write_atomic", die)
    with pytest.raises(KeyboardInterrupt):
        write_results(tmp_path, make(k=2), [row("a", 0), row("a", 1)])
    # New samples with old results would be a lie: there must be none.
    assert read_results(tmp_path) is None
    assert pq.read_table(tmp_path / "samples.parquet").num_rows == 2


def test_results_of_a_run_come_in_order(tmp_path: Path) -> None:
    for step in (100, 25, 75):
        folder = tmp_path / "eval" / f"step-{step:06d}" / "micro_maths"
        write_results(folder, make(checkpoint_step=step), [row("a", 0)])
    (tmp_path / "eval" / "step-000050" / "micro_maths").mkdir(parents=True)  # died before its end
    assert [results.checkpoint_step for results in load_results(tmp_path)] == [25, 75, 100]
    assert load_results(tmp_path / "absent") == []


@pytest.mark.parametrize("text", ["{", "{}", '{"schema": 1}', "\x00"])
def test_damaged_results_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ConfigError, match="damaged or of another version"):
        read_results(tmp_path)


def test_an_unwritable_folder_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to"):
        write_results(tmp_path / "file" / "sub", make(), [row("a", 0)])
