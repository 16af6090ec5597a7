"""Writes the micro suite: problems, worked solutions and the two untrained models.

OUT/micro_maths/{train,validation,test}.jsonl      prompts and answers, a folder a family
OUT/micro_maths/sft-{teacher,student}.jsonl        prompts with worked solutions
OUT/micro_visual/images/*.png                      pictures
OUT/{teacher,student}-init/                        untrained models, ordinary Hugging Face folders;
                                                   of further teachers OUT/teacher-NAME-init/
OUT/micro.json                                     the MicroConfig, written last
"""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reopold.study_config import MicroConfig, teacher_role

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from reopold.micro.vision_models import Role


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


def suite_tokenizer(config: MicroConfig) -> PreTrainedTokenizerFast:
    """What the texts of the config's families need, and no more."""
    from reopold.micro.tokenizer import build_tokenizer

    suites = [_suite(family) for family in config.families]
    return build_tokenizer(
        characters="".join(suite.CHARACTERS for suite in suites),
        fragments=[text for suite in suites for text in suite.FRAGMENTS],
        special=[token for suite in suites for token in suite.SPECIAL],
    )


def _suite(family: str) -> Any:
    """The module of a family: `write(folder, config)`, and what its texts need beside those of the
    maths suite: `CHARACTERS`, `FRAGMENTS` that are one token each, `SPECIAL` tokens."""
    return import_module(f"reopold.micro.{family}")


def _write_problems(out: Path, config: MicroConfig) -> None:
    for family, name in zip(config.families, config.benchmarks, strict=True):
        _suite(family).write(out / name, config)


def _write_models(out: Path, config: MicroConfig) -> None:
    tokenizer = suite_tokenizer(config)
    teachers = [("teacher", config.teacher_width, config.teacher_layers)]
    teachers += [(teacher_role(each.name), each.width, each.layers) for each in config.teachers]
    seed = config.problems_seed
    for name, width, layers in teachers:
        _write_model(out / f"{name}-init", config, tokenizer, "teacher", width, layers, seed + 1)
    sizes = (config.student_width, config.student_layers)
    _write_model(out / "student-init", config, tokenizer, "student", *sizes, seed + 2)


def _write_model(
    folder: Path,
    config: MicroConfig,
    tokenizer: Any,
    role: Role,
    width: int,
    layers: int,
    seed: int,
) -> None:
    if "visual" in config.families:
        from reopold.micro import vision_models

        seeing = vision_models.build_model(
            tokenizer, role=role, width=width, layers=layers, seed=seed
        )
        vision_models.save_model(seeing, tokenizer, folder)
    else:
        from reopold.micro import models

        model = models.build_model(tokenizer, width=width, layers=layers, seed=seed)
        models.save_model(model, tokenizer, folder)
