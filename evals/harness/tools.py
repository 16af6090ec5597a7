"""Samples that are dialogues with an environment: an interpreter, functions, a domain of tau2."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.benchmarks import Benchmark
from evals.harness.journal import Generation
from evals.harness.sampler import (
    Keep,
    Request,
    batches,
    check_prompts,
    progress,
)
from reopold.answers.thinking import opened_thought
from reopold.config import EvaluationConfig
from reopold.data.images import prompt_length
from reopold.data.tokenizers import render
from reopold.dialogues import Dialogue, DialogueRequest, run_dialogues
from reopold.engines.base import Engine
from reopold.environments import Budget, find_environment, opening
from reopold.rollouts import SamplingParams

if TYPE_CHECKING:
    from reopold.vision import Vision

#: Wall-clock that the environment of one dialogue may take.
TOOL_SECONDS = 300.0


@dataclass
class DialogueSampler:
    """A dialogue a request, many at once."""

    engine: Engine
    tokenizer: Any
    benchmark: Benchmark
    settings: EvaluationConfig
    label: str
    vision: Vision | None = None
    """Of a model that takes images."""

    @property
    def budget(self) -> Budget:
        return Budget(calls=self.settings.max_turns, seconds=TOOL_SECONDS)

    def sample(self, requests: Sequence[Request], params: SamplingParams, keep: Keep) -> None:
        # All of them first: a prompt that cannot be rendered ends it before any work is done.
        firsts = {each.problem.id: each for each in requests}
        if self.vision is not None:
            check_prompts(self.vision, self.tokenizer, list(firsts.values()))
        prompts = {name: self._prompt(each) for name, each in firsts.items()}
        with progress(len(requests), self.label) as bar:
            for batch in batches(requests, self.settings.batch_size):
                asked = [prompts[each.problem.id]._replace(seed=each.seed) for each in batch]
                self._lead(batch, asked, params, keep, bar)

    def _prompt(self, request: Request) -> DialogueRequest:
        problem = request.problem
        begun, schemas = opening(self.benchmark.environment, problem.row, self.budget)
        ids = render(
            self.tokenizer,
            [*problem.messages, *begun],
            images=len(request.images),
            tools=schemas,
        )
        return DialogueRequest(ids, request.seed, request.images)

    def _lead(
        self,
        batch: Sequence[Request],
        asked: Sequence[DialogueRequest],
        params: SamplingParams,
        keep: Keep,
        bar: Any,
    ) -> None:
        def finished(place: int, dialogue: Dialogue) -> None:
            keep(batch[place].key, self._generation(dialogue))
            bar.update()

        kind = find_environment(self.benchmark.environment)
        run_dialogues(
            self.engine,
            self.tokenizer,
            asked,
            params,
            lambda place: kind.make(batch[place].problem.row, self.budget),
            style=kind.style,
            max_turns=self.settings.max_turns,
            max_tokens=params.max_new_tokens,
            tool_seconds=TOOL_SECONDS,
            on_finished=finished,
        )

    def _generation(self, dialogue: Dialogue) -> Generation:
        rollout = dialogue.rollout
        opened = opened_thought(self.tokenizer, rollout.prompt_ids)
        return Generation(
            text=opened + dialogue.text,
            answer=self._answer(dialogue, opened),
            ids=rollout.response_ids,
            finish_reason=rollout.finish_reason,
            tokens=len(rollout.sampled_ids),
            prompt_tokens=prompt_length(self.vision, rollout.prompt_ids, rollout.images),
            seconds=round(dialogue.seconds, 4),
            calls=rollout.calls,
            failed_calls=rollout.failed_calls,
            broken=bool(rollout.error),
        )

    def _answer(self, dialogue: Dialogue, opened: str) -> str:
        """What is graded."""
        if self.benchmark.grader == "tau2":
            return _transcript(dialogue)
        return opened + dialogue.answer if len(dialogue.turns) == 1 else dialogue.answer


def _transcript(dialogue: Dialogue) -> str:
    """The model's messages as tau2's grader reads them; one that was cut off earns nothing."""
    messages = [{"role": "assistant", "content": turn.text} for turn in dialogue.turns]
    ended = "agent_stop" if dialogue.rollout.finish_reason == "stop" else "max_steps"
    return json.dumps({"messages": messages, "termination_reason": ended})
