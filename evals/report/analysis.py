"""What a study says about one benchmark: rows of numbers, each with its interval.

Scores and differences are fractions in [0, 1] and [-1, 1]; `evals.report.words` turns them into
percentages and points.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from evals.report.budgets import BUDGET_UNITS, Budget, equal_budget
from evals.report.statistics import (
    QUESTIONS,
    Curve,
    Efficiency,
    Estimate,
    FloatArray,
    Part,
    efficiency,
    over_seeds,
    resampled_means,
    seed_weights,
    unanimous_interval,
)
from evals.report.study import UNITS, Evaluation, Run, Study
from evals.scores import Metric
from evals.stats import Interval
from reopold.study_config import REFERENCES, is_reference, plain, sweep_keys, teacher_role

#: Of the sample efficiency; the curves are there in all of :data:`evals.report.study.UNITS`.
EFFICIENCY_UNITS = ("samples", "steps", "tokens", "flops", "seconds")
METRICS: tuple[Metric, ...] = ("avg@k", "pass@k", "maj@k")
#: Run, step and metric: names a column of question values.
Column = tuple[str, int, Metric]


@dataclass(frozen=True)
class SeedRow:
    """The final score of one run. `score` is that of results.json (questions resampled)."""

    method: str
    seed: int
    run: str
    checkpoint_step: int
    steps: int
    score: Interval
    pass_k: float | None
    maj_k: float | None
    gain: Interval | None
    """Over the student, paired over questions, this seed alone."""
    truncated_fraction: float
    no_answer_fraction: float


@dataclass(frozen=True)
class MethodRow:
    """Final scores of a method over its seeds; intervals resample seeds and questions."""

    method: str
    seeds: list[int]
    score: Interval
    per_seed: list[float]
    pass_k: Interval | None
    maj_k: Interval | None
    gain: Interval | None
    """Over the student, paired over questions."""
    versus: dict[str, Interval]
    """This method minus another, by the other's name."""
    gap: Interval | None
    """Share of the student-teacher gap recovered; None where that gap is not established."""


@dataclass(frozen=True)
class EfficiencyRow:
    method: str
    checkpoints: list[int]
    """Steps that all seeds were evaluated at."""
    units: dict[str, Efficiency]


@dataclass(frozen=True)
class SweepRow:
    """A point of a sweep, at the last checkpoint; intervals resample seeds and questions."""

    sweep: str
    keys: list[str]
    values: list[str]
    arm: str
    seeds: list[int]
    score: Interval
    gain: Interval | None
    """Over the student."""
    versus: Interval | None
    """Minus the method with the study's own settings, where that is compared and another arm."""


@dataclass(frozen=True)
class TeacherRow:
    """An arm by the teacher that it learnt from."""

    teacher: str
    """The run of the teacher: `teacher` or `teacher-NAME`."""
    teacher_score: Interval
    parameters: int
    arm: str
    score: Interval
    gain: Interval | None


@dataclass(frozen=True)
class Analysis:
    """One benchmark. `n` questions in `clusters`, `k` samples each; without scores, no rows."""

    benchmark: str
    family: str = ""
    n: int = 0
    clusters: int = 0
    k: int = 0
    methods: list[MethodRow] = field(default_factory=list)
    seeds: list[SeedRow] = field(default_factory=list)
    baseline: str = ""
    target: float | None = None
    """The baseline's score at its last common checkpoint."""
    efficiency: list[EfficiencyRow] = field(default_factory=list)
    budgets: list[Budget] = field(default_factory=list)
    sweeps: list[SweepRow] = field(default_factory=list)
    teachers: list[TeacherRow] = field(default_factory=list)
    """Empty where all arms have the same teacher."""
    notes: list[str] = field(default_factory=list)

    def row(self, method: str) -> MethodRow | None:
        return next((row for row in self.methods if row.method == method), None)


def analyse(study: Study, benchmark: str) -> Analysis:
    """Everything the tables and sentences say about `benchmark`."""
    scored = [(run, item) for run in study.everyone for item in run.scored(benchmark)]
    notes: list[str] = []
    if not scored:
        return Analysis(benchmark, baseline=study.config.baseline)
    scores = _Scores(study, benchmark, scored, notes)
    notes += _unequal(benchmark, [item for _, item in scored])
    if scores.questions == 0:
        return Analysis(benchmark, baseline=study.config.baseline, notes=notes)
    target, rows = _efficiency_rows(study, scores)
    return Analysis(
        benchmark=benchmark,
        family=scored[0][1].results.family,
        n=scores.questions,
        clusters=scores.units,
        k=max(item.results.k for _, item in scored),
        methods=[_method_row(study, scores, method) for method in scores.methods],
        seeds=[_seed_row(scores, run) for method in scores.methods for run in scores.of(method)],
        baseline=study.config.baseline,
        target=target,
        efficiency=rows,
        budgets=_budgets(study, scores),
        sweeps=_sweep_rows(study, scores),
        teachers=_teacher_rows(study, scores),
        notes=notes,
    )


