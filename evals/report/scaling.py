"""What more samples a question buy: the study's test-time scaling experiment on one benchmark.

Axes: Q questions, K numbers of samples, S seeds, R = S x K columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from evals.report.statistics import (
    FloatArray,
    over_seeds,
    resampled_means,
    seed_weights,
    unanimous_interval,
)
from evals.report.study import Run, Study
from evals.results import SAMPLES_FILE, Results, read_results
from evals.scaling.curves import QuestionCurves, question_curves
from evals.scaling.curves import over_seeds as mean_curves
from evals.scaling.speedup import SpeedUp, speed_up
from evals.scaling.stage import FOLDER
from evals.stats import Interval
from reopold.config import ConfigError
from reopold.study_config import REFERENCES

METRICS = ("maj@k", "pass@k")
_COLUMNS = [
    "question_id",
    "cluster",
    "sample",
    "vote",
    "correct",
    "tokens",
    "prompt_tokens",
    "seconds",
]


@dataclass(frozen=True)
class Point:
    """Scores at k samples a question, and what they cost a question."""

    k: int
    maj: Interval
    pass_: Interval
    tokens: float
    """Of the prompt, read once, and k responses."""
    flops: float
    seconds: float


@dataclass(frozen=True)
class ScalingRow:
    """One method, mean over its seeds; student and teacher are methods of one seed."""

    method: str
    seeds: list[int]
    parameters: int
    points: list[Point]
    """By ascending k, from 1."""


@dataclass(frozen=True)
class Scaling:
    """The experiment on one benchmark: `n` questions, `k` samples each at most."""

    benchmark: str
    n: int
    k: int
    rows: list[ScalingRow]
    speed_ups: dict[str, SpeedUp]
    """By method, over the teacher's single sample; empty without a teacher."""
    notes: list[str] = field(default_factory=list)

    def row(self, method: str) -> ScalingRow | None:
        return next((row for row in self.rows if row.method == method), None)


def scaling(study: Study, benchmark: str) -> Scaling | None:
    """What STUDY/scaling holds on `benchmark`; None where that is nothing."""
    notes: list[str] = []
    wanted = [name for name in study.config.scaling.methods if name in study.compared]
    curves = {
        method: found
        for method in (REFERENCES[0], *wanted, REFERENCES[1])
        if (found := _measured(study, method, benchmark, notes))
    }
    if not curves:
        return None
    curves = _comparable(curves, notes)
    teacher = curves.get(REFERENCES[1])
    speed_ups = {
        method: speed_up([each for _, each in measured], teacher[0][1])
        for method, measured in curves.items()
        if teacher and method != REFERENCES[1]
    }
    first = next(iter(curves.values()))[0][1]
    return Scaling(
        benchmark=benchmark,
        n=len(first.questions),
        k=first.ks[-1],
        rows=[_row(method, measured) for method, measured in curves.items()],
        speed_ups=speed_ups,
        notes=notes,
    )


def _measured(
    study: Study, method: str, benchmark: str, notes: list[str]
) -> list[tuple[int, QuestionCurves]]:
    """Seed and curves of every run of a method that was sampled."""
    found = []
    for run in study.of(method):
        folder = study.folder / FOLDER / run.name / benchmark
        where = f"the scaling experiment of {run.name} on {benchmark}"
        try:
            results = read_results(folder)
            if results is None:
                if study.config.scaling.samples:
                    notes.append(f"There is no result of {where} yet.")
                continue
            if _stale(run, results):
                notes.append(f"Left out: {where} is of another checkpoint than the evaluation.")
                continue
            samples = pd.read_parquet(folder / SAMPLES_FILE, columns=[*_COLUMNS, "response_ids"])
            found.append((run.seed, question_curves(_costed(samples), results.parameters)))
        except (ConfigError, OSError, ValueError):
            notes.append(f"Left out: {where} cannot be read.")
    return found


