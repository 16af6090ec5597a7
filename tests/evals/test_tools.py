"""Benchmarks with tools, from prompt to score: scripted words, a real interpreter and world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evals.benchmarks import find
from evals.benchmarks.problems import load_problems
from evals.harness.adapter import sample_seed
from evals.harness.journal import Journal
from evals.harness.task import Question, run_benchmark
from evals.harness.tools import DialogueSampler
from reopold.config import EvaluationConfig
from reopold.dialogues import turn_seed
from reopold.sandbox import SandboxFailure
from tests.reopold.scripted_dialogues import TOKENIZER, ScriptedEngine, turn


class ByName(ScriptedEngine):
    """The scripts of questions by id; their seeds are the evaluation's own."""

    def __init__(self, scripts: dict[str, list[str]], seed: int) -> None:
        super().__init__([[turn(text) for text in texts] for texts in scripts.values()])
        self.names, self.seed = list(scripts), seed

    def generate(self, prompts: Any, params: Any, *, seeds: Any, **kwargs: Any) -> Any:
        known = {
            turn_seed(sample_seed(self.seed, name, 0), k): turn_seed(100 + d, k)
            for d, name in enumerate(self.names)
            for k in range(9)
        }
        return super().generate(prompts, params, seeds=[known[s] for s in seeds], **kwargs)


def lead(name: str, folder: Path, scripts: list[list[str]]) -> list[Question]:
    settings = EvaluationConfig(
        benchmark=name, data=str(folder), samples=1, max_new_tokens=4000, limit=len(scripts)
    )
    problems = load_problems(find(name), folder, limit=len(scripts)).problems
    by_name = dict(zip([problem.id for problem in problems], scripts, strict=True))
    engine: Any = ByName(by_name, settings.seed)
    sampler = DialogueSampler(engine, TOKENIZER, find(name), settings, "sampling")
    return run_benchmark(find(name), problems, settings, sampler, Journal(None, ""))


def test_maths_with_an_interpreter(benchmarks_dir: Path) -> None:
    gold = load_problems(find("gsm8k"), benchmarks_dir).problems[0].gold
    right, printed, endless = lead(
        "gsm8k_python",
        benchmarks_dir,
        [
            [f"```python\nx = {gold}\n```\n", "```python\nprint(x)\n```\n", f"\\boxed{{{gold}}}"],
            ["```python\nprint('the answer is 3')\n```\n", "I do not know."],
            ["```python\n1+1\n```\n"] * 8,
        ],
    )
    found = [question.samples[0] for question in (right, printed, endless)]
    assert [sample.verdict.status for sample in found] == ["ok", "no_answer", "no_answer"]
    generation = found[0].generation
    assert (generation.calls, generation.failed_calls) == (2, 0)
    assert f"```output\n{gold}\n```" in generation.text
    assert generation.tokens < len(generation.ids)  # what the tool said was not sampled
    assert found[2].generation.finish_reason == "turns"


def test_a_broken_interpreter_is_not_the_model_s_mistake(
    benchmarks_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise SandboxFailure("no")

    monkeypatch.setattr("reopold.sandbox.interpreter.Interpreter.execute", broken)
    (question,) = lead("gsm8k_python", benchmarks_dir, [["```python\n1\n```\n", "#### 18"]])
    assert question.samples[0].verdict.status == "sandbox_failure"


def test_a_world_of_tau2(benchmarks_dir: Path) -> None:
    call = (
        '<tool_call>{"name": "create_task", "arguments": {"user_id": "user_1", '
        '"title": "Important Meeting"}}</tool_call>'
    )
    right, idle = lead("tau2_mock", benchmarks_dir, [[call, "It is done."], ["It is done."]])
    assert right.problem.id == "create_task_1"
    assert right.samples[0].verdict.correct and not idle.samples[0].verdict.correct
    assert right.samples[0].generation.calls == 1
