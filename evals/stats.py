"""Intervals of benchmark scores. The questions are the sample; repeats of one are not.

A question's k samples are first averaged into one number, so resampling questions resamples whole
clusters (Miller 2024, arXiv 2411.00640); more repeats only shrink the noise within a question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 10_000
#: Numbers gathered at once (8 MB): bounds the memory of a bootstrap, whatever the test set's size.
CHUNK = 1 << 20


@dataclass(frozen=True)
class Interval:
    """An estimate and its two-sided interval, in the unit of the values."""

    value: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Mean of `values` (one a question) with a percentile bootstrap over questions.

    Where all values are equal every resample is too, and the interval has no width, though a small
    test set proves little: for scores in [0, 1] use :func:`score_interval`.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    sample = _finite(values)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, CHUNK // len(sample))
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = rng.integers(len(sample), size=(stop - start, len(sample)))
        means[start:stop] = sample[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sample.mean()), float(low), float(high))


def paired_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Mean of a - b over questions that both answered, with its interval.

    a is better than b at this level where the interval lies above 0. Pairing takes out how hard
    each question is, which two separate intervals would count twice.

    Args:
        a, b: a value a question, in the same order of questions.

    Raises:
        ValueError: unequal lengths, no values, or one that is not finite.
    """
    if len(a) != len(b):
        raise ValueError(f"paired values differ in number: {len(a)} and {len(b)}")
    differences = _finite(a) - _finite(b)
    return bootstrap_interval(differences.tolist(), resamples=resamples, level=level, seed=seed)


def score_interval(
    values: Sequence[float], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Mean of scores in [0, 1], one a question, with an interval that never claims certainty.

    The bootstrap, except where all values are equal (a perfect score, a zero, a single question):
    then Wilson's interval on the n questions, which is wide enough, because no distribution on
    [0, 1] of mean p varies more than 0/1 verdicts of mean p.

    Raises:
        ValueError: no values, or one outside [0, 1].
    """
    sample = _finite(values)
    if sample.min() < 0.0 or sample.max() > 1.0:
        raise ValueError("scores must lie in [0, 1]")
    if sample.min() == sample.max():
        return wilson_interval(float(sample[0]) * len(sample), len(sample), level=level)
    return bootstrap_interval(values, resamples=resamples, level=level, seed=seed)


def wilson_interval(c: float, n: int, *, level: float = LEVEL) -> Interval:
    """Share c/n of right single verdicts with Wilson's score interval (Wilson 1927).

    Raises:
        ValueError: n < 1 or not 0 <= c <= n.
    """
    if n < 1 or not 0 <= c <= n:
        raise ValueError(f"{c} right of {n} verdicts is impossible")
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = c / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The bounds are exactly 0 at c = 0 and 1 at c = n; rounding would step over them.
    low = 0.0 if c == 0 else max(0.0, centre - half)
    high = 1.0 if c == n else min(1.0, centre + half)
    return Interval(p, low, high)


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError("need at least one value, one a question")
    if not np.isfinite(sample).all():
        raise ValueError("values must be finite")
    return sample
