"""Samples that are dialogues with a tool: a Python interpreter, or a domain of tau2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evals.benchmarks import Benchmark
from evals.benchmarks.base import Problem
from evals.harness.dialogue import Dialogue, DialogueRequest, run_dialogues
from evals.harness.journal import Generation
from evals.harness.sampler import Keep, Request, batches, opened_thought, progress
from reopold.config import EvaluationConfig
from reopold.data.tokenizers import render
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
    whole: bool = False
    """Whether the whole dialogue is graded, not only the model's last message."""


def _python(problem: Problem, settings: EvaluationConfig) -> Environment:
    return PythonEnvironment("fenced", calls=settings.max_turns)


def _tau2(problem: Problem, settings: EvaluationConfig) -> Environment:
    return Tau2Mock(problem.row["db"], problem.row["policy"], problem.row)


TOOLS = {"python": Tool("fenced", _python), "tau2_mock": Tool("tool_call", _tau2, whole=True)}


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

                def finished(
                    place: int, dialogue: Dialogue, batch: Sequence[Request] = batch
                ) -> None:
                    keep(batch[place].key, self._generation(dialogue, tool))
                    bar.update()

                run_dialogues(
                    self.engine,
                    self.tokenizer,
                    [
                        DialogueRequest(render(self.tokenizer, r.problem.messages), r.seed)
                        for r in batch
                    ],
                    params,
                    lambda place, batch=batch: tool.make(batch[place].problem, self.settings),  # type: ignore[misc]
                    style=tool.style,
                    max_turns=self.settings.max_turns,
                    max_tokens=params.max_new_tokens,
                    on_finished=finished,
                )

    def _generation(self, dialogue: Dialogue, tool: Tool) -> Generation:
        opened = opened_thought(self.tokenizer, dialogue.prompt_ids)
        first = opened if len(dialogue.turns) == 1 else ""
        return Generation(
            text=opened + dialogue.text,
            answer=None if tool.whole else first + dialogue.answer,
            ids=dialogue.ids,
            finish_reason=dialogue.finish_reason,
            tokens=dialogue.tokens,
            prompt_tokens=len(dialogue.prompt_ids),
            seconds=round(dialogue.seconds, 4),
            calls=dialogue.calls,
            failed_calls=dialogue.failed_calls,
            broken=bool(dialogue.error),
        )
