"""Grading: from a response's text to a verdict."""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from evals.benchmarks import Benchmark, find
from evals.benchmarks.base import Row
from evals.grading.verdict import NO_ANSWER, Context, Rule, Status, Verdict
from reopold.answers.thinking import answer_text
from reopold.answers.workers import call_in_workers
from reopold.config import ConfigError

GraderFunction = Callable[[str, Row, Context], Verdict]


@dataclass(frozen=True)
class Grader:
    """A grading function and how it is run."""

    function: str
    """`module:name`, imported when it is needed."""
    rules: tuple[Rule, ...] = ("sound",)
    """Those it knows, the default first."""
    isolation: Literal["inline", "worker", "sandbox"] = "inline"
    """inline: bounded by itself. worker: in a process that can be killed, with limits of time and
    memory. sandbox: starts sandboxed programs, several at a time."""
    thinks: bool = True
    """Whether a thought before the answer is cut off before the function sees the response."""

    def load(self) -> GraderFunction:
        module, _, name = self.function.partition(":")
        function: GraderFunction = getattr(importlib.import_module(module), name)
        return function


GRADERS: dict[str, Grader] = {
    "final_answer": Grader("evals.grading.micro:grade_final_answer"),
    "integer": Grader("evals.grading.maths:grade_integer", isolation="worker"),
    "maths": Grader("evals.grading.maths:grade_maths", ("sound", "official"), "worker"),
    "gsm8k": Grader("evals.grading.maths:grade_gsm8k", ("sound", "official", "percent"), "worker"),
    "olympiadbench": Grader(
        "evals.grading.olympiad:grade_olympiad", ("sound", "official"), "worker"
    ),
    "mathvista": Grader(
        "evals.grading.mathvista:grade_mathvista", ("sound", "official", "current", "legacy")
    ),
    "mathvision": Grader(
        "evals.grading.mathvision:grade_mathvision", ("sound", "official"), "worker"
    ),
    "mathverse": Grader("evals.grading.mathverse:grade_mathverse", isolation="worker"),
    "wemath": Grader("evals.grading.wemath:grade_wemath", ("sound", "official")),
    "dynamath": Grader("evals.grading.dynamath:grade_dynamath"),
    "hallusionbench": Grader("evals.grading.hallusionbench:grade_hallusion", ("sound", "official")),
    "logicvista": Grader("evals.grading.logicvista:grade_logicvista"),
    "mmmu": Grader("evals.grading.mmmu:grade_mmmu", ("sound", "official")),
    "bfcl": Grader("evals.grading.bfcl:grade_bfcl", ("sound", "official")),
    "tau2": Grader("evals.grading.tau2:grade_tau2", thinks=False),
    "livecodebench": Grader(
        "evals.grading.code:grade_livecodebench", ("sound", "official"), "sandbox"
    ),
    "humaneval": Grader("evals.grading.code:grade_humaneval", isolation="sandbox"),
    "leetcode": Grader("evals.grading.code:grade_leetcode", isolation="sandbox"),
    "codeforces": Grader("evals.grading.code:grade_codeforces", isolation="sandbox"),
}

__all__ = [
    "GRADERS",
    "Grader",
    "Status",
    "Verdict",
    "check_rule",
    "grade",
    "grade_in_workers",
    "grade_many",
]


def check_rule(benchmark: Benchmark, rule: str | None) -> Rule:
    """The rule of that name, the default for None.

    Raises:
        ConfigError: the benchmark has no such rule.
    """
    rules = GRADERS[benchmark.grader].rules
    found = (
        rules[0]
        if rule is None
        else next((known for known in rules if known == rule.lower()), None)
    )
    if found is None:
        raise ConfigError(
            f"benchmark '{benchmark.name}' has no rule '{rule}'; it has: {', '.join(rules)}"
        )
    return found


def grade(benchmark: str, response: str, record: Row, rule: str | None = None) -> Verdict:
    """The verdict on one response to the item `record`, a row of the benchmark's own schema.

    Raises:
        ConfigError: no benchmark or rule of that name, or the record lacks a field.
    """
    return grade_many(benchmark, [(response, record)], rule)[0]


def grade_many(
    benchmark: str, pairs: Sequence[tuple[str, Row]], rule: str | None = None, seed: int = 42
) -> list[Verdict]:
    """The verdicts on (response, record) pairs, in order, several at a time.

    Args:
        seed: of official rules that guess where nothing can be read off (MMMU).

    Raises:
        ConfigError: as :func:`grade`.
    """
    found = find(benchmark)
    grader = GRADERS[found.grader]
    context = Context(check_rule(found, rule), random.Random(seed))
    texts = [answer_text(response) if grader.thinks else response for response, _ in pairs]
    places = [place for place, text in enumerate(texts) if text is not None]
    work = [(texts[place] or "", pairs[place][1], context) for place in places]
    verdicts = [NO_ANSWER] * len(pairs)
    for place, found_verdict in zip(places, _run(grader, work), strict=True):
        verdicts[place] = found_verdict
    return verdicts


def _run(grader: Grader, work: list[tuple[str, Row, Context]]) -> list[Verdict]:
    if grader.isolation == "worker":
        return grade_in_workers(grader.function, work)
    function = grader.load()
    if grader.isolation == "sandbox":
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1)) as pool:
            return list(pool.map(lambda arguments: function(*arguments), work))
    return [function(*arguments) for arguments in work]


def grade_in_workers(function: str, work: Sequence[tuple[str, Row, Context]]) -> list[Verdict]:
    """The verdicts of a grading function, in order; see :func:`call_in_workers`.

    A grader sees a copy of the context: random numbers that it draws are not used up for others.

    Raises:
        ConfigError: a record lacks a field.
        WorkerError: the function is not there, or no worker starts.
    """
    return [
        Verdict(*result.value)
        if result.status == "ok"
        else Verdict(correct=False, extracted=None, status=result.status)
        for result in call_in_workers(function, work)
    ]
