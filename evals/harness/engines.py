"""The engine of a checkpoint under evaluation, loaded once for all its benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from evals.harness.sampler import AnswerSampler, Sampler
from evals.harness.thinking import BudgetSampler
from evals.harness.tools import DialogueSampler
from evals.harness.vision import ServedVision
from reopold.config import ConfigError, EvaluationConfig
from reopold.data.tokenizers import load_tokenizer
from reopold.engines.base import Engine
from reopold.stopping import ShouldStop

if TYPE_CHECKING:
    from evals.evaluation import Evaluation
    from reopold.vision import Vision

#: Share of a GPU's memory for vLLM, which has it to itself while it evaluates.
EVALUATION_MEMORY = 0.85


class Engines:
    """Holds at most one engine, that of the last checkpoint asked for; closes it at the end."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._engine: Engine | None = None
        self._tokenizer: Any = None
        self._vision: Vision | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine, self._key = None, ()

    def sampler(self, checkpoint: Path, evaluation: Evaluation) -> Sampler:
        """What draws the samples of an evaluation.

        Raises:
            ConfigError: the checkpoint cannot be loaded or takes no images where there are some,
                there is no such device, or no server.
        """
        settings, benchmark = evaluation.settings, evaluation.benchmark
        label = f"sampling {benchmark.name}"
        alone = not (benchmark.environment or settings.thinking_tokens)
        if benchmark.family == "visual" and settings.engine == "server" and alone:
            return ServedVision(settings.urls, evaluation.should_stop, label)
        engine = self._load(checkpoint, evaluation)
        shown = any(problem.images for problem in evaluation.problems.problems)
        if shown and self._vision is None:
            from reopold.vision import SUPPORTED

            raise ConfigError(
                f"checkpoint {checkpoint} cannot answer questions about images, which "
                f"{benchmark.name} asks: it is none of {', '.join(SUPPORTED)}"
            )
        tokenizer, vision = self._tokenizer, self._vision
        if benchmark.environment:
            return DialogueSampler(engine, tokenizer, benchmark, settings, label, vision)
        if settings.thinking_tokens:
            return BudgetSampler(engine, tokenizer, settings, label, vision)
        return AnswerSampler(engine, tokenizer, settings.batch_size, label, vision)

    def _load(self, checkpoint: Path, evaluation: Evaluation) -> Engine:
        settings = evaluation.settings
        key = (checkpoint, settings.engine, tuple(settings.urls), evaluation.dtype)
        if self._engine is None or key != self._key:
            self.close()
            self._tokenizer = load_tokenizer(str(checkpoint))
            self._engine = _engine(checkpoint, self._tokenizer, evaluation)
            self._vision = _vision(checkpoint, self._engine)
            self._key = key
        return self._engine


def torch_device(wanted: str) -> str:
    """`auto` settled.

    Raises:
        ConfigError: a GPU is asked for and none is visible.
    """
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError("device is 'cuda' but no GPU is visible; use 'auto' or 'cpu'")
    return ("cuda" if there else "cpu") if wanted == "auto" else wanted


def _vision(checkpoint: Path, engine: Engine) -> Vision | None:
    """How the checkpoint takes images: the engine's own, or one that only counts their tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from reopold.engines.hf import HFEngine
    from reopold.vision import Vision, takes_images

    if isinstance(engine, HFEngine):
        return engine.vision
    if not takes_images(str(checkpoint)):
        return None
    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(checkpoint))
    return Vision.of(empty, str(checkpoint))


def _engine(checkpoint: Path, tokenizer: Any, evaluation: Evaluation) -> Engine:
    settings, should_stop = evaluation.settings, evaluation.should_stop
    if settings.engine == "vllm":
        return _vllm(checkpoint, tokenizer, evaluation.dtype, should_stop)
    if settings.engine == "server":
        return _served(checkpoint, tokenizer, settings, should_stop)
    import torch

    from reopold.engines.hf import HFEngine, load_model
    from reopold.vision import Vision

    if evaluation.threads is not None:
        torch.set_num_threads(evaluation.threads)
    device = torch_device(evaluation.device)
    model = load_model(str(checkpoint), dtype=evaluation.dtype, device=device)
    vision = Vision.of(model, str(checkpoint))
    return HFEngine(model, tokenizer, vision=vision, should_stop=should_stop)


def _vllm(checkpoint: Path, tokenizer: Any, dtype: str, should_stop: ShouldStop) -> Engine:
    """vLLM in a child process, which ends before the next checkpoint's begins."""
    from reopold.engines.vllm import VLLMEngine

    return VLLMEngine(
        checkpoint,
        eos=tokenizer.eos_token_id,
        vocab_size=len(tokenizer),
        dtype=dtype,
        memory_fraction=EVALUATION_MEMORY,
        own_process=True,
        should_stop=should_stop,
    )


def _served(
    checkpoint: Path, tokenizer: Any, settings: EvaluationConfig, should_stop: ShouldStop
) -> Engine:
    from reopold.engines.served import ServedEngine

    return ServedEngine(settings.urls, tokenizer, should_stop=should_stop)
