"""From graded samples to a benchmark's scores, the same for an evaluation and for saved outputs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from evals.benchmarks.base import Benchmark, Graded
from evals.clusters import ClusteredScore, accuracy_score, question_score, tally_scores
from evals.grading.verdict import Verdict
from evals.scaling import avg_at_k, majority_at_k, pass_at_k

Metric = Literal["avg@k", "pass@k", "maj@k"]

METRICS: tuple[Metric, ...] = ("avg@k", "pass@k", "maj@k")


class Unscored(RuntimeError):
    """Samples that say nothing about the model, because the sandbox broke: there is no score."""


class Score(BaseModel):
    """One metric over the questions, with its 95 % interval, all in the metric's own unit."""

    # A limit that nothing is known of is "NaN" in JSON, which reads back as one.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    metric: str
    """avg@k, pass@k, maj@k, or one of the benchmark's own."""
    k: int
    n: int
    """Questions that count in it."""
    value: float
    low: float
    high: float
    question_se: float | None
    """Standard error where the questions (or their clusters) are the sample: another test set."""
    seed_se: float | None
    """Standard error of a rerun on the same questions; None with one sample a question."""

    @property
    def name(self) -> str:
        """`avg@k` with its number: `avg@32`."""
        return self.metric.replace("@k", f"@{self.k}")


#: The class of right answers; wrong ones are numbered.
RIGHT = "right"


def votes(benchmark: Benchmark, verdicts: Sequence[Verdict]) -> list[str | None]:
    """What each sample of a question votes for: a class of equivalent answers.

    Right answers all equal the gold one, so they are one class, whatever their spelling; wrong
    ones are compared with one another. A sample without an answer has no vote.
    """
    from evals.grading.classes import answer_classes

    wrong = [v.extracted if not v.correct else None for v in verdicts]
    classes = answer_classes(benchmark.name, wrong)
    return [
        RIGHT if verdict.correct else None if number is None else f"wrong {number}"
        for verdict, number in zip(verdicts, classes, strict=True)
    ]


def question_values(verdicts: Sequence[Verdict], voted: Sequence[str | None]) -> dict[str, float]:
    """The metrics of one question at k = the number of its samples."""
    return _values_at(len(verdicts), verdicts, voted)


def _values_at(
    k: int, verdicts: Sequence[Verdict], voted: Sequence[str | None]
) -> dict[str, float]:
    n, right = len(verdicts), sum(verdict.correct for verdict in verdicts)
    return {
        "avg@k": avg_at_k(n, right),
        "pass@k": pass_at_k(n, right, k),
        "maj@k": majority_at_k(voted, RIGHT, k),
    }


def score(
    benchmark: Benchmark,
    graded: Sequence[Graded],
    voted: Sequence[Sequence[str | None]],
    *,
    every_k: bool = False,
) -> list[Score]:
    """avg@k, pass@k and maj@k, then the benchmark's own metrics, with intervals over clusters.

    Args:
        voted: the votes on each problem's samples.
        every_k: pass@k and maj@k at 1, 2, 4, ... too, not only at all samples.
    """
    counts = [(len(g.verdicts), sum(v.correct for v in g.verdicts)) for g in graded]
    largest = min(n for n, _ in counts)  # of every question: none is left out silently
    clusters = [g.problem.cluster or g.problem.id for g in graded]
    scores = [_score("avg@k", largest, len(graded), accuracy_score(counts, clusters))]
    ladder = [2**i for i in range(largest.bit_length()) if 2**i < largest] if every_k else []
    for k in [*ladder, largest]:
        values = [_values_at(k, g.verdicts, v) for g, v in zip(graded, voted, strict=True)]
        for metric in METRICS[1:]:
            found = question_score([value[metric] for value in values], clusters)
            scores.append(_score(metric, k, len(graded), found))
    return [*scores, *_own_scores(benchmark, graded, clusters, largest)]


def _own_scores(
    benchmark: Benchmark, graded: Sequence[Graded], clusters: Sequence[str], k: int
) -> list[Score]:
    if benchmark.tally is None:
        return []
    together: dict[str, list[Graded]] = defaultdict(list)
    for each, cluster in zip(graded, clusters, strict=True):
        together[cluster].append(each)
    tallies = [benchmark.tally(members) for members in together.values()]
    found = tally_scores(tallies, benchmark.composites)
    return [
        _score(name, k, each.clusters, each)
        for name, each in found.items()
        if not math.isnan(each.value)  # a category of which nothing was asked
    ]


def _score(metric: str, k: int, n: int, found: ClusteredScore) -> Score:
    return Score(
        metric=metric,
        k=k,
        n=n,
        value=found.value,
        low=found.low,
        high=found.high,
        question_se=found.question_se,
        seed_se=found.seed_se,
    )
