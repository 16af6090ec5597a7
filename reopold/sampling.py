"""Prompts and rollouts of a step: all a function of (seed, step), so that nothing has to be kept.

S sequences (rollouts) of a step; those of a prompt lie together, prompts in order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from reopold.config import RunConfig
from reopold.data.prompts import Message, Prompt, PromptMix
from reopold.data.tokenizers import render
from reopold.engines.base import SEED_LIMIT, Engine
from reopold.rollouts import Needs, Rollout, SamplingParams
from reopold.stopping import ShouldStop, check
from reopold.teachers.base import Teacher
from reopold.teachers.routing import ScoringAhead


@dataclass(frozen=True)
class Drawn:
    """What was sampled for a step, kept or not."""

    rollouts: int
    tokens: int


@dataclass
class Sampler:
    """Draws the rollouts of a step with the engine, and has them scored ahead where that pays."""

    config: RunConfig
    prompts: PromptMix
    tokenizer: Any
    engine: Engine
    needs: Needs
    teacher: Teacher | None
    outcomes: Callable[[Sequence[Prompt], Sequence[Rollout]], Tensor | None]
    should_stop: ShouldStop
    ahead: ScoringAhead | None = field(default=None, init=False)
    """Scores of this step's rollouts that are made while the rest is sampled."""

    def draw(self, k: int) -> tuple[list[Prompt], list[Rollout], Drawn]:
        """Prompts and rollouts of step k, and how much was drawn for it.

        An objective that asks for several rounds gets prompts whose samples differ in outcome
        (DAPO's dynamic sampling); if too few turn up, the rest is filled with others, which its
        mask drops. Round r of step k is a function of (seed, k, r): a resumed run draws the same.

        Raises:
            StopRequested: a stop was asked for; nothing of the step is kept.
        """
        rounds, size = self.needs.sampling_rounds, self.config.sampling.prompts_per_step
        copies = self.config.sampling.rollouts_per_prompt
        useful: list[tuple[Prompt, list[Rollout]]] = []
        spare: list[tuple[Prompt, list[Rollout]]] = []
        drawn: list[Rollout] = []
        for draw in range(k * rounds, (k + 1) * rounds):
            check(self.should_stop)
            prompts = self.next_prompts(draw)
            rollouts = self.responses(prompts, draw)
            drawn += rollouts
            if rounds == 1:
                return prompts, rollouts, _drawn(drawn)
            rewards_S = self.outcomes(prompts, rollouts)
            assert rewards_S is not None  # the config refuses group methods without outcomes
            for i, prompt in enumerate(prompts):
                group = slice(i * copies, (i + 1) * copies)
                mixed = bool(rewards_S[group].max() > rewards_S[group].min())
                (useful if mixed else spare).append((prompt, rollouts[group]))
            if len(useful) >= size:
                break
        chosen = (useful + spare)[:size]
        return [p for p, _ in chosen], [r for _, group in chosen for r in group], _drawn(drawn)

    def next_prompts(self, draw: int) -> list[Prompt]:
        """Prompts of a draw: the cursor is its number, the order a function of the seed."""
        return self.prompts.draw(self.config.sampling.prompts_per_step, draw)

    def responses(self, prompts: Sequence[Prompt], draw: int) -> list[Rollout]:
        """G samples of every prompt; for sft the given completions."""
        rendered = [render(self.tokenizer, prompt.messages) for prompt in prompts]
        if self.config.method == "sft":
            return [
                self._given(ids, prompt.completion)
                for ids, prompt in zip(rendered, prompts, strict=True)
            ]
        sampling, copies = self.config.sampling, self.config.sampling.rollouts_per_prompt
        stream = np.random.SeedSequence([self.config.seed, draw])
        seeds = stream.generate_state(len(prompts), np.uint64)
        params = SamplingParams(
            sampling.max_new_tokens,
            sampling.temperature,
            self.config.objective.logprob_temperature,
        )
        if self.config.teacher.overlap and self.teacher is not None and self.teacher.concurrent:
            self.ahead = ScoringAhead(self.teacher, self.needs)

        def on_finished(place: int, rollout: Rollout) -> None:
            if self.ahead is not None:
                source = prompts[place // copies].source
                self.ahead.add(place, dataclasses.replace(rollout, source=source))

        rollouts = self.engine.generate(
            rendered,
            params,
            seeds=[seed % SEED_LIMIT for seed in seeds.tolist()],
            n=copies,
            on_finished=on_finished,
        )
        return [
            dataclasses.replace(rollout, source=prompts[place // copies].source)
            for place, rollout in enumerate(rollouts)
        ]

    def _given(self, prompt_ids: list[int], completion: Sequence[Message]) -> Rollout:
        text_ids = self.tokenizer.encode(completion[0]["content"], add_special_tokens=False)
        ids = [*text_ids, self.tokenizer.eos_token_id]
        return Rollout(prompt_ids, ids, [], "stop")


def _drawn(rollouts: Sequence[Rollout]) -> Drawn:
    return Drawn(len(rollouts), sum(len(rollout.response_ids) for rollout in rollouts))
