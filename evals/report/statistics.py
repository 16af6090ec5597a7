"""Intervals of the report: questions and seeds resampled together, once for every number.

Every score of a study is a mean over the same questions, so one resample of the questions serves
all runs at once: differences are paired without further ado, and a quantity derived from several
scores (a share of a gap, a ratio of costs) is computed once a resample. Seeds vary within a method,
independently of other methods, as a mean of S normal values does; how far out the limits lie is
decided by Student's t at Satterthwaite's degrees of freedom, from how much of the variance comes
from the questions and from each method's seeds. What of a seed's mean is the noise of its questions
is counted in both: so the intervals cover at least at their rate, by more where seeds hardly vary
(tests/evals/report/test_coverage.py).

Questions of one cluster (versions of one picture) are no independent evidence: they are drawn
together.

Axes: B resamples, Q questions, R evaluated checkpoints ("columns"), S seeds, C checkpoints.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evals.clusters import cluster_sums
from evals.stats import RESAMPLES, Interval, effective_freedom, inflation, score_interval
from evals.stats import seed_weights as normal_weights

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

#: The trailing mean that stands for "smoothed" in the sample efficiency spans an eighth of the
#: checkpoints and three at most: on a coarse grid it would lag by a good part of the run, and
#: hold back a method that is compared with an unsmoothed final score.
SMOOTHING_SHARE, SMOOTHING_MOST = 8, 3
_SEED = 260_311_137
_BLOCK = 1_000  # resamples at a time: bounds memory at _BLOCK x Q counts

Bound = Literal["", "<", ">=", "<=", "?"]


def verdict(difference: Interval) -> str:
    """ "above" or "below" if the interval excludes 0, else "undecided"."""
    return "above" if difference.low > 0 else "below" if difference.high < 0 else "undecided"


@dataclass(frozen=True)
class Part:
    """What an estimate would be if only one thing varied: the questions, or one method's seeds."""

    draws_B: FloatArray
    freedom: int


@dataclass(frozen=True)
class Estimate:
    """A number with its B resamples; arithmetic keeps resamples of one index together.

    Args:
        parts: by what varies. They share out the variance of `draws_B`.
    """

    value: float
    draws_B: FloatArray
    parts: Mapping[str, Part]

    def __sub__(self, other: Estimate) -> Estimate:
        return self._with(other, lambda a, b: a - b)

    def __truediv__(self, other: Estimate) -> Estimate:
        def ratio(a: FloatArray | float, b: FloatArray | float) -> FloatArray | float:
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.divide(a, b)

        return self._with(other, ratio)

    def _with(self, other: Estimate, combine: Callable[[Any, Any], Any]) -> Estimate:
        parts = {}
        for name in dict.fromkeys([*self.parts, *other.parts]):
            one, two = self.parts.get(name), other.parts.get(name)
            draws_B = combine(
                self.value if one is None else one.draws_B,
                other.value if two is None else two.draws_B,
            )
            parts[name] = Part(draws_B, min(p.freedom for p in (one, two) if p is not None))
        value = float(combine(self.value, other.value))
        return Estimate(value, combine(self.draws_B, other.draws_B), parts)

    def freedom(self) -> float:
        """Satterthwaite's degrees of freedom."""
        found = []
        for part in self.parts.values():
            low, high = np.percentile(part.draws_B, [2.5, 97.5])  # a ratio's tails are no variance
            found.append((float(high - low) ** 2, part.freedom))
        return effective_freedom(found)

    def interval(self) -> Interval:
        wide = inflation(self.freedom())
        low, high = np.percentile(self.draws_B, [2.5, 97.5])
        return Interval(
            self.value,
            float(self.value + wide * (low - self.value)),
            float(self.value + wide * (high - self.value)),
        )


QUESTIONS = "questions"


