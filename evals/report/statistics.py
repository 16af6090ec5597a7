"""Intervals of the report: one crossed bootstrap over questions and seeds, shared by every number.

Every score of a study is a mean over the same questions, so one resample of the questions serves
all runs at once: differences are paired without further ado, and a quantity derived from several
scores (a share of a gap, a ratio of costs) is computed once a resample. Seeds are resampled
within a method, independently of other methods.

Questions of one cluster (versions of one picture) are no independent evidence: they are drawn
together.

Axes: B resamples, Q questions, R evaluated checkpoints ("columns"), S seeds, C checkpoints.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evals.clusters import cluster_sums
from evals.stats import RESAMPLES, Interval, score_interval

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
class Estimate:
    """A number with its B resamples; arithmetic keeps resamples of one index together."""

    value: float
    draws_B: FloatArray

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.draws_B - other.draws_B)

    def __truediv__(self, other: Estimate) -> Estimate:
        with np.errstate(divide="ignore", invalid="ignore"):
            return Estimate(self.value / other.value, self.draws_B / other.draws_B)

    def interval(self) -> Interval:
        low, high = np.percentile(self.draws_B, [2.5, 97.5])
        return Interval(self.value, float(low), float(high))


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
    """Weight of each seed in each resample, [B, S], rows summing to 1.

    The generator is seeded by the method's name: adding a method leaves the others' intervals
    as they were. A single seed has weight 1 throughout, so only questions vary.
    """
    generator = np.random.default_rng([_SEED, zlib.crc32(method.encode()), seeds])
    return generator.multinomial(seeds, np.full(seeds, 1.0 / seeds), size=resamples) / seeds


def over_seeds(values_S: FloatArray, draws_BS: FloatArray, weights_BS: FloatArray) -> Estimate:
    """Mean over seeds, questions and seeds both resampled."""
    return Estimate(float(values_S.mean()), (draws_BS * weights_BS).sum(axis=1))


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
        scores_SC: score of each seed. draws_BSC: the same, resampled over questions.
        weights_BS: the seeds' weights. costs_SC: what each checkpoint cost, in any one unit.
    """

    scores_SC: FloatArray
    draws_BSC: FloatArray
    weights_BS: FloatArray
    costs_SC: FloatArray

    def mean_scores(self) -> tuple[FloatArray, FloatArray]:
        """Mean over seeds: as observed [1, C], and resampled [B, C]."""
        resampled = np.einsum("bsc,bs->bc", self.draws_BSC, self.weights_BS)
        return self.scores_SC.mean(axis=0, keepdims=True), resampled

    def mean_costs(self) -> tuple[FloatArray, FloatArray]:
        """Mean over seeds: as observed [1, C], and resampled [B, C]."""
        return self.costs_SC.mean(axis=0, keepdims=True), self.weights_BS @ self.costs_SC


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
    observed, resampled = (
        _ratios(method.mean_scores()[i], method.mean_costs()[i],
                baseline.mean_scores()[i], baseline.mean_costs()[i])
        for i in (0, 1)
    )  # fmt: skip
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
    scores_XC: FloatArray, costs_XC: FloatArray, base_XC: FloatArray, base_costs_XC: FloatArray
) -> _Ratios:
    target_X = base_XC[:, -1]
    index_X, never_X = first_reach(trailing_mean(scores_XC), target_X)
    base_index_X, _ = first_reach(trailing_mean(base_XC), target_X)
    cost_X = np.take_along_axis(costs_XC, index_X[:, None], axis=1)[:, 0]
    base_cost_X = np.take_along_axis(base_costs_XC, base_index_X[:, None], axis=1)[:, 0]
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
