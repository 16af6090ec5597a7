"""Prompts: the order a cursor can resume, and faults named by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reopold.config import ConfigError
from reopold.data.prompts import batch_indices, load_prompts
from reopold.data.tokenizers import check_same_tokenizer, load_tokenizer

GOOD = {"id": "a", "prompt": [{"role": "user", "content": "1+1="}], "answer": "2"}


@given(
    total=st.integers(1, 30),
    size=st.integers(1, 40),
    steps=st.integers(1, 8),
    seed=st.integers(0, 5),
)
def test_every_epoch_reads_every_prompt_once(total: int, size: int, steps: int, seed: int) -> None:
    stream = [i for k in range(steps) for i in batch_indices(total, size, k, seed)]
    assert len(stream) == steps * size
    for start in range(0, len(stream) - total + 1, total):
        assert sorted(stream[start : start + total]) == list(range(total))


def test_epochs_and_seeds_differ() -> None:
    first, second = batch_indices(50, 50, 0, 1), batch_indices(50, 50, 1, 1)
    assert first != second != batch_indices(50, 50, 1, 2)
    assert batch_indices(50, 20, 2, 1) == (first + second)[40:60]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[]", "line 2: the keys id, prompt and answer"),
        (json.dumps({"id": 1, "prompt": []}), "line 2: the keys id, prompt and answer"),
        (json.dumps({**GOOD, "prompt": "1+1="}), "line 2: 'prompt' must be a list"),
        (json.dumps({**GOOD, "prompt": [{"content": "x"}]}), "line 2: 'prompt' must be a list"),
    ],
)
def test_faulty_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(ConfigError, match=message):
        load_prompts(str(path))


def test_missing_empty_and_incomplete_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no prompts at"):
        load_prompts(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="holds no prompts"):
        load_prompts(str(tmp_path / "empty.jsonl"))
    (tmp_path / "p.jsonl").write_text(json.dumps(GOOD))
    with pytest.raises(ConfigError, match="needs a 'completion'"):
        load_prompts(str(tmp_path / "p.jsonl"), completions=True)


def test_tokenizers_that_differ_in_one_id_are_refused(suite: Path, tmp_path: Path) -> None:
    student = str(suite / "student-init")
    check_same_tokenizer(student, str(suite / "teacher-init"))
    other = load_tokenizer(student)
    other.add_tokens(["x"])
    other.save_pretrained(tmp_path / "larger")
    with pytest.raises(ConfigError, match="1 tokens differ, for example 'x'"):
        check_same_tokenizer(student, str(tmp_path / "larger"))
    ends = load_tokenizer(student)
    ends.eos_token = "<pad>"
    ends.save_pretrained(tmp_path / "ends")
    with pytest.raises(ConfigError, match="never reward stopping"):
        check_same_tokenizer(student, str(tmp_path / "ends"))


def test_tokenizers_that_cannot_work_are_refused(suite: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tokenizer at"):
        load_tokenizer(str(tmp_path))
    tokenizer = load_tokenizer(str(suite / "student-init"))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "plain")
    with pytest.raises(ConfigError, match="no chat template"):
        load_tokenizer(str(tmp_path / "plain"))
