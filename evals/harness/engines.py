"""The engine of a checkpoint under evaluation, loaded once for all its benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from evals.harness.sampler import AnswerSampler, Sampler
from evals.harness.thinking import BudgetSampler
from evals.harness.tools import DialogueSampler
from evals.harness.vision import vision_sampler
from reopold.config import ConfigError, EvaluationConfig
from reopold.data.tokenizers import load_tokenizer
from reopold.engines.base import Engine
from reopold.stopping import ShouldStop

if TYPE_CHECKING:
    from evals.evaluation import Evaluation

#: Share of a GPU's memory for vLLM, which has it to itself while it evaluates.
EVALUATION_MEMORY = 0.85


class Engines:
    """Holds at most one engine, that of the last checkpoint asked for; closes it at the end."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._engine: Engine | None = None
        self._tokenizer: Any = None

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
            ConfigError: the checkpoint cannot be loaded, there is no such device, or no server.
        """
        settings, benchmark = evaluation.settings, evaluation.benchmark
        label = f"sampling {benchmark.name}"
        if benchmark.family == "visual":
            self.close()
            return vision_sampler(checkpoint, evaluation, label)
        engine = self._load(checkpoint, evaluation)
        if benchmark.environment:
            return DialogueSampler(engine, self._tokenizer, benchmark, settings, label)
        if settings.thinking_tokens:
            return BudgetSampler(engine, self._tokenizer, settings, label)
        return AnswerSampler(engine, self._tokenizer, settings.batch_size, label)

    def _load(self, checkpoint: Path, evaluation: Evaluation) -> Engine:
        settings = evaluation.settings
        key = (checkpoint, settings.engine, tuple(settings.urls), evaluation.dtype)
        if self._engine is None or key != self._key:
            self.close()
            self._tokenizer = load_tokenizer(str(checkpoint))
            self._engine = _engine(checkpoint, self._tokenizer, evaluation)
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


def _engine(checkpoint: Path, tokenizer: Any, evaluation: Evaluation) -> Engine:
    settings, should_stop = evaluation.settings, evaluation.should_stop
    if settings.engine == "vllm":
        return _vllm(checkpoint, tokenizer, evaluation.dtype, should_stop)
    if settings.engine == "server":
        return _served(checkpoint, tokenizer, settings, should_stop)
    import torch

    from reopold.engines.hf import HFEngine, load_model

    if evaluation.threads is not None:
        torch.set_num_threads(evaluation.threads)
    device = torch_device(evaluation.device)
    model = load_model(str(checkpoint), dtype=evaluation.dtype, device=device)
    return HFEngine(model, tokenizer, should_stop=should_stop)


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
