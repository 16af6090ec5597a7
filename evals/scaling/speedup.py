"""The test-time scaling speed-up: how much cheaper a student is that votes until it equals its
teacher.

The smallest k, interpolated in log k, whose maj@k reaches the teacher's score with one sample;
then teacher's cost / student's cost at that k, in time, tokens and FLOPs. A question's prompt is
read once, however many samples follow it, and counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evals.clusters import cluster_sums, resampled_counts
from evals.scaling.curves import FloatArray, QuestionCurves, over_seeds
from evals.stats import (
    LEVEL,
    RESAMPLES,
    effective_freedom,
    expanded_quantiles,
    inflation,
    seed_weights,
)
from reopold.config import ConfigError


@dataclass(frozen=True)
class Ratio:
    """Cost of the teacher / cost of the student, with its interval."""

    value: float
    """Where the score is not reached: at the student's largest k, which it lies below."""
    low: float
    """0 where the score may not be reached at any cost."""
    high: float


@dataclass(frozen=True)
class SpeedUp:
    """The speed-up of a student over a teacher on one benchmark."""

    metric: str
    questions: int
    seeds: int
    """Students that the score and the cost are means of."""
    target: float
    """The teacher's score with one sample a question."""
    start: float
    """The student's at k = 1."""
    best: float
    """The student's at its largest k."""
    largest_k: int
    k: float | None
    """Samples to the target; None: not reached by `largest_k`."""
    k_low: float
    k_high: float
    """Infinite where the target may not be reached by `largest_k`."""
    reached: float
    """Share of the resamples in which the target is reached."""
    seconds: Ratio
    tokens: Ratio
    flops: Ratio

    def sentence(self) -> str:
        """The speed-up in words."""
        seeds = f", mean over {self.seeds} seeds" if self.seeds > 1 else ""
        head = (
            f"The teacher scores {100 * self.target:.1f} % with one sample; the student "
            f"{100 * self.start:.1f} % with one and {100 * self.best:.1f} % {self.metric} with "
            f"{self.largest_k} ({self.questions} questions{seeds})."
        )
        ratios = ", ".join(
            f"{_ratio(ratio, self.k is not None)} in {name}"
            for name, ratio in (
                ("time", self.seconds), ("tokens", self.tokens), ("FLOPs", self.flops)
            )
        )  # fmt: skip
        if self.k is None:
            return f"{head} Not reached by k = {self.largest_k}: speed-up {ratios}."
        above = f"{self.k_high:.1f}" if math.isfinite(self.k_high) else f"beyond {self.largest_k}"
        text = f"{head} Equal at k = {self.k:.1f} [{self.k_low:.1f}, {above}]: speed-up {ratios}."
        if self.reached == 1.0:
            return text
        return f"{text} Not reached in {100 * (1 - self.reached):.0f} % of the resamples."


