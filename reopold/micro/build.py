"""Writes the micro suite: problems, worked solutions and the two untrained models.

OUT/{train,validation,test}.jsonl      prompts and answers
OUT/sft-{teacher,student}.jsonl        prompts with worked solutions
OUT/{teacher,student}-init/            untrained Qwen3 models, ordinary Hugging Face folders
OUT/micro.json                         the MicroConfig, written last
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

from reopold.config import MicroConfig
from reopold.micro.maths import Problem, Split, draw, solve


def build_suite(out: Path, config: MicroConfig) -> bool:
    """Write the suite into `out`, whole or not at all; False if it was there already."""
    if is_built(out, config):
        return False
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _write_problems(temporary, config)
    _write_models(temporary, config)
    (temporary / "micro.json").write_text(config.canonical_json(), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    os.rename(temporary, out)
    return True


def is_built(out: Path, config: MicroConfig) -> bool:
    marker = out / "micro.json"
    return marker.exists() and marker.read_text(encoding="utf-8") == config.canonical_json()


def _write_problems(out: Path, config: MicroConfig) -> None:
    counts: dict[Split, int] = {
        "train": config.train_problems,
        "validation": config.validation_problems,
        "test": config.test_problems,
    }
    problems = {split: draw(split, count, config.problems_seed) for split, count in counts.items()}
    for split, drawn in problems.items():
        _write_lines(out / f"{split}.jsonl", [_record(p) for p in drawn])
    wrong = {"teacher": 0.0, "student": config.missing_skill_wrong}
    for role, share in wrong.items():
        rng = random.Random(f"{config.problems_seed}/{role}")
        lines = [{**_record(p), "completion": solve(p, rng, share)} for p in problems["train"]]
        _write_lines(out / f"sft-{role}.jsonl", lines)


def _write_models(out: Path, config: MicroConfig) -> None:
    from reopold.micro.models import build_model, save_model
    from reopold.micro.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    shapes = {
        "teacher": (config.teacher_width, config.teacher_layers, 1),
        "student": (config.student_width, config.student_layers, 2),
    }
    for role, (width, layers, offset) in shapes.items():
        seed = config.problems_seed + offset
        model = build_model(tokenizer, width=width, layers=layers, seed=seed)
        save_model(model, tokenizer, out / f"{role}-init")


def _record(problem: Problem) -> dict[str, Any]:
    return {
        "id": problem.question,
        "prompt": [{"role": "user", "content": problem.question}],
        "answer": problem.answer,
    }


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
