"""What a study says about one benchmark: rows of numbers, each with its interval.

Scores and differences are fractions in [0, 1] and [-1, 1]; `evals.report.words` turns them into
percentages and points.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from evals.report.budgets import BUDGET_UNITS, Budget, equal_budget
from evals.report.resampled import METRICS, Scores
from evals.report.statistics import (
    Curve,
    Efficiency,
    Estimate,
    efficiency,
)
from evals.report.study import UNITS, Evaluation, Run, Study
from evals.stats import Interval
from reopold.study_config import REFERENCES, is_reference, plain, sweep_keys, teacher_role

#: Of the sample efficiency; the curves are there in all of :data:`evals.report.study.UNITS`.
EFFICIENCY_UNITS = ("samples", "steps", "tokens", "flops", "seconds")


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
    scores = Scores(study, benchmark, scored, notes)
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


def _method_row(study: Study, scores: Scores, method: str) -> MethodRow:
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


def _seed_row(scores: Scores, run: Run) -> SeedRow:
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


def _efficiency_rows(study: Study, scores: Scores) -> tuple[float | None, list[EfficiencyRow]]:
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


def _budgets(study: Study, scores: Scores) -> list[Budget]:
    start = scores.pooled(REFERENCES[0])
    if start is None:
        return []
    found = []
    for unit in BUDGET_UNITS:
        curves = {name: scores.curve(name, unit) for name in study.compared}
        known = {name: curve for name, curve in curves.items() if curve and _is_known(curve)}
        found.append(equal_budget(unit, known, start, study.config.baseline))
    return [budget for budget in found if budget is not None]


def _sweep_rows(study: Study, scores: Scores) -> list[SweepRow]:
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


def _teacher_rows(study: Study, scores: Scores) -> list[TeacherRow]:
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
