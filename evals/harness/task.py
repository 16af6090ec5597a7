"""Running one benchmark through lm-eval: the recipe's half of the task, and what comes out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from datasets import Dataset
from lm_eval import evaluate
from lm_eval.api.task import ConfigurableTask

from evals.benchmarks import Benchmark
from evals.benchmarks.problems import Record
from evals.grading import Verdict, grade
from evals.harness.adapter import EngineLM, Generation
from evals.results import METRICS, Metric
from evals.scaling import avg_at_k, majority_at_k, pass_at_k
from reopold.config import EvaluationConfig
from reopold.engines.base import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Sample:
    response: str
    verdict: Verdict
    generation: Generation


@dataclass(frozen=True)
class Question:
    """A test problem with its k samples and its own value of every metric."""

    record: Record
    samples: list[Sample]
    values: dict[Metric, float]


def run_benchmark(
    benchmark: Benchmark,
    records: Sequence[Record],
    settings: EvaluationConfig,
    engine: Engine,
    tokenizer: PreTrainedTokenizerFast,
) -> list[Question]:
    """Sample and grade every problem, in the order of `records`.

    lm-eval renders, repeats, filters and calls the grader. It is entered at `evaluate`:
    `simple_evaluate` does the same, but reseeds the global generators and collects the hardware
    with subprocesses, a second a checkpoint.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about defaults we set
    verdicts: dict[str, list[Verdict]] = {}

    def process_results(doc: Record, results: list[list[str]]) -> dict[str, float]:
        graded = [grade(benchmark.name, response, doc) for response in results[0]]
        verdicts[doc["id"]] = graded
        return question_values(graded, doc["answer"])

    task = build_task(benchmark, records, settings, process_results)
    lm = EngineLM(engine, tokenizer, seed=settings.seed, batch_size=settings.batch_size)
    outcome = evaluate(
        lm,
        {"tasks": {benchmark.name: task}},
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    questions = []
    for logged in outcome["samples"][benchmark.name]:
        record: Record = logged["doc"]
        key = record["id"]
        samples = [
            Sample(*parts)
            for parts in zip(logged["resps"][0], verdicts[key], lm.generations[key], strict=True)
        ]
        questions.append(Question(record, samples, {metric: logged[metric] for metric in METRICS}))
    return questions


def build_task(
    benchmark: Benchmark,
    records: Sequence[Record],
    settings: EvaluationConfig,
    process_results: Callable[[Record, list[list[str]]], dict[str, float]],
) -> ConfigurableTask:
    """The benchmark's YAML with the recipe's settings filled in.

    The problems are handed over in memory. Through `data_files`, the datasets library would copy
    them to a cache under the user's home, and answer from there.
    """
    config: dict[str, Any] = yaml.safe_load(benchmark.yaml.read_text(encoding="utf-8"))
    config |= {
        "custom_dataset": lambda **_: {config["test_split"]: Dataset.from_list(list(records))},
        "repeats": settings.samples,
        # The default filter keeps the first sample only, whatever `repeats` says.
        "filter_list": [
            {"name": "all", "filter": [{"function": "take_first_k", "k": settings.samples}]}
        ],
        "process_results": process_results,
        "generation_kwargs": {
            "max_gen_toks": settings.max_new_tokens,
            "temperature": settings.temperature,
            "do_sample": settings.temperature > 0.0,
            "until": [],
        },
    }
    return ConfigurableTask(config=config)


def question_values(verdicts: Sequence[Verdict], gold: str) -> dict[str, float]:
    """The metrics of one question at k = the number of its samples."""
    n, right = len(verdicts), sum(verdict.correct for verdict in verdicts)
    answers = [verdict.extracted for verdict in verdicts]
    return {
        "avg@k": avg_at_k(n, right),
        "pass@k": pass_at_k(n, right, n),
        "maj@k": majority_at_k(answers, gold.strip(), n),
    }