def resampled_means(
    values_RQ: FloatArray,
    resamples: int = RESAMPLES,
    *,
    clusters: Sequence[str] | None = None,
) -> FloatArray:
    """Means over questions drawn with replacement, the same draw for all columns: [B, R].

    Args:
        clusters: of each question; those of one cluster are drawn together. None: each by itself.

    Raises:
        ValueError: there is no question.
    """
    if clusters is not None and len(set(clusters)) < len(clusters):
        sums, sizes = zip(*(cluster_sums(row, clusters) for row in values_RQ), strict=True)
        both = resampled_means(np.stack([*sums, sizes[0]]), resamples)
        means: FloatArray = both[:, :-1] / both[:, -1:]
        return means
    columns, questions = values_RQ.shape
    if questions == 0:
        raise ValueError("cannot resample: no question is common to the evaluations")
    generator = np.random.default_rng([_SEED, questions])
    means_BR = np.empty((resamples, columns))
    for start in range(0, resamples, _BLOCK):
        block = min(_BLOCK, resamples - start)
        picks = generator.integers(0, questions, size=(block, questions))
        flat = picks + questions * np.arange(block)[:, None]
        counts = np.bincount(flat.ravel(), minlength=block * questions)
        counts_BQ = counts.reshape(block, questions).astype(np.float64)
        means_BR[start : start + block] = counts_BQ @ values_RQ.T / questions
    return means_BR


def seed_weights(method: str, seeds: int, resamples: int = RESAMPLES) -> FloatArray:
    """Weight of each seed in each resample, [B, S] (:func:`evals.stats.seed_weights`).

    The generator is seeded by the method's name: adding a method leaves the others' intervals
    as they were. A single seed has weight 1 throughout, so only questions vary.
    """
    generator = np.random.default_rng([_SEED, zlib.crc32(method.encode()), seeds])
    return normal_weights(seeds, resamples, generator)


def over_seeds(
    method: str, values_S: FloatArray, draws_BS: FloatArray, weights_BS: FloatArray, units: int
) -> Estimate:
    """Mean over seeds, questions and seeds both resampled.

    Args:
        values_S: the score of each seed. draws_BS: the same, with resampled questions.
        units: clusters of questions, or questions.
    """
    parts = {QUESTIONS: Part(draws_BS.mean(axis=1), max(1, units - 1))}
    if len(values_S) > 1:
        parts[method] = Part(weights_BS @ values_S, len(values_S) - 1)
    return Estimate(float(values_S.mean()), (draws_BS * weights_BS).sum(axis=1), parts)


