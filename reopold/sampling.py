"""Prompts and rollouts of a step: all a function of (seed, step), so that nothing has to be kept.

S sequences (rollouts) of a step; those of a prompt lie together, prompts in order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reopold.config import RunConfig
from reopold.data.prompts import Prompt, PromptMix, render_prompt
from reopold.dialogue_styles import STYLES, given_dialogue
from reopold.dialogues import DialogueRequest, run_dialogues
from reopold.engines.base import SEED_LIMIT, Engine, OnFinished
from reopold.environments import Budget, StyleName, find_environment
from reopold.environments.base import Environment
from reopold.outcomes import informative
from reopold.rollouts import Needs, Rollout, SamplingParams
from reopold.stopping import ShouldStop, check
from reopold.teachers.base import Teacher
from reopold.teachers.routing import ScoringAhead


@dataclass(frozen=True)
class Drawn:
    """What was sampled for a step, kept or not."""

    rollouts: int
    prompt_tokens: int
    """Positions of the prompts, each read once."""
    tokens: int
    """That the model sampled."""


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
    length: Callable[[Rollout], int]
    """Positions that a rollout's prompt takes in the student."""
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
                return prompts, rollouts, self._count(drawn)
            rewards_S = self.outcomes(prompts, rollouts)
            assert rewards_S is not None  # the config refuses group methods without outcomes
            for i, prompt in enumerate(prompts):
                group = slice(i * copies, (i + 1) * copies)
                one = torch.zeros(copies, dtype=torch.long, device=rewards_S.device)
                mixed = bool(informative(rewards_S[group], one).any())
                (useful if mixed else spare).append((prompt, rollouts[group]))
            if len(useful) >= size:
                break
        chosen = (useful + spare)[:size]
        return [p for p, _ in chosen], [r for _, group in chosen for r in group], self._count(drawn)

    def _count(self, rollouts: Sequence[Rollout]) -> Drawn:
        copies = 1 if self.config.method == "sft" else self.config.sampling.rollouts_per_prompt
        return Drawn(
            rollouts=len(rollouts),
            prompt_tokens=sum(map(self.length, rollouts[::copies])),
            tokens=sum(len(rollout.sampled_ids) for rollout in rollouts),
        )

    def next_prompts(self, draw: int) -> list[Prompt]:
        """Prompts of a draw: the cursor is its number, the order a function of the seed."""
        return self.prompts.draw(self.config.sampling.prompts_per_step, draw)

    def responses(self, prompts: Sequence[Prompt], draw: int) -> list[Rollout]:
        """G samples of every prompt, dialogues where it names an environment; for sft the given
        completions."""
        rendered = [render_prompt(self.tokenizer, prompt, self._budget) for prompt in prompts]
        if self.config.method == "sft":
            return [self._given(*pair) for pair in zip(prompts, rendered, strict=True)]
        copies = self.config.sampling.rollouts_per_prompt
        stream = np.random.SeedSequence([self.config.seed, draw])
        seeds = stream.generate_state(len(prompts), np.uint64).tolist()
        if self.config.teacher.overlap and self.teacher is not None and self.teacher.concurrent:
            self.ahead = ScoringAhead(self.teacher, self.needs)

        def of(place: int, rollout: Rollout) -> Rollout:
            return dataclasses.replace(rollout, source=prompts[place // copies].source)

        def finished(place: int, rollout: Rollout) -> None:
            if self.ahead is not None:
                self.ahead.add(place, of(place, rollout))

        asked = [
            _Asked(i, prompt, rendered[i], seeds[i] % SEED_LIMIT)
            for i, prompt in enumerate(prompts)
        ]
        done = self._answers([each for each in asked if each.style is None], finished)
        for style in STYLES:
            some = [each for each in asked if each.style == style]
            done |= self._dialogues(some, style, finished)
        return [of(place, done[place]) for place in range(len(prompts) * copies)]

    @property
    def _params(self) -> SamplingParams:
        sampling = self.config.sampling
        return SamplingParams(
            sampling.max_new_tokens,
            sampling.temperature,
            self.config.objective.logprob_temperature,
        )

    def _answers(self, asked: Sequence[_Asked], finished: OnFinished) -> dict[int, Rollout]:
        """Samples without an environment, by place; sample i of a prompt has its seed plus i."""
        if not asked:
            return {}
        copies = self.config.sampling.rollouts_per_prompt
        images = [each.prompt.images for each in asked]
        places = [each.number * copies + copy for each in asked for copy in range(copies)]
        rollouts = self.engine.generate(
            [each.prompt_ids for each in asked],
            self._params,
            seeds=[each.seed for each in asked],
            n=copies,
            images=images if any(images) else None,
            on_finished=lambda i, rollout: finished(places[i], rollout),
        )
        return dict(zip(places, rollouts, strict=True))

    def _dialogues(
        self, asked: Sequence[_Asked], style: StyleName, finished: OnFinished
    ) -> dict[int, Rollout]:
        """Samples with an environment; the turns of sample i have seeds made of its seed plus i."""
        if not asked:
            return {}
        sampling, copies = self.config.sampling, self.config.sampling.rollouts_per_prompt
        each_copy = [(each, copy) for each in asked for copy in range(copies)]
        places = [each.number * copies + copy for each, copy in each_copy]

        def make(i: int) -> Environment:
            prompt = each_copy[i][0].prompt
            return find_environment(prompt.environment).make(prompt.task, self._budget)

        dialogues = run_dialogues(
            self.engine,
            self.tokenizer,
            [
                DialogueRequest(each.prompt_ids, each.seed + copy, each.prompt.images)
                for each, copy in each_copy
            ],
            self._params,
            make,
            style=style,
            max_turns=sampling.max_turns,
            max_tokens=sampling.max_new_tokens,
            tool_seconds=sampling.tool_seconds,
            should_stop=self.should_stop,
            on_finished=lambda i, dialogue: finished(places[i], dialogue.rollout),
        )
        return dict(zip(places, [each.rollout for each in dialogues], strict=True))

    @property
    def _budget(self) -> Budget:
        sampling = self.config.sampling
        return Budget(calls=sampling.max_turns, seconds=sampling.tool_seconds)

    def _given(self, prompt: Prompt, prompt_ids: list[int]) -> Rollout:
        rollout = given_dialogue(
            self.tokenizer,
            find_environment(prompt.environment).style if prompt.environment else None,
            prompt_ids,
            [message["content"] for message in prompt.completion],
        )
        return dataclasses.replace(rollout, images=prompt.images)


@dataclass(frozen=True)
class _Asked:
    """A prompt of a draw."""

    number: int
    prompt: Prompt
    prompt_ids: list[int]
    seed: int

    @property
    def style(self) -> StyleName | None:
        """Of its dialogues; None where it asks for an answer alone."""
        name = self.prompt.environment
        return find_environment(name).style if name else None
