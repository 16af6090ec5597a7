"""Running one benchmark through lm-eval: the recipe's half of the task, and what comes out."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from evals.benchmarks import Benchmark
from evals.benchmarks.base import Problem, Row
from evals.grading import Verdict, grade_many
from evals.grading.verdict import BROKEN
from evals.harness.adapter import EngineLM
from evals.harness.journal import Generation, Journal, SampleKey
from evals.harness.sampler import Sampler
from evals.scores import METRICS, Metric, question_values, votes
from reopold.config import EvaluationConfig

TASK = Path(__file__).parent / "benchmark.yaml"


@dataclass(frozen=True)
class Sample:
    generation: Generation
    verdict: Verdict
    vote: str | None
    """Class of equivalent answers (see :func:`evals.scores.votes`)."""


@dataclass(frozen=True)
class Question:
    """A test problem with its k samples and its own value of every metric."""

    problem: Problem
    samples: list[Sample]
    values: dict[Metric, float]


def run_benchmark(
    benchmark: Benchmark,
    problems: Sequence[Problem],
    settings: EvaluationConfig,
    sampler: Sampler,
    journal: Journal,
) -> list[Question]:
    """Sample and grade every problem, in the order of `problems`.

    lm-eval's `simple_evaluate` repeats, filters, calls the grader and aggregates.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about defaults we set
    by_id = {problem.id: problem for problem in problems}
    lm = EngineLM(sampler, by_id, journal, seed=settings.seed)
    grading = _Grading(benchmark, problems, settings, journal)

    def process_results(doc: Row, results: Sequence[Sequence[str]]) -> dict[str, float]:
        return grading.values(doc["id"])  # a function: lm-eval copies whatever else a task holds

    task = build_task(benchmark, problems, settings, process_results)
    outcome = simple_evaluate(
        lm,
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        # The sampler has seeds of its own; the trainer's process may share the generators.
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
    )
    logged = {sample["doc"]["id"]: sample for sample in outcome["samples"][benchmark.name]}
    return [
        Question(
            problem,
            grading.samples(problem.id),
            {metric: logged[problem.id][metric] for metric in METRICS},
        )
        for problem in problems
    ]


@dataclass
class _Grading:
    """lm-eval asks for one question at a time; grading them all at once keeps every core busy."""

    benchmark: Benchmark
    problems: Sequence[Problem]
    settings: EvaluationConfig
    journal: Journal
    verdicts: dict[str, list[Verdict]] = field(default_factory=dict)
    votes: dict[str, list[str | None]] = field(default_factory=dict)

    def values(self, question: str) -> dict[str, float]:
        if not self.verdicts:
            self._grade_all()
        return question_values(self.verdicts[question], self.votes[question])

    def samples(self, question: str) -> list[Sample]:
        graded = zip(self.verdicts[question], self.votes[question], strict=True)
        return [
            Sample(self.journal[SampleKey(question, repeat)], verdict, vote)
            for repeat, (verdict, vote) in enumerate(graded)
        ]

    def _grade_all(self) -> None:
        keys = [(p, k) for p in self.problems for k in range(self.settings.samples)]
        drawn = [self.journal[SampleKey(p.id, k)] for p, k in keys]
        pairs = [
            (each.text if each.answer is None else each.answer, problem.row)
            for each, (problem, _) in zip(drawn, keys, strict=True)
        ]
        found = grade_many(self.benchmark.name, pairs, self.settings.rule or None)
        graded: dict[str, list[Verdict]] = defaultdict(list)
        for (problem, _), verdict, each in zip(keys, found, drawn, strict=True):
            graded[problem.id].append(BROKEN if each.broken else verdict)
        self.votes = {name: votes(self.benchmark, each) for name, each in graded.items()}
        self.verdicts = dict(graded)


def build_task(
    benchmark: Benchmark,
    problems: Sequence[Problem],
    settings: EvaluationConfig,
    process_results: Callable[[Row, Sequence[Sequence[str]]], dict[str, float]],
) -> ConfigurableTask:
    """The YAML of every benchmark with this one's items and settings filled in.

    The items are handed over in memory. Through `data_files`, the datasets library would copy
    them to a cache under the user's home, and answer from there.
    """
    docs = [
        {
            "id": problem.id,
            "text": problem.messages[-1]["content"],
            "gold": problem.gold,
            "images": problem.images,
        }
        for problem in problems
    ]
    config: dict[str, Any] = yaml.safe_load(TASK.read_text(encoding="utf-8"))
    config |= {
        "task": benchmark.name,
        "metadata": {"version": benchmark.version},
        "custom_dataset": lambda **_: {config["test_split"]: Dataset.from_list(docs)},
        "repeats": settings.samples,
        # The default filter keeps the first sample only, whatever `repeats` says.
        "filter_list": [
            {"name": "all", "filter": [{"function": "take_first_k", "k": settings.samples}]}
        ],
        "process_results": process_results,
        "generation_kwargs": {
            "max_gen_toks": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "do_sample": settings.temperature > 0.0,
            "until": [],
        },
    }
    if benchmark.family == "visual":
        # lm-eval's multimodal route. What it hands on as pictures are paths here: the same picture
        # stands in many requests, and every model reads it in its own way.
        config["doc_to_image"] = lambda doc: doc["images"]
    return ConfigurableTask(config=config)
