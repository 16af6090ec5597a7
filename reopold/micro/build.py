"""Writes the micro suite: problems, worked solutions and the two untrained models.

OUT/micro_maths/{train,validation,test}.jsonl      prompts and answers, a folder a family
OUT/micro_maths/sft-{teacher,student}.jsonl        prompts with worked solutions
OUT/micro_visual/images/*.png                      pictures
OUT/{teacher,student}-init/                        untrained models, ordinary Hugging Face folders
OUT/micro.json                                     the MicroConfig, written last
"""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from reopold.config import MicroConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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
    for family in config.families:
        suite = import_module(f"reopold.micro.{family}")
        suite.write(out / f"micro_{family}", config)


def suite_tokenizer(config: MicroConfig) -> PreTrainedTokenizerFast:
    """What the texts of the config's families need, and no more."""
    from reopold.micro.tokenizer import build_tokenizer

    suites = [import_module(f"reopold.micro.{family}") for family in config.families]
    return build_tokenizer(
        characters="".join(suite.CHARACTERS for suite in suites),
        fragments=[text for suite in suites for text in suite.FRAGMENTS],
        special=[token for suite in suites for token in suite.SPECIAL],
    )


def _write_models(out: Path, config: MicroConfig) -> None:
    from reopold.micro import models, vision_models

    tokenizer = suite_tokenizer(config)
    seed = config.problems_seed
    if "visual" in config.families:
        teacher = vision_models.build_model(
            tokenizer,
            role="teacher",
            width=config.teacher_width,
            layers=config.teacher_layers,
            seed=seed + 1,
        )
        student = vision_models.build_model(
            tokenizer,
            role="student",
            width=config.student_width,
            layers=config.student_layers,
            seed=seed + 2,
        )
        vision_models.save_model(teacher, tokenizer, out / "teacher-init")
        vision_models.save_model(student, tokenizer, out / "student-init")
        return
    shapes = {
        "teacher": (config.teacher_width, config.teacher_layers, 1),
        "student": (config.student_width, config.student_layers, 2),
    }
    for role, (width, layers, offset) in shapes.items():
        model = models.build_model(tokenizer, width=width, layers=layers, seed=seed + offset)
        models.save_model(model, tokenizer, out / f"{role}-init")
