"""Samples with a forced budget of thought (s1, arXiv 2501.19393)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evals.grading.thinking import CLOSE
from evals.harness.journal import Generation
from evals.harness.sampler import Keep, Request, batches, opened_thought, progress, rendered
from evals.scaling.budget_forcing import Budget, Forced, force_budget
from reopold.config import ConfigError, EvaluationConfig
from reopold.engines.base import Engine
from reopold.rollouts import SamplingParams


@dataclass
class BudgetSampler:
    """Thinks for at most `settings.thinking_tokens`, then answers within `max_new_tokens`."""

    engine: Engine
    tokenizer: Any
    settings: EvaluationConfig
    label: str

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
        with progress(len(requests), self.label) as bar:
            for batch in batches(requests, self.settings.batch_size):
                started = time.perf_counter()
                prompts = rendered(self.tokenizer, batch)
                seeds = [request.seed for request in batch]
                found = force_budget(self.engine, prompts, budget, self.tokenizer, seeds)
                seconds = time.perf_counter() - started
                for request, prompt, forced in zip(batch, prompts, found, strict=True):
                    keep(request.key, self._generation(prompt, forced, seconds))
                bar.update(len(batch))

    def _generation(self, prompt: Sequence[int], forced: Forced, seconds: float) -> Generation:
        text = str(self.tokenizer.decode(forced.ids, skip_special_tokens=True))
        return Generation(
            text=opened_thought(self.tokenizer, prompt) + text,
            ids=forced.ids,
            finish_reason=forced.finish_reason,
            tokens=forced.tokens,
            prompt_tokens=len(prompt),
            seconds=round(seconds, 4),
        )
