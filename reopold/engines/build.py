"""The engine that a recipe names, holding the student's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from reopold.config import RunConfig
from reopold.engines.base import Engine
from reopold.engines.hf import HFEngine
from reopold.stopping import ShouldStop
from reopold.vision import Vision


def build_engine(
    config: RunConfig,
    model: PreTrainedModel,
    tokenizer: Any,
    folder: Path,
    *,
    version: int,
    should_stop: ShouldStop,
    vision: Vision | None = None,
) -> Engine:
    """Start the engine of `config.engine`.

    Args:
        folder: what is written for it (weights to serve, its logs); nothing else may live there.
        version: completed optimiser steps of `model`.
        vision: of `model`.

    Raises:
        ConfigError: vLLM is not installed. EngineFailure: it does not start.
    """
    wanted, temperature = config.engine, config.objective.logprob_temperature
    if wanted.kind == "hf" or config.method == "sft":  # sft samples nothing
        return HFEngine(
            model,
            tokenizer,
            version,
            micro_batch=config.train.micro_batch,
            vision=vision,
            should_stop=should_stop,
        )
    if wanted.kind == "server":
        from reopold.engines.server import ServerEngine

        return ServerEngine(
            wanted,
            model,
            tokenizer,
            folder,
            version=version,
            dtype=config.model.dtype,
            logprob_temperature=temperature,
            vision=vision,
            should_stop=should_stop,
        )
    from reopold.engines.export import export
    from reopold.engines.vllm import VLLMEngine

    dtype: torch.dtype = getattr(torch, config.model.dtype)
    served = export(
        model,
        tokenizer,
        folder / "weights-first",
        version=version,
        vocab_size=len(tokenizer),
        dtype=dtype,
        processor=vision.source if vision else "",
    )
    return VLLMEngine(
        served,
        eos=tokenizer.eos_token_id,
        vocab_size=len(tokenizer),
        dtype=config.model.dtype,
        seed=config.seed,
        memory_fraction=wanted.memory_fraction,
        max_length=wanted.max_length,
        logprob_temperature=temperature,
        should_stop=should_stop,
    )