def speed_up(
    students: Sequence[QuestionCurves],
    teacher: QuestionCurves,
    *,
    metric: str = "maj@k",
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> SpeedUp:
    """The speed-up with intervals from a bootstrap over questions (or the students' clusters).

    A resample takes the same questions for all models, so scores and costs are paired; of several
    students, which differ in their seed, it also takes as many with replacement. A resample in
    which the target is not reached has its ratio anywhere from 0 to that at the largest k; the
    limits take the worse end each. Costs are the mean question's; a fractional k costs k samples.

    Raises:
        ConfigError: the evaluations answer other questions, or `metric` was not measured.
    """
    student = over_seeds(students)
    _check(student, teacher, metric)
    logs = np.log(np.array(student.ks, dtype=np.float64))
    columns = [column for each in students for column in _columns(each, metric)]
    columns += [teacher.average_Q, *_costs(teacher)]
    sums = [cluster_sums(column, student.clusters) for column in columns]
    sums_CX, size_C = np.column_stack([total for total, _ in sums]), sums[0][1]
    draws_BX = np.concatenate(
        [
            (counts @ sums_CX) / (counts @ size_C)[:, None]
            for counts in resampled_counts(len(size_C), resamples, seed)
        ]
    )
    generator = np.random.default_rng([seed, len(students)])
    weights_BS = seed_weights(len(students), resamples, generator)
    means_1X = np.mean(columns, axis=1)[None, :]
    point = _Outcome(means_1X, np.full((1, len(students)), 1 / len(students)), logs)
    wide = _inflation(_Outcome(draws_BX, weights_BS, logs), point, len(size_C), level)
    drawn = _Outcome(
        means_1X + wide * (draws_BX - means_1X),
        1 / len(students) + wide * (weights_BS - 1 / len(students)),
        logs,
    )
    n, k = len(size_C), float(point.k_B[0])
    k_low, k_high = _limits(drawn.k_B, drawn.k_B, n, k, level)

    def ratio(cost: str, scale: float = 1.0) -> Ratio:
        lower, upper = drawn.ratios(cost)
        value = scale * float(point.ratios(cost)[1][0])
        return Ratio(value, *_limits(scale * lower, scale * upper, n, value, level))

    scores = point.scores_BK[0]
    return SpeedUp(
        metric=metric,
        questions=len(student.questions),
        seeds=len(students),
        target=float(point.target_B[0]),
        start=float(scores[0]),
        best=float(scores[-1]),
        largest_k=student.ks[-1],
        k=k if math.isfinite(k) else None,
        k_low=k_low,
        k_high=k_high,
        reached=float(np.isfinite(drawn.k_B).mean()),
        seconds=ratio("seconds"),
        tokens=ratio("tokens"),
        flops=ratio("tokens", teacher.parameters / student.parameters),
    )


def _check(student: QuestionCurves, teacher: QuestionCurves, metric: str) -> None:
    if student.questions != teacher.questions:
        only = sorted(set(student.questions) ^ set(teacher.questions))
        raise ConfigError(
            f"student and teacher answer other questions: {len(only)} are in one only "
            f"({', '.join(only[:3])}); evaluate both on the same data"
        )
    if metric not in student.scores_QK:
        raise ConfigError(f"{metric} is not among the student's curves")


def _columns(student: QuestionCurves, metric: str) -> list[FloatArray]:
    """Of each question: the score at each k, then the costs."""
    return [*student.scores_QK[metric].T, *_costs(student)]


def _costs(curves: QuestionCurves) -> list[FloatArray]:
    return [curves.seconds_Q, curves.tokens_Q, curves.prompt_tokens_Q]


class _Outcome:
    """Means over questions, a row a resample: where the target is reached, and at what cost.

    Axes: B resamples, S students, K numbers of samples, X columns of the students and the teacher.
    """

    def __init__(self, means_BX: FloatArray, weights_BS: FloatArray, logs_K: FloatArray) -> None:
        seeds, teacher_B4 = weights_BS.shape[1], means_BX[:, -4:]
        self.weights_BS, self.logs_K = weights_BS, logs_K
        self.own_BSX = means_BX[:, :-4].reshape(len(means_BX), seeds, -1)
        student_BX = np.einsum("bsx,bs->bx", self.own_BSX, weights_BS)
        # Costs are what the students did cost: seeds are no reason to doubt them.
        student_BX[:, -3:] = self.own_BSX[:, :, -3:].mean(axis=1)
        self.scores_BK, self.target_B = student_BX[:, :-3], teacher_B4[:, 0]
        self.student_B3, self.teacher_B3 = student_BX[:, -3:], teacher_B4[:, 1:]
        self.largest = float(np.exp(logs_K[-1]))
        self.k_B = first_k(self.scores_BK, self.target_B, logs_K)

    def ratios(self, cost: str) -> tuple[FloatArray, FloatArray]:
        """Lower and upper ends of the ratio; they differ where the target is not reached."""
        once_B = self._cost(self.teacher_B3, cost, np.ones(len(self.k_B)))
        best_B = np.minimum(self.k_B, self.largest)
        lower_B, upper_B = (
            once_B / self._cost(self.student_B3, cost, k_B) for k_B in (self.k_B, best_B)
        )
        return lower_B, upper_B

    def _cost(self, means_B3: FloatArray, cost: str, k_B: FloatArray) -> FloatArray:
        seconds_B, tokens_B, prompt_B = means_B3.T
        total_B: FloatArray = k_B * seconds_B if cost == "seconds" else prompt_B + k_B * tokens_B
        return total_B


def first_k(scores_BK: FloatArray, target_B: FloatArray, logs_K: FloatArray) -> FloatArray:
    """Smallest k at which the curve reaches the target, linear in log k between the points.

    1 where the first point (k = 1) is there already; infinite where no point is.
    """
    # Scores are sums of many terms: the tolerance only absorbs their rounding.
    above_BK = scores_BK >= target_B[:, None] - 1e-12
    index_B = above_BK.argmax(axis=1)
    before_B = np.maximum(index_B - 1, 0)
    rows = np.arange(len(scores_BK))
    low_B, high_B = scores_BK[rows, before_B], scores_BK[rows, index_B]
    rise_B = np.where(high_B > low_B, high_B - low_B, 1.0)
    part_B = np.clip((target_B - low_B) / rise_B, 0.0, 1.0)
    log_B = logs_K[before_B] + part_B * (logs_K[index_B] - logs_K[before_B])
    return np.where(above_BK.any(axis=1), np.exp(log_B), np.inf)


def _inflation(drawn: _Outcome, point: _Outcome, n: int, level: float) -> float:
    """How much wider Student's limits are than the resamples', for several students.

    The degrees of freedom are those of the score at the k that is asked for, against the target:
    how much of its variance comes from the questions, how much from the seeds.
    """
    seeds = drawn.weights_BS.shape[1]
    if seeds == 1 or n < 2:
        return 1.0
    at = int(np.abs(drawn.logs_K - math.log(min(point.k_B[0], drawn.largest))).argmin())
    questions = float(np.var(drawn.own_BSX[:, :, at].mean(axis=1) - drawn.target_B))
    varied = float(np.var(drawn.weights_BS @ point.own_BSX[0, :, at]))
    return inflation(effective_freedom([(questions, n - 1), (varied, seeds - 1)]), level)


def _limits(
    lower_B: FloatArray, upper_B: FloatArray, n: int, value: float, level: float
) -> tuple[float, float]:
    if n < 2:  # one cluster says nothing of how clusters vary
        return 0.0, math.inf
    low, high = expanded_quantiles(lower_B, n, level)[0], expanded_quantiles(upper_B, n, level)[1]
    return min(low, value), max(high, value)


def _ratio(ratio: Ratio, reached: bool) -> str:
    return f"{'' if reached else '< '}{ratio.value:.2f}× [{ratio.low:.2f}, {ratio.high:.2f}]"
