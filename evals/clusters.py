"""Intervals of a benchmark's scores over clusters: the units that are independent evidence.

A cluster is a question with all its samples, or the problems that share a figure, a passage or a
seed (Miller 2024, arXiv 2411.00640). A score is a ratio of sums over clusters.

Which interval, and why (95 %; 4,000 simulated test sets for each of seven Beta distributions of
difficulty, means .05 to .97; tests/evals/test_clusters.py repeats the last row):

===================================  ============  ============  ============
coverage, smallest to largest        n = 30, K=4   n = 30, K=32  n = 100, K=8
===================================  ============  ============  ============
percentile bootstrap                 .876 to .948  .785 to .939  .894 to .947
bootstrap BCa                        .940 to .974  .826 to .955  .928 to .953
Student's t                          .881 to .952  .784 to .950  .881 to .950
Wilson at the effective n            .922 to .967  .826 to .959  .919 to .952
the same with half a pseudo-question .961 to .979  .958 to .981  .946 to .971
===================================  ============  ============  ============

So shares get the last one, which for one verdict a question is Wilson's own interval; other
quantities get a cluster bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals.benchmarks.base import Tally
from evals.stats import (
    CHUNK,
    LEVEL,
    RESAMPLES,
    Interval,
    expanded_quantiles,
    student_quantile,
    wilson_bounds,
    wilson_interval,
)
from reopold.config import ConfigError

FloatArray = NDArray[np.float64]

#: Weight of the pseudo-question added to the variance (not the mean), half of it right: small
#: test sets hide the rare hard or easy questions that most of the variance comes from.
PSEUDO = 0.5


@dataclass(frozen=True)
class ClusteredScore:
    """A score with its interval and both standard errors, in the unit of the score."""

    value: float
    """nan where nothing of the metric's denominator was seen."""
    low: float
    high: float
    question_se: float | None
    """Standard error where the clusters are the sample: another test set. None: one cluster."""
    seed_se: float | None
    """Standard error of a rerun on the same questions; None where one sample a question, or a
    metric that is no mean of samples, cannot tell."""
    clusters: int
    """Clusters that count in it."""


def accuracy_score(
    counts: Sequence[tuple[int, int]],
    clusters: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
) -> ClusteredScore:
    """avg@k over questions: each weighs the same, whatever the number of its samples.

    Args:
        counts: (samples, right ones) of each question.
        clusters: name of each question's cluster; None: every question by itself.

    Raises:
        ValueError: no question, or counts that cannot be.
    """
    for n, c in counts:
        if not 0 <= c <= n or n == 0:
            raise ValueError(f"{c} right of {n} samples is impossible")
    score = question_score([c / n for n, c in counts], clusters, level=level)
    return ClusteredScore(
        score.value, score.low, score.high, score.question_se, seed_standard_error(counts),
        score.clusters,
    )  # fmt: skip


