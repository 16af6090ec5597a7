"""The micro suite: right answers, disjoint splits, one missing skill, a real tokenizer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from reopold.data.tokenizers import render
from reopold.micro.build import build_suite
from reopold.micro.maths import MAX_OPERANDS, MIN_OPERANDS, Problem, draw, solve
from reopold.micro.tokenizer import build_tokenizer
from reopold.study_config import MicroConfig


def test_a_solution_by_hand() -> None:
    problem = Problem((3, 4, 2, 5), "+*-")
    assert problem.question == "3+4*2-5="
    assert solve(problem, random.Random(0)) == "3+4=7;7*2=4;4-5=9;#9"
    assert problem.answer == "9"


def test_answers_match_python_arithmetic() -> None:
    for problem in draw("train", 300, seed=1):
        expression = str(problem.operands[0])
        for operator, operand in zip(problem.operators, problem.operands[1:], strict=True):
            expression = f"(({expression}){operator}{operand})"
        assert problem.answer == str(eval(expression) % 10)
        assert solve(problem, random.Random(0)).endswith(f"#{problem.answer}")
        assert MIN_OPERANDS <= len(problem.operands) <= MAX_OPERANDS


def test_splits_are_disjoint_whatever_the_seed_and_drawn_the_same_again() -> None:
    drawn = {
        (split, seed): draw(split, 200, seed)
        for split in ("train", "validation", "test")
        for seed in (1, 2)
    }
    for (split, _), problems in drawn.items():
        assert len(set(problems)) == 200
        for (other, _), others in drawn.items():
            if split != other:
                assert not set(problems) & set(others)
    assert draw("test", 200, 1) == drawn["test", 1]
    assert drawn["test", 1] != drawn["test", 2]


def test_only_the_missing_skill_is_taught_wrongly_at_the_asked_rate() -> None:
    rng, wrong, total = random.Random(0), 0, 0
    for problem in draw("train", 3000, seed=3):
        for step in solve(problem, rng, 0.8).split(";")[:-1]:
            left, operator, right, result = int(step[0]), step[1], int(step[2]), int(step[4])
            true = eval(f"{left}{operator}{right}") % 10
            if operator == "*" and right >= 4:  # the published rule, not the code under test
                total += 1
                wrong += result != true
            else:
                assert result == true
    assert wrong / total == pytest.approx(0.8, abs=0.03)


def test_the_suite_is_the_same_bytes_for_the_same_config(tmp_path: Path) -> None:
    config = MicroConfig(
        train_problems=50,
        test_problems=5,
        validation_problems=5,
        teacher_width=16,
        student_width=16,
    )
    for name in ("a", "b"):
        assert build_suite(tmp_path / name, config)
    files = sorted(
        p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()
    )
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    assert not build_suite(tmp_path / "a", config)
    test = [
        json.loads(line)["id"]
        for line in (tmp_path / "a" / "micro_maths" / "test.jsonl").read_text().splitlines()
    ]
    train = [
        json.loads(line)["id"]
        for line in (tmp_path / "a" / "micro_maths" / "train.jsonl").read_text().splitlines()
    ]
    assert not set(test) & set(train)


def test_the_tokenizer_keeps_text_and_ends_with_its_own_eos() -> None:
    tokenizer = build_tokenizer()
    text = "3+4=7;7*2=4;#4"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text) and tokenizer.decode(ids) == text
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    ids = render(tokenizer, [{"role": "user", "content": "3+4="}])
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|user|>", *"3+4=", "<|assistant|>"]
