"""Intervals of benchmark scores. The questions are the sample; repeats of one are not.

A question's k samples are first averaged into one number, so resampling questions resamples whole
clusters (Miller 2024, arXiv 2411.00640); more repeats only shrink the noise within a question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
#: Degrees of freedom from which Student's interval is taken for the normal one (0.1 % wider).
LARGE_FREEDOM = 1_000
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
    low, high = wilson_bounds(c / n, n, NormalDist().inv_cdf((1 + level) / 2))
    return Interval(c / n, low, high)


def wilson_bounds(p: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's bounds of a share p of n verdicts, z standard errors away; n may be a fraction."""
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The bounds are exactly 0 at p = 0 and 1 at p = 1; rounding would step over them.
    low = 0.0 if p == 0 else max(0.0, centre - half)
    high = 1.0 if p == 1 else min(1.0, centre + half)
    return low, high


def seed_weights(seeds: int, resamples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Weight of each seed in each resample, [B, S]; rows sum to 1, and weights may be negative.

    Three seeds drawn with replacement spread by too little, by sqrt(2/3). With these weights the
    mean of S values has the variance of a mean, `sd^2 / S`; and what is derived from several means
    of the same runs (a difference, a ratio, a curve) keeps their dependence. The tails are normal:
    :func:`inflation` puts Student's in their place. One seed has weight 1.
    """
    if seeds == 1:
        return np.ones((resamples, 1))
    normal_BS = generator.standard_normal((resamples, seeds))
    normal_BS -= normal_BS.mean(axis=1, keepdims=True)
    return 1.0 / seeds + normal_BS / math.sqrt(seeds * (seeds - 1))


def effective_freedom(parts: Sequence[tuple[float, int]]) -> float:
    """Degrees of freedom of a sum of independent variances (Satterthwaite 1946).

    Args:
        parts: (estimated variance, its degrees of freedom). All zero: infinitely many.
    """
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / freedom for variance, freedom in parts if freedom > 0)
    if not math.isfinite(total):
        return 1.0
    return math.inf if spread == 0.0 else total**2 / spread


def inflation(freedom: float, level: float = LEVEL) -> float:
    """How much wider Student's interval is than the normal one: 1 for many degrees of freedom,
    1.42 for 4, 6.5 for 1. Between whole numbers its logarithm is linear in 1/freedom.

    Draws whose deviations are taken times this have Student's limits at the normal percentiles.
    Percentiles further out would need more draws than there are.
    """
    if freedom >= LARGE_FREEDOM:
        return 1.0
    below = max(1, math.floor(freedom))
    above = below + 1
    share = (1 / below - 1 / max(freedom, 1.0)) / (1 / below - 1 / above)
    logs = [math.log(student_quantile(n, level)) for n in (below, above)]
    wide = math.exp((1 - share) * logs[0] + share * logs[1])
    return wide / NormalDist().inv_cdf((1 + level) / 2)


def expanded_quantiles(draws: NDArray[np.float64], n: int, level: float) -> tuple[float, float]:
    """Percentile bounds of bootstrap draws, with the tails that a small sample needs.

    A bootstrap of n units is narrow twice over: its variance lacks the factor n / (n - 1), and it
    uses normal tails where Student's are due. The quantiles are taken further out by as much
    (Hesterberg 2015, arXiv 1411.5279, section 5.3); bounds stay in the range of the statistic.

    Raises:
        ValueError: n < 2: one unit says nothing of how units vary.
    """
    if n < 2:
        raise ValueError("a bootstrap needs two units at least")
    tail = NormalDist().cdf(-student_quantile(n - 1, level) * math.sqrt(n / (n - 1)))
    last = len(draws) - 1
    ordered = np.sort(draws)  # whole ranks, outwards: between a number and infinity lies nothing
    return float(ordered[math.floor(tail * last)]), float(ordered[math.ceil((1 - tail) * last)])


@cache
def student_quantile(freedom: int, level: float = LEVEL) -> float:
    """Half-width of the two-sided `level` interval of Student's t, in standard errors.

    The finite series of the distribution (Abramowitz and Stegun 26.7.3, 26.7.4) by bisection;
    beyond 100 degrees of freedom their expansion 26.7.5, whose error is below 1e-7.
    """
    if freedom > 100:
        z = NormalDist().inv_cdf((1 + level) / 2)
        terms = (
            (z**3 + z) / 4,
            (5 * z**5 + 16 * z**3 + 3 * z) / 96,
            (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        )
        return z + math.fsum(term / freedom**power for power, term in enumerate(terms, start=1))
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_mass(middle, freedom) < level else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _student_mass(theta: float, freedom: int) -> float:
    """P(|t| < tan(theta) sqrt(freedom))."""
    odd = freedom % 2
    cosine = math.cos(theta)
    term, total = (cosine if odd else 1.0), 0.0
    for i in range(odd, freedom - 1, 2):
        total += term
        term *= cosine**2 * (i + 1) / (i + 2)
    inner = math.sin(theta) * total
    return 2 / math.pi * (theta + inner) if odd else inner


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError("need at least one value, one a question")
    if not np.isfinite(sample).all():
        raise ValueError("values must be finite")
    return sample