def _unequal(benchmark: str, evaluations: list[Evaluation]) -> list[str]:
    """What makes evaluations on one benchmark hard to compare."""
    notes = []
    if len({item.results.k for item in evaluations}) > 1:
        notes.append(f"Not all evaluations on {benchmark} drew the same number of samples.")
    if len({item.results.dataset.digest for item in evaluations}) > 1:
        notes.append(f"Not all evaluations on {benchmark} used the same test file.")
    settings = {item.results.generation.model_dump_json() for item in evaluations}
    if len(settings) > 1:
        notes.append(f"Not all evaluations on {benchmark} sampled with the same settings.")
    return notes


class _Scores:
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


def _method_row(study: Study, scores: _Scores, method: str) -> MethodRow:
    runs = scores.of(method)
    pooled, score = scores.pooled(method), scores.score(method, "avg@k")
    assert pooled and score  # scores.methods lists only methods with a score
    student, teacher = (scores.pooled(name) for name in REFERENCES)
    others = [] if is_reference(method) else _compared_with(study, method)
    differences = {other: scores.pooled(other) for other in others}
    return MethodRow(
        method=method,
        seeds=[run.seed for run in runs],
        score=score,
        per_seed=[scores.estimate(run).value for run in runs],
        pass_k=scores.score(method, "pass@k"),
        maj_k=scores.score(method, "maj@k"),
        gain=(pooled - student).interval() if student and method != REFERENCES[0] else None,
        versus={name: (pooled - other).interval() for name, other in differences.items() if other},
        gap=None if is_reference(method) else _gap(pooled, student, teacher),
    )


def _compared_with(study: Study, method: str) -> list[str]:
    """The arms whose difference is shown: the baseline, plain distillation (opd), and what the
    variants are variants of."""
    varied = [variant.method for variant in study.config.variants]
    wanted = dict.fromkeys([study.config.baseline, "opd", *varied])
    return [other for other in wanted if other != method and other in study.compared]


def _gap(pooled: Estimate, student: Estimate | None, teacher: Estimate | None) -> Interval | None:
    if student is None or teacher is None:
        return None
    gap = teacher - student
    # A ratio to a gap that may be 0 has no interval worth printing.
    if gap.interval().low <= 0:
        return None
    return ((pooled - student) / gap).interval()


def _seed_row(scores: _Scores, run: Run) -> SeedRow:
    final = scores.final(run)
    average, any_right, majority = (final.score(metric) for metric in METRICS)
    estimate = scores.estimate(run)
    student = scores.pooled(REFERENCES[0])
    own = student is not None and run.arm != REFERENCES[0]
    return SeedRow(
        method=run.arm,
        seed=run.seed,
        run=run.name,
        checkpoint_step=final.step,
        steps=run.steps,
        score=Interval(average.value, average.low, average.high)
        if average is not None
        else estimate.interval(),
        pass_k=any_right.value if any_right else None,
        maj_k=majority.value if majority else None,
        gain=(estimate - student).interval() if own and student else None,
        truncated_fraction=final.results.truncated_fraction,
        no_answer_fraction=final.results.no_answer_fraction,
    )


def _efficiency_rows(study: Study, scores: _Scores) -> tuple[float | None, list[EfficiencyRow]]:
    name = study.config.baseline
    baseline = scores.curve(name, "samples")
    if baseline is None:
        return None, []
    rows = []
    for method in study.compared:
        if method == name or not scores.common_steps(method):
            continue
        units = {}
        for unit in EFFICIENCY_UNITS:
            own, reference = scores.curve(method, unit), scores.curve(name, unit)
            if own and reference and _is_known(own) and _is_known(reference):
                units[unit] = efficiency(own, reference)
        rows.append(EfficiencyRow(method, scores.common_steps(method), units))
    return float(baseline.scores_SC[:, -1].mean()), rows


