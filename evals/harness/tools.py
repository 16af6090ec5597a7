"""Samples that are dialogues with a tool: a Python interpreter, or a domain of tau2."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evals.benchmarks import Benchmark
from evals.benchmarks.base import Problem
from evals.harness.dialogue import Dialogue, DialogueRequest, run_dialogues
from evals.harness.journal import Generation
from evals.harness.sampler import Keep, Request, batches, opened_thought, progress, rendered
from reopold.config import EvaluationConfig
from reopold.engines.base import Engine
from reopold.environments.base import Environment
from reopold.environments.python import PythonEnvironment
from reopold.environments.tau2_mock import Tau2Mock
from reopold.rollouts import SamplingParams


@dataclass(frozen=True)
class Tool:
    """What a benchmark's `environment` stands for."""

    style: Literal["fenced", "tool_call"]
    make: Callable[[Problem, EvaluationConfig], Environment]
    answer: Callable[[Dialogue], str]
    """What is graded."""


def _python(problem: Problem, settings: EvaluationConfig) -> Environment:
    return PythonEnvironment("fenced", calls=settings.max_turns)


def _tau2(problem: Problem, settings: EvaluationConfig) -> Environment:
    return Tau2Mock(problem.row["db"], problem.row["policy"], problem.row)


def _last_message(dialogue: Dialogue) -> str:
    """What a tool printed is no answer."""
    return dialogue.answer


def _transcript(dialogue: Dialogue) -> str:
    """The model's messages as tau2's grader reads them; one that was cut off earns nothing."""
    messages = [{"role": "assistant", "content": turn.text} for turn in dialogue.turns]
    ended = "agent_stop" if dialogue.finish_reason == "stop" else "max_steps"
    return json.dumps({"messages": messages, "termination_reason": ended})


TOOLS = {
    "python": Tool("fenced", _python, _last_message),
    "tau2_mock": Tool("tool_call", _tau2, _transcript),
}


@dataclass
class DialogueSampler:
    """A dialogue a request, many at once."""

    engine: Engine
    tokenizer: Any
    benchmark: Benchmark
    settings: EvaluationConfig
    label: str

    def sample(self, requests: Sequence[Request], params: SamplingParams, keep: Keep) -> None:
        tool = TOOLS[self.benchmark.environment]
        with progress(len(requests), self.label) as bar:
            for batch in batches(requests, self.settings.batch_size):
                self._lead(batch, tool, params, keep, bar)

    def _lead(
        self, batch: Sequence[Request], tool: Tool, params: SamplingParams, keep: Keep, bar: Any
    ) -> None:
        def finished(place: int, dialogue: Dialogue) -> None:
            keep(batch[place].key, self._generation(dialogue, tool))
            bar.update()

        prompts = rendered(self.tokenizer, batch)
        run_dialogues(
            self.engine,
            self.tokenizer,
            [DialogueRequest(*pair) for pair in zip(prompts, [r.seed for r in batch], strict=True)],
            params,
            lambda place: tool.make(batch[place].problem, self.settings),
            style=tool.style,
            max_turns=self.settings.max_turns,
            max_tokens=params.max_new_tokens,
            on_finished=finished,
        )

    def _generation(self, dialogue: Dialogue, tool: Tool) -> Generation:
        opened = opened_thought(self.tokenizer, dialogue.prompt_ids)
        first = opened if len(dialogue.turns) == 1 and tool.style == "fenced" else ""
        return Generation(
            text=opened + dialogue.text,
            answer=first + tool.answer(dialogue),
            ids=dialogue.ids,
            finish_reason=dialogue.finish_reason,
            tokens=dialogue.tokens,
            prompt_tokens=len(dialogue.prompt_ids),
            seconds=round(dialogue.seconds, 4),
            calls=dialogue.calls,
            failed_calls=dialogue.failed_calls,
            broken=bool(dialogue.error),
        )
