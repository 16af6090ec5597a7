"""Samples with a forced budget of thought (s1, arXiv 2501.19393)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.harness.journal import Generation
from evals.harness.sampler import (
    Keep,
    Request,
    batches,
    progress,
    rendered,
)
from evals.scaling.budget_forcing import Budget, Forced, force_budget
from reopold.answers.thinking import CLOSE, opened_thought
from reopold.config import ConfigError, EvaluationConfig
from reopold.data.images import prompt_length
from reopold.engines.base import Engine
from reopold.rollouts import SamplingParams

if TYPE_CHECKING:
    from reopold.vision import Vision


@dataclass
class BudgetSampler:
    """Thinks for at most `settings.thinking_tokens`, then answers within `max_new_tokens`."""

    engine: Engine
    tokenizer: Any
    settings: EvaluationConfig
    label: str
    vision: Vision | None = None
    """Of a model that takes images."""

    def sample(self, requests: Sequence[Request], params: SamplingParams, keep: Keep) -> None:
        mark = self.tokenizer.encode(CLOSE, add_special_tokens=False)
        if not mark or self.tokenizer.unk_token_id in mark:
            raise ConfigError(
                f"the tokenizer does not know {CLOSE}: budget forcing is for models that think"
            )
        budget = Budget(
            thinking_tokens=self.settings.thinking_tokens,
            answer_tokens=params.max_new_tokens,
            end_think=tuple(mark),
            ignores=self.settings.ignore_end,
            temperature=params.temperature,
            top_p=params.top_p,
        )
        # All of them first: a prompt that cannot be rendered ends it before any work is done.
        asked = list(zip(requests, rendered(self.tokenizer, requests, self.vision), strict=True))
        with progress(len(requests), self.label) as bar:
            for batch in batches(asked, self.settings.batch_size):
                started = time.perf_counter()
                found = force_budget(
                    self.engine,
                    [prompt for _, prompt in batch],
                    budget,
                    self.tokenizer,
                    [request.seed for request, _ in batch],
                    images=[request.images for request, _ in batch],
                )
                seconds = time.perf_counter() - started
                for (request, prompt), forced in zip(batch, found, strict=True):
                    keep(request.key, self._generation(request, prompt, forced, seconds))
                bar.update(len(batch))

    def _generation(
        self, request: Request, prompt: Sequence[int], forced: Forced, seconds: float
    ) -> Generation:
        text = str(self.tokenizer.decode(forced.ids, skip_special_tokens=True))
        return Generation(
            text=opened_thought(self.tokenizer, prompt) + text,
            ids=forced.ids,
            finish_reason=forced.finish_reason,
            tokens=forced.tokens,
            prompt_tokens=prompt_length(self.vision, prompt, request.images),
            seconds=round(seconds, 4),
        )
