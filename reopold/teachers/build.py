"""The teacher that a recipe names: one, or several by the source of a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reopold.config import RunConfig, TeacherConfig
from reopold.engines.hf import load_model
from reopold.rollouts import Needs
from reopold.stopping import ShouldStop, never
from reopold.teachers.base import Teacher
from reopold.teachers.local import LocalTeacher
from reopold.teachers.routing import RoutedTeacher
from reopold.vision import Vision


def build_teacher(
    config: RunConfig,
    tokenizer: Any,
    needs: Needs,
    folder: Path,
    *,
    device: str,
    should_stop: ShouldStop,
) -> Teacher:
    """Load or start `model.teacher` and every one of `teachers`.

    Args:
        folder: for the logs of servers that are started.

    Raises:
        ConfigError, EngineFailure: a checkpoint is missing, or a server does not start.
    """

    def one(path: str, wanted: TeacherConfig, name: str) -> Teacher:
        if wanted.kind == "hf":
            return load_local(config, path, tokenizer, device, should_stop)
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

    default = one(config.model.teacher, config.teacher, "teacher")
    if not config.teachers:
        return default
    try:
        by_source = {}
        for i, wanted in enumerate(config.teachers):
            teacher = one(wanted.model, wanted, f"teacher-{i + 1}")
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