def _budgets(study: Study, scores: _Scores) -> list[Budget]:
    start = scores.pooled(REFERENCES[0])
    if start is None:
        return []
    found = []
    for unit in BUDGET_UNITS:
        curves = {name: scores.curve(name, unit) for name in study.compared}
        known = {name: curve for name, curve in curves.items() if curve and _is_known(curve)}
        found.append(equal_budget(unit, known, start, study.config.baseline))
    return [budget for budget in found if budget is not None]


def _sweep_rows(study: Study, scores: _Scores) -> list[SweepRow]:
    rows = []
    student = scores.pooled(REFERENCES[0])
    for sweep in study.config.sweeps:
        own = scores.pooled(sweep.method) if sweep.method in study.compared else None
        for point in study.config.points(sweep):
            pooled, score = scores.pooled(point.arm), scores.score(point.arm, "avg@k")
            if pooled is None or score is None:
                continue
            other = own if point.arm != sweep.method else None
            rows.append(
                SweepRow(
                    sweep=sweep.name,
                    keys=sweep_keys(sweep),
                    values=[plain(value) for value in point.values],
                    arm=point.arm,
                    seeds=[run.seed for run in scores.of(point.arm)],
                    score=score,
                    gain=(pooled - student).interval() if student else None,
                    versus=(pooled - other).interval() if other else None,
                )
            )
    return rows


def _teacher_rows(study: Study, scores: _Scores) -> list[TeacherRow]:
    swapped = {arm.name: arm.teacher for arm in study.config.compared if arm.teacher}
    methods = {study.config.arm(name).method for name in swapped}
    own: dict[str, str] = {name: "" for name in study.compared if name in methods}
    rows = []
    student = scores.pooled(REFERENCES[0])
    for arm, name in {**own, **swapped}.items() if swapped else []:
        teacher = teacher_role(name)
        theirs, score = scores.score(teacher, "avg@k"), scores.score(arm, "avg@k")
        pooled = scores.pooled(arm)
        if theirs is None or score is None or pooled is None:
            continue
        rows.append(
            TeacherRow(
                teacher=teacher,
                teacher_score=theirs,
                parameters=scores.final(study.references[teacher]).results.parameters,
                arm=arm,
                score=score,
                gain=(pooled - student).interval() if student else None,
            )
        )
    return sorted(rows, key=lambda row: row.parameters)


def _is_known(curve: Curve) -> bool:
    return bool(np.isfinite(curve.costs_SC).all() and (curve.costs_SC > 0).all())


def score_table(study: Study) -> pd.DataFrame:
    """scores.csv: a row an evaluated checkpoint and metric; of the references only the last."""
    columns = ["family", "method", "seed", "checkpoint_step", "benchmark", "metric", "n", "k"]
    rows = []
    for run in study.everyone:
        evaluations = run.evaluations
        if is_reference(run.arm):
            evaluations = [run.on(name)[-1] for name in study.benchmarks if run.on(name)]
        for item in evaluations:
            key = (item.results.family, run.arm, run.seed, item.step, item.benchmark)
            for score in item.results.scores:
                values = (score.value, score.low, score.high)
                rows.append((*key, score.metric, score.n, score.k, *values))
    return pd.DataFrame(rows, columns=[*columns, "value", "low", "high"])


def curve_table(study: Study) -> pd.DataFrame:
    """curves.csv: scores against cost, the student's being the start of every METHOD x seed."""
    rows = []
    student = study.references.get(REFERENCES[0])
    for run in study.runs:
        for benchmark in study.benchmarks:
            start = [(0, item) for item in student.on(benchmark)[-1:]] if student else []
            for step, item in [*start, *((own.step, own) for own in run.on(benchmark))]:
                cost = run.cost(step)
                key = {
                    "family": item.results.family,
                    "method": run.arm,
                    "seed": run.seed,
                    "checkpoint_step": step,
                    **{unit: cost[unit] for unit in UNITS if unit != "steps"},
                    "benchmark": benchmark,
                }
                rows += [
                    {**key, **score.model_dump(include={"metric", "value", "low", "high"})}
                    for score in item.results.scores
                ]
    table = pd.DataFrame(rows, columns=_CURVE_COLUMNS)
    return table.astype(dict.fromkeys(_COUNTS, "Int64"))


_COUNTS = ("samples", "rollouts", "tokens", "teacher_tokens", "prefill_tokens")
_CURVE_COLUMNS = [
    *("family", "method", "seed", "checkpoint_step"),
    *(unit for unit in UNITS if unit != "steps"),
    *("benchmark", "metric", "value", "low", "high"),
]
