"""Scores of a study on one benchmark: every evaluated checkpoint, resampled on shared questions."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property

import numpy as np
import pandas as pd

from evals.report.statistics import (
    QUESTIONS,
    Curve,
    Estimate,
    FloatArray,
    Part,
    over_seeds,
    resampled_means,
    seed_weights,
    unanimous_interval,
)
from evals.report.study import Evaluation, Run, Study
from evals.scores import Metric
from evals.stats import Interval
from reopold.study_config import REFERENCES

METRICS: tuple[Metric, ...] = ("avg@k", "pass@k", "maj@k")
#: Run, step and metric: names a column of question values.
Column = tuple[str, int, Metric]


class Scores:
    """Scores and resamples of every evaluated checkpoint, on the questions they share."""

    def __init__(
        self,
        study: Study,
        benchmark: str,
        scored: list[tuple[Run, Evaluation]],
        notes: list[str],
    ) -> None:
        self.study, self.benchmark = study, benchmark
        averages = [item.average for _, item in scored if item.average is not None]
        shared = averages[0].index
        for average in averages[1:]:
            if not average.index.equals(shared):
                shared = shared.intersection(average.index)
        self.questions = len(shared)
        clusters = scored[0][1].clusters
        self.clusters = [str(x) for x in (shared if clusters is None else clusters.loc[shared])]
        largest = max(len(average) for average in averages)
        if self.questions < largest:
            notes.append(
                f"The evaluations on {benchmark} do not share all questions: comparisons use the "
                f"{self.questions} of {largest} that they have in common."
            )
        values: dict[Column, FloatArray] = {}
        for (run, item), average in zip(scored, averages, strict=True):
            values[run.name, item.step, "avg@k"] = _on(shared, average)
        for name, final in {run.name: item for run, item in scored}.items():  # the last one stays
            for metric in METRICS[1:]:
                with suppress(OSError, ValueError):  # not measured, or the samples are gone
                    values[name, final.step, metric] = _on(shared, final.question_values(metric))
        self.column = {key: index for index, key in enumerate(values)}
        self.values_RQ = np.stack(list(values.values()))

    @cached_property
    def draws_BR(self) -> FloatArray:  # noqa: N802 -- named by its axes
        return resampled_means(self.values_RQ, clusters=self.clusters)

    @property
    def methods(self) -> list[str]:
        """References and methods with a score, in study order."""
        teachers = [name for name in self.study.references if name != REFERENCES[0]]
        order = [REFERENCES[0], *self.study.compared, *teachers]
        return [method for method in order if self.of(method)]

    def of(self, method: str) -> list[Run]:
        return [run for run in self.study.of(method) if run.scored(self.benchmark)]

    def final(self, run: Run) -> Evaluation:
        return run.scored(self.benchmark)[-1]

    def estimate(self, run: Run) -> Estimate:
        """The run's final avg@k; only questions are resampled."""
        column = self.column[run.name, self.final(run).step, "avg@k"]
        draws_B = self.draws_BR[:, column]
        parts = {QUESTIONS: Part(draws_B, max(1, self.units - 1))}
        return Estimate(float(self.values_RQ[column].mean()), draws_B, parts)

    @property
    def units(self) -> int:
        """Independent pieces of evidence: clusters of questions."""
        return len(set(self.clusters))

    def pooled(self, method: str) -> Estimate | None:
        """Mean over seeds of the final avg@k; questions and seeds are resampled."""
        found = self._pooled(method, "avg@k")
        return found[0] if found else None

    def score(self, method: str, metric: Metric) -> Interval | None:
        """As `pooled`, for any metric; where all questions agree, an interval with a width."""
        found = self._pooled(method, metric)
        if found is None:
            return None
        estimate, columns = found
        values_SQ = self.values_RQ[columns]
        if values_SQ.min() == values_SQ.max():
            return unanimous_interval(values_SQ, self.clusters)
        found_interval = estimate.interval()
        low, high = max(0.0, found_interval.low), min(1.0, found_interval.high)
        return Interval(found_interval.value, low, high)

    def _pooled(self, method: str, metric: Metric) -> tuple[Estimate, list[int]] | None:
        keys = [(run.name, self.final(run).step, metric) for run in self.of(method)]
        if not keys or any(key not in self.column for key in keys):
            return None
        columns = [self.column[key] for key in keys]
        values_S = self.values_RQ[columns].mean(axis=1)
        weights_BS = seed_weights(method, len(columns))
        draws_BS = self.draws_BR[:, columns]
        return over_seeds(method, values_S, draws_BS, weights_BS, self.units), columns

    def curve(self, method: str, unit: str) -> Curve | None:
        """Scores and costs at the checkpoints that all seeds share; None if there are none."""
        runs = self.of(method)
        steps = self.common_steps(method)
        if not steps:
            return None
        columns_SC = np.array(
            [[self.column[run.name, step, "avg@k"] for step in steps] for run in runs]
        )
        return Curve(
            method=method,
            units=self.units,
            scores_SC=self.values_RQ.mean(axis=1)[columns_SC],
            draws_BSC=self.draws_BR[:, columns_SC],
            weights_BS=seed_weights(method, len(runs)),
            costs_SC=np.array([[run.cost(step)[unit] for step in steps] for run in runs]),
        )

    def common_steps(self, method: str) -> list[int]:
        per_run = [{item.step for item in run.scored(self.benchmark)} for run in self.of(method)]
        common = set.intersection(*per_run) if per_run else set()
        return sorted(step for step in common if step > 0)


def _on(shared: pd.Index[str], values: pd.Series[float]) -> FloatArray:
    return np.asarray(values.loc[shared], dtype=np.float64)