def smoothing_window(checkpoints: int) -> int:
    """Checkpoints in the trailing mean; 1 leaves the mean over seeds as it is."""
    return max(1, min(SMOOTHING_MOST, checkpoints // SMOOTHING_SHARE))


def trailing_mean(scores_XC: FloatArray) -> FloatArray:
    """Mean of a checkpoint and those just before it (:func:`smoothing_window` in all)."""
    checkpoints = scores_XC.shape[-1]
    window = smoothing_window(checkpoints)
    smooth = [
        scores_XC[..., max(0, last - window + 1) : last + 1].mean(axis=-1)
        for last in range(checkpoints)
    ]
    return np.stack(smooth, axis=-1)


def unanimous_interval(values_SQ: FloatArray, clusters: Sequence[str] | None) -> Interval:
    """Where all questions of all seeds agree, which a bootstrap takes for certainty: an interval
    with a width, by the number of clusters (or questions)."""
    units = values_SQ.shape[1] if clusters is None else len(set(clusters))
    return score_interval([float(values_SQ.flat[0])] * units)


@dataclass(frozen=True)
class Curve:
    """Scores of one method at the C checkpoints that all its S seeds have in common.

    Args:
        method: whose. units: clusters of questions, or questions.
        scores_SC: score of each seed. draws_BSC: the same, resampled over questions.
        weights_BS: the seeds' weights. costs_SC: what each checkpoint cost, in any one unit.
    """

    method: str
    units: int
    scores_SC: FloatArray
    draws_BSC: FloatArray
    weights_BS: FloatArray
    costs_SC: FloatArray

    def mean_scores(self) -> tuple[FloatArray, FloatArray]:
        """Mean over seeds: as observed [1, C], and resampled [B, C]."""
        resampled = np.einsum("bsc,bs->bc", self.draws_BSC, self.weights_BS)
        return self.scores_SC.mean(axis=0, keepdims=True), resampled

    def mean_costs(self) -> FloatArray:
        """Mean over seeds, [C]: what the runs did cost, and no estimate."""
        mean_C: FloatArray = self.costs_SC.mean(axis=0)
        return mean_C

    def last(self) -> Estimate:
        """The score at the last checkpoint."""
        return over_seeds(
            self.method,
            self.scores_SC[:, -1],
            self.draws_BSC[:, :, -1],
            self.weights_BS,
            self.units,
        )


@dataclass(frozen=True)
class Limit:
    """A ratio of costs, and how it binds: "" exactly, "<", "<=", ">=" as a bound, "?" unknown."""

    ratio: float
    bound: Bound


@dataclass(frozen=True)
class Efficiency:
    """cost(baseline) / cost(method) until the baseline's final score, in one unit of cost.

    Args:
        low, high: 95 % limits over resampled questions and seeds.
        cost: of the method until the target; its whole budget if it never got there.
        baseline_cost: of the baseline.
        reached: share of the resamples in which the method reached the target.
    """

    value: Limit
    low: Limit
    high: Limit
    cost: float
    baseline_cost: float
    reached: float


def efficiency(method: Curve, baseline: Curve) -> Efficiency:
    """Sample efficiency of `method` (method.md section 8) in the unit of the curves' costs.

    The target is the baseline's score at its last checkpoint, mean over seeds. A method reaches
    it at the first checkpoint whose smoothed score (mean over seeds, :func:`trailing_mean`) is at
    least the target. The baseline itself has reached it at its last checkpoint at the latest,
    by definition. A target never reached bounds the efficiency from above, a target reached at
    the first checkpoint from below: what lies between checkpoints was not measured.
    """
    wide = inflation((method.last() - baseline.last()).freedom())
    (own_1C, own_BC), (base_1C, base_BC) = method.mean_scores(), baseline.mean_scores()
    costs = method.mean_costs(), baseline.mean_costs()
    observed = _ratios(own_1C, base_1C, *costs)
    resampled = _ratios(
        own_1C + wide * (own_BC - own_1C), base_1C + wide * (base_BC - base_1C), *costs
    )
    # A target never reached is the worst outcome, ordered by how far it bounds: so the limits do
    # not depend on the order of the resamples.
    order = np.lexsort((resampled.ratio, np.logical_not(resampled.never)))
    count = len(order)
    low, high = (int(order[int(np.ceil(share * count)) - 1]) for share in (0.025, 0.975))
    return Efficiency(
        value=observed.limit(0),
        low=resampled.limit(low),
        high=resampled.limit(high),
        cost=float(observed.cost[0]),
        baseline_cost=float(observed.baseline_cost[0]),
        reached=float(1.0 - resampled.never.mean()),
    )


@dataclass(frozen=True)
class _Ratios:
    ratio: FloatArray
    cost: FloatArray
    baseline_cost: FloatArray
    never: NDArray[np.bool_]
    first: NDArray[np.bool_]
    baseline_first: NDArray[np.bool_]

    def limit(self, index: int) -> Limit:
        bound: Bound = ""
        if self.never[index]:
            bound = "<"
        elif self.first[index]:
            bound = "?" if self.baseline_first[index] else ">="
        elif self.baseline_first[index]:
            bound = "<="
        return Limit(float(self.ratio[index]), bound)


def _ratios(
    scores_XC: FloatArray, base_XC: FloatArray, costs_C: FloatArray, base_costs_C: FloatArray
) -> _Ratios:
    target_X = base_XC[:, -1]
    index_X, never_X = first_reach(trailing_mean(scores_XC), target_X)
    base_index_X, _ = first_reach(trailing_mean(base_XC), target_X)
    cost_X, base_cost_X = costs_C[index_X], base_costs_C[base_index_X]
    first_X = (index_X == 0) & ~never_X
    return _Ratios(
        base_cost_X / cost_X, cost_X, base_cost_X, never_X, first_X, base_index_X == 0
    )  # fmt: skip


def first_reach(scores_XC: FloatArray, target_X: FloatArray) -> tuple[IntArray, NDArray[np.bool_]]:
    """Index of the first checkpoint at or above the target, and whether there is none.

    Where there is none the index is the last one: the whole budget was spent.
    """
    # Scores are multiples of 1/(nk) apart: the tolerance only absorbs the rounding of means.
    above_XC = scores_XC >= target_X[:, None] - 1e-9
    never_X: NDArray[np.bool_] = np.logical_not(above_XC.any(axis=1))
    index_X = np.where(never_X, scores_XC.shape[1] - 1, above_XC.argmax(axis=1))
    return index_X.astype(np.int64), never_X