def _stale(run: Run, results: Results) -> bool:
    same = [each for each in run.evaluations if each.step == results.checkpoint_step]
    return any(each.results.checkpoint_digest != results.checkpoint_digest for each in same)


def _costed(samples: pd.DataFrame) -> pd.DataFrame:
    """A model reads what tools say, too: of a dialogue all tokens after the prompt cost."""
    read = samples["response_ids"].map(len)
    return samples[_COLUMNS].assign(tokens=np.maximum(samples["tokens"], read))


def _comparable(
    curves: dict[str, list[tuple[int, QuestionCurves]]], notes: list[str]
) -> dict[str, list[tuple[int, QuestionCurves]]]:
    """Those that answer what the first (the student, as a rule) does, with as many samples."""
    first = next(iter(curves.values()))[0][1]
    kept = {}
    for method, measured in curves.items():
        same = [
            (seed, each)
            for seed, each in measured
            if (each.questions, each.ks) == (first.questions, first.ks)
        ]
        if len(same) < len(measured):
            notes.append(
                f"Left out of test-time scaling: {len(measured) - len(same)} of {len(measured)} "
                f"results of {method}, which are of other questions or numbers of samples."
            )
        if same:
            kept[method] = same
    return kept


def _row(method: str, measured: Sequence[tuple[int, QuestionCurves]]) -> ScalingRow:
    mean = mean_curves([each for _, each in measured])
    bands = {
        metric: _bands(method, [each.scores_QK[metric] for _, each in measured], mean.clusters)
        for metric in METRICS
    }
    prompt, tokens = float(mean.prompt_tokens_Q.mean()), float(mean.tokens_Q.mean())
    points = [
        Point(
            k=k,
            maj=bands["maj@k"][index],
            pass_=bands["pass@k"][index],
            tokens=prompt + k * tokens,
            flops=2 * mean.parameters * (prompt + k * tokens),
            seconds=k * float(mean.seconds_Q.mean()),
        )
        for index, k in enumerate(mean.ks)
    ]
    seeds = [seed for seed, _ in measured]
    return ScalingRow(method, seeds, int(mean.parameters), points)


def _bands(
    method: str, scores_SQK: Sequence[FloatArray], clusters: Sequence[str] | None
) -> list[Interval]:
    """Of each k the mean over seeds with the interval that the tables have: seeds and questions
    both resampled."""
    values_SKQ = np.stack([scores_QK.T for scores_QK in scores_SQK])
    seeds, ks, questions = values_SKQ.shape
    draws_BR = resampled_means(values_SKQ.reshape(-1, questions), clusters=clusters)
    draws_BSK = draws_BR.reshape(-1, seeds, ks)
    weights_BS = seed_weights(method, seeds)
    units = questions if clusters is None else len(set(clusters))
    found = []
    for index in range(ks):
        own_SQ = values_SKQ[:, index]
        if own_SQ.min() == own_SQ.max():
            found.append(unanimous_interval(own_SQ, clusters))
        else:
            values_S, draws_BS = own_SQ.mean(axis=1), draws_BSK[:, :, index]
            pooled = over_seeds(method, values_S, draws_BS, weights_BS, units)
            found.append(pooled.interval())
    return found


def scaling_table(found: Sequence[Scaling]) -> pd.DataFrame:
    """scaling.csv: a row a benchmark, method, metric and k; costs are those of a question."""
    rows = [
        (
            each.benchmark, row.method, len(row.seeds), metric, each.n, point.k,
            interval.value, interval.low, interval.high, point.tokens, point.flops, point.seconds,
        )
        for each in found
        for row in each.rows
        for metric in METRICS
        for point in row.points
        for interval in [point.maj if metric == "maj@k" else point.pass_]
    ]  # fmt: skip
    columns = "benchmark method seeds metric n k value low high tokens flops seconds"
    return pd.DataFrame(rows, columns=columns.split())