def question_score(
    values: Sequence[float], clusters: Sequence[str] | None = None, *, level: float = LEVEL
) -> ClusteredScore:
    """Mean over questions of values in [0, 1] (avg@k, pass@k, maj@k).

    Raises:
        ValueError: no value, one outside [0, 1], or another number of clusters.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not ((array >= 0.0) & (array <= 1.0)).all():
        raise ValueError("need values in [0, 1], one a question")
    numer, denom = cluster_sums(array, clusters)
    interval = share_interval(numer, denom, level=level)
    return ClusteredScore(
        interval.value, interval.low, interval.high,
        _question_se(numer[:, None], denom[:, None], np.ones(1)), None, len(numer),
    )  # fmt: skip


def seed_standard_error(counts: Sequence[tuple[int, int]]) -> float | None:
    """Standard error of avg@k where the questions are fixed and only the samples are drawn anew.

    sqrt(sum p (1 - p) / (K - 1)) / questions, each question with its own K. It says whether a rerun
    on the same test would differ; the question standard error contains it.

    Returns:
        None if a question has a single sample: nothing says how far another would differ.
    """
    if any(n < 2 for n, _ in counts):
        return None
    variances = [c / n * (1 - c / n) / (n - 1) for n, c in counts]
    return math.sqrt(math.fsum(variances)) / len(counts)


def tally_scores(
    tallies: Sequence[Tally],
    composites: Mapping[str, Mapping[str, float]] | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, ClusteredScore]:
    """Every tallied metric, in order of appearance, then the composites.

    Shares (0 <= numerator <= denominator in every cluster) get :func:`share_interval`, all else a
    cluster bootstrap, one for all: metrics of the same clusters vary together.

    Args:
        tallies: one a cluster. A metric that a cluster lacks does not concern it.
        composites: weighted means of metrics or of other composites; weights need not sum to 1.
            One with a part that no cluster tallied (a category beyond the limit) is left out: a
            mean over fewer parts is another score.

    Raises:
        ValueError: no cluster, or a number that is not finite.
        ConfigError: a composite is part of itself, or has weights that are negative or sum to 0.
    """
    table = _Table(tallies)
    weights = {name: {name: 1.0} for name in table.metrics}
    for name in composites or {}:
        parts = _resolved(name, composites or {}, ())
        if parts.keys() <= set(table.metrics):
            weights[name] = parts
    draws: FloatArray | None = None
    scores: dict[str, ClusteredScore] = {}
    for name, parts in weights.items():
        columns = [table.metrics.index(part) for part in parts]
        mixed = np.array(list(parts.values()))
        value = float(table.ratios_M[columns] @ mixed)
        shares = [table.share(column, level) for column in columns]
        numer_CM, denom_CM = table.numer_CM[:, columns], table.denom_CM[:, columns]
        if len(columns) == 1 and shares[0] is not None:
            low, high = shares[0].low, shares[0].high
        else:
            if draws is None:
                draws = table.draws(resamples, seed)
            fewest = int((denom_CM != 0).sum(axis=0).min())
            low, high = _bounds(draws[:, columns] @ mixed, value, shares, mixed, fewest, level)
        scores[name] = ClusteredScore(
            value, low, high, _question_se(numer_CM, denom_CM, mixed), None,
            int(np.count_nonzero(denom_CM.sum(axis=1))),
        )  # fmt: skip
    return scores


def share_interval(numer_C: FloatArray, denom_C: FloatArray, *, level: float = LEVEL) -> Interval:
    """A ratio of sums that is a share: 0 <= numerator <= denominator in every cluster.

    Wilson's interval at the effective number of clusters, p (1 - p) / se^2, with Student's
    quantile (as for design-based surveys: Dean and Pavlou 2015, doi 10.1093/jssam/smv024), where se
    is the clusters' standard error with a pseudo-question of weight PSEUDO. The effective number
    is at least that of clusters that are each all right or all wrong, the most variable kind. One
    verdict a cluster gives Wilson's own interval. A perfect score claims no certainty.
    """
    used = denom_C > 0
    numer_C, denom_C = numer_C[used], denom_C[used]
    n, total = len(denom_C), float(denom_C.sum())
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    p = min(1.0, max(0.0, float(numer_C.sum()) / total))
    alike = bool((denom_C == denom_C[0]).all())
    if n == 1 or (alike and bool(((numer_C == 0) | (numer_C == denom_C)).all())):
        return wilson_interval(min(float(n), p * n), n, level=level)
    least = total**2 / float((denom_C**2).sum())  # Kish's number: n where all weigh the same
    squares = float(((numer_C - p * denom_C) ** 2).sum())
    squares += PSEUDO / 2 * (p * p + (1 - p) ** 2) * float((denom_C**2).mean())
    variance = squares * n / (n - 1 + PSEUDO) / total**2
    effective = max(least, p * (1 - p) / variance)
    return Interval(p, *wilson_bounds(p, effective, student_quantile(n - 1, level)))


def cluster_sums(
    values_Q: FloatArray, clusters: Sequence[str] | None
) -> tuple[FloatArray, FloatArray]:
    """Sum and number of the questions' values in each cluster, clusters by first appearance.

    Raises:
        ValueError: another number of clusters than of values.
    """
    if clusters is None:
        return values_Q, np.ones(len(values_Q))
    if len(clusters) != len(values_Q):
        raise ValueError(f"{len(values_Q)} values and {len(clusters)} clusters")
    numbers = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    index = [numbers[name] for name in clusters]
    sums_C = np.bincount(index, weights=values_Q).astype(np.float64)
    return sums_C, np.bincount(index).astype(np.float64)


def resampled_counts(n: int, resamples: int, seed: int) -> Iterator[FloatArray]:
    """How often each of n units is drawn, [block, n] at a time: a bootstrap in bounded memory."""
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // n)
    for start in range(0, resamples, rows):
        block = min(rows, resamples - start)
        flat = rng.integers(n, size=(block, n)) + n * np.arange(block)[:, None]
        counts = np.bincount(flat.ravel(), minlength=block * n)
        yield counts.reshape(block, n).astype(np.float64)


class _Table:
    """Tallies as arrays. Axes: C clusters, M metrics, B resamples."""

    def __init__(self, tallies: Sequence[Tally]) -> None:
        if not tallies:
            raise ValueError("need at least one cluster")
        self.metrics = list(dict.fromkeys(name for tally in tallies for name in tally))
        cells = np.array([[t.get(m, (0.0, 0.0)) for m in self.metrics] for t in tallies])
        cells = cells.reshape(len(tallies), len(self.metrics), 2)
        if not np.isfinite(cells).all():
            raise ValueError("tallies must be finite")
        self.numer_CM, self.denom_CM = cells[..., 0], cells[..., 1]
        self.ratios_M = _ratio(self.numer_CM.sum(axis=0), self.denom_CM.sum(axis=0))

    def share(self, column: int, level: float) -> Interval | None:
        """Its interval if the metric is a share, else None."""
        numer, denom = self.numer_CM[:, column], self.denom_CM[:, column]
        if (numer < 0).any() or (numer > denom).any():
            return None
        return share_interval(numer, denom, level=level)

    def draws(self, resamples: int, seed: int) -> FloatArray:
        """The ratios, resampled over clusters: [B, M]."""
        blocks = [
            _ratio(counts @ self.numer_CM, counts @ self.denom_CM)
            for counts in resampled_counts(len(self.numer_CM), resamples, seed)
        ]
        return np.concatenate(blocks)


def _question_se(numer_CM: FloatArray, denom_CM: FloatArray, weights_M: FloatArray) -> float | None:
    """Standard error of a weighted sum of ratios of sums, linearised, over clusters.

    A ratio's n clusters count n / (n - 1) times, so that for equal denominators it is sd / sqrt(n),
    and for ratios of different clusters the variances add. None where n < 2.
    """
    counts_M = (denom_CM != 0).sum(axis=0)
    if counts_M.min() < 2:
        return None
    totals_M = denom_CM.sum(axis=0)
    residuals_CM = numer_CM - numer_CM.sum(axis=0) / totals_M * denom_CM
    factors_M = weights_M / totals_M * np.sqrt(counts_M / (counts_M - 1))
    return float(np.sqrt(((residuals_CM @ factors_M) ** 2).sum()))


def _bounds(
    draws_B: FloatArray,
    value: float,
    shares: Sequence[Interval | None],
    weights: FloatArray,
    fewest: int,
    level: float,
) -> tuple[float, float]:
    """Bootstrap limits, with the tails of the part that has the fewest clusters.

    Where nothing varies, or a part has one cluster, the mix of the parts' own limits: too wide.
    """
    known = draws_B[np.isfinite(draws_B)]  # a resample of nothing but empty denominators is none
    if math.isnan(value) or known.size == 0:
        return math.nan, math.nan
    if fewest > 1 and known.min() < known.max():
        return expanded_quantiles(known, fewest, level)
    parts = [share for share in shares if share is not None]
    if len(parts) < len(shares):
        return math.nan, math.nan
    low = float(np.array([part.low for part in parts]) @ weights)
    return low, float(np.array([part.high for part in parts]) @ weights)


def _ratio(numer: FloatArray, denom: FloatArray) -> FloatArray:
    ratio = np.full(denom.shape, math.nan)
    np.divide(numer, denom, out=ratio, where=denom != 0)
    return ratio


def _resolved(
    name: str, composites: Mapping[str, Mapping[str, float]], above: tuple[str, ...]
) -> dict[str, float]:
    """A composite as weights of metrics, which sum to 1; what is no composite is a metric."""
    if name in above:
        raise ConfigError(f"composite '{name}' is a part of itself: {' > '.join((*above, name))}")
    if name not in composites:
        return {name: 1.0}
    parts = composites[name]
    total = math.fsum(parts.values())
    if min(parts.values(), default=0.0) < 0.0 or total <= 0.0:
        raise ConfigError(f"composite '{name}' needs weights of 0 or more that do not sum to 0")
    weights: dict[str, float] = {}
    for part, weight in parts.items():
        for metric, inner in _resolved(part, composites, (*above, name)).items():
            weights[metric] = weights.get(metric, 0.0) + weight / total * inner
    return weights
