"""The teacher that a recipe names: one, or several by the source of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reopold.config import ConfigError, RunConfig, TeacherConfig
from reopold.data.prompts import Prompt
from reopold.engines.hf import load_model
from reopold.rollouts import Needs
from reopold.stopping import ShouldStop, never
from reopold.teachers.base import Teacher
from reopold.teachers.local import LocalTeacher
from reopold.teachers.routing import RoutedTeacher
from reopold.vision import Vision, takes_images


def prompts_by_teacher(config: RunConfig, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """What `model.teacher` scores, then what each of `teachers` does."""
    number = {source: i for i, t in enumerate(config.teachers, 1) for source in t.sources}
    parts: list[list[Prompt]] = [[] for _ in range(len(config.teachers) + 1)]
    for prompt in prompts:
        parts[number.get(prompt.source, 0)].append(prompt)
    return parts


def check_sight(config: RunConfig, prompts: Sequence[Prompt]) -> None:
    """Refuse prompts with images that a model of the run would be given and cannot take.

    Raises:
        ConfigError: names the prompt and the model.
    """
    model = config.model
    teachers = [model.teacher, *(teacher.model for teacher in config.teachers)]
    scored = zip(teachers, prompts_by_teacher(config, prompts), strict=True)
    for path, part in [(model.student, prompts), (model.reference, prompts), *scored]:
        seen = next((prompt for prompt in part if prompt.images), None)
        if path and seen is not None and not takes_images(path):
            raise ConfigError(
                f"prompt {seen.id} has images, which {path} does not take: use a vision-language "
                "model there (Llava, Qwen2-VL, Qwen2.5-VL, Qwen3-VL) or prompts without images"
            )


def build_teacher(
    config: RunConfig,
    tokenizer: Any,
    needs: Needs,
    folder: Path,
    *,
    prompts: Sequence[Prompt],
    device: str,
    should_stop: ShouldStop,
) -> Teacher:
    """Load or start `model.teacher` and every one of `teachers`.

    Args:
        folder: for the logs of servers that are started.
        prompts: of the run.

    Raises:
        ConfigError: a checkpoint is missing, or a teacher has no room for a prompt's images.
        EngineFailure: a server does not start.
    """

    parts = prompts_by_teacher(config, prompts)

    def one(path: str, wanted: TeacherConfig, number: int) -> Teacher:
        name = f"teacher-{number}" if number else "teacher"
        if wanted.kind == "hf":
            local = load_local(config, path, tokenizer, device, should_stop)
            if local.vision is not None:
                local.vision.check(tokenizer, parts[number])
            return local
        if wanted.kind == "vllm":
            from reopold.teachers.vllm import VLLMTeacher

            return VLLMTeacher(
                path,
                eos=tokenizer.eos_token_id,
                vocab_size=len(tokenizer),
                dtype=config.model.dtype,
                memory_fraction=wanted.memory_fraction,
                max_length=wanted.max_length,
                top_k=needs.top_k,
                should_stop=should_stop,
            )
        from reopold.teachers.server import ServerTeacher

        return ServerTeacher.connect(
            wanted,
            path,
            name,
            folder,
            vocab_size=len(tokenizer),
            dtype=config.model.dtype,
            top_k=needs.top_k,
            should_stop=should_stop,
        )

    default = one(config.model.teacher, config.teacher, 0)
    if not config.teachers:
        return default
    try:
        by_source = {}
        for number, wanted in enumerate(config.teachers, 1):
            teacher = one(wanted.model, wanted, number)
            by_source.update(dict.fromkeys(wanted.sources, teacher))
    except BaseException:
        default.close()
        raise
    return RoutedTeacher(default, by_source)


def load_local(
    config: RunConfig, path: str, tokenizer: Any, device: str, should_stop: ShouldStop = never
) -> LocalTeacher:
    """A frozen model in this process; the reference of exopd is one, too."""
    model = load_model(path, dtype=config.model.dtype, device=device)
    return LocalTeacher(
        model.requires_grad_(False),
        len(tokenizer),
        config.train.micro_batch,
        config.objective.logprob_temperature,
        vision=Vision.of(model, path),
        should_stop=should_stop,
    )
