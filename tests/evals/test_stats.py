"""Intervals against scipy, exact enumeration and their own coverage."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evals.stats import (
    bootstrap_interval,
    expanded_quantiles,
    paired_bootstrap,
    score_interval,
    student_quantile,
    wilson_interval,
)

SCORES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40)


@pytest.mark.parametrize("n", [30, 500])
def test_bootstrap_agrees_with_scipy(n: int) -> None:
    values = np.random.default_rng(n).beta(0.4, 0.6, size=n)
    ours = bootstrap_interval(values.tolist())
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(9)
    ).confidence_interval
    # Two bootstraps of 10,000 differ in a bound by Monte Carlo noise: a few % of a standard error.
    noise = 0.1 * values.std(ddof=1) / np.sqrt(n)
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=noise)
    assert ours.high == pytest.approx(theirs.high, abs=noise)


def test_bootstrap_of_three_questions_is_the_exact_distribution() -> None:
    values = [0.0, 0.5, 1.0]
    means = sorted(sum(draw) / 3 for draw in itertools.product(values, repeat=3))
    # All 27 resamples are equally likely: 1/27 > 2.5 %, so both ends are the extremes.
    interval = bootstrap_interval(values)
    assert (interval.low, interval.high) == (means[0], means[-1])
    narrower = bootstrap_interval(values, level=0.5)
    exact = np.quantile(means, [0.25, 0.75], method="inverted_cdf")
    assert (narrower.low, narrower.high) == pytest.approx(exact)


def test_bootstrap_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        p = rng.beta(2, 2, size=100)  # questions of unlike difficulty; the truth is 0.5
        interval = bootstrap_interval((rng.binomial(4, p) / 4).tolist(), resamples=1000, seed=trial)
        hits += interval.low <= 0.5 <= interval.high
    assert 180 <= hits <= 198  # 190 +- 2.6 standard errors


def test_repeats_of_a_question_are_not_independent_samples() -> None:
    rng = np.random.default_rng(1)
    verdicts = rng.binomial(1, rng.beta(0.3, 0.3, size=(100, 1)), size=(100, 8))
    clustered = bootstrap_interval(verdicts.mean(axis=1).tolist())
    flat = bootstrap_interval(verdicts.ravel().tolist())
    assert clustered.high - clustered.low > 1.5 * (flat.high - flat.low)


@given(SCORES)
@example([5e-324, 5e-324])  # Wilson's lower bound rounds to below 0
@settings(max_examples=50, deadline=None)
def test_intervals_hold_their_estimate_and_stay_in_range(values: list[float]) -> None:
    interval = score_interval(values, resamples=500)
    assert 0.0 <= interval.low <= interval.value + 1e-12
    assert interval.value - 1e-12 <= interval.high <= 1.0
    assert interval.value == pytest.approx(sum(values) / len(values))


@given(SCORES, SCORES)
@settings(max_examples=50, deadline=None)
def test_paired_bootstrap_is_antisymmetric(a: list[float], b: list[float]) -> None:
    size = min(len(a), len(b))
    forward = paired_bootstrap(a[:size], b[:size], resamples=200)
    backward = paired_bootstrap(b[:size], a[:size], resamples=200)
    assert forward.value == -backward.value
    assert forward.low == pytest.approx(-backward.high, abs=1e-12)


def test_pairing_takes_the_difficulty_out() -> None:
    rng = np.random.default_rng(2)
    hard = rng.random(300) * 0.9
    better = hard + 0.05 + 0.02 * rng.standard_normal(300)
    paired = paired_bootstrap(better.tolist(), hard.tolist())
    separate = bootstrap_interval(better.tolist()), bootstrap_interval(hard.tolist())
    assert paired.low > 0.0 and paired.high - paired.low < 0.01
    assert separate[0].low < separate[1].high  # the separate intervals overlap
    expected = scipy_stats.bootstrap(
        (better, hard),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert paired.low == pytest.approx(expected.low, abs=2e-4)


@pytest.mark.parametrize(("c", "n"), [(0, 30), (30, 30), (1, 1), (0, 1), (7, 30), (250, 500)])
def test_wilson_agrees_with_scipy(c: int, n: int) -> None:
    theirs = scipy_stats.binomtest(c, n).proportion_ci(method="wilson")
    ours = wilson_interval(c, n)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.value == c / n


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_student_quantiles_agree_with_scipy(level: float) -> None:
    for freedom in [*range(1, 130), 1000]:
        expected = scipy_stats.t.ppf((1 + level) / 2, freedom)
        assert student_quantile(freedom, level) == pytest.approx(expected, rel=3e-7)


@pytest.mark.parametrize("n", [5, 12, 40])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_expanded_quantiles_turn_a_normal_bootstrap_into_students_interval(
    n: int, level: float
) -> None:
    # The bootstrap of a mean is close to normal with the variance (n - 1) / n s^2 / n; here s = 1.
    draws = scipy_stats.norm.ppf((np.arange(40_000) + 0.5) / 40_000) * np.sqrt((n - 1) / n / n)
    half = scipy_stats.t.ppf((1 + level) / 2, n - 1) / np.sqrt(n)
    low, high = expanded_quantiles(np.random.default_rng(0).permutation(draws), n, level)
    assert (low, high) == pytest.approx((-half, half), rel=0.01)


def test_expanded_quantiles_of_what_is_never_reached() -> None:
    draws = np.array([1.0] * 90 + [np.inf] * 10)
    assert expanded_quantiles(draws, 30, 0.95) == (1.0, np.inf)
    assert expanded_quantiles(np.full(100, np.inf), 30, 0.95) == (np.inf, np.inf)
    with pytest.raises(ValueError, match="two units"):
        expanded_quantiles(draws, 1, 0.95)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_a_perfect_score_claims_no_certainty(score: float) -> None:
    collapsed = bootstrap_interval([score] * 30)
    assert collapsed.low == collapsed.high == score  # documented: why score_interval exists
    interval = score_interval([score] * 30)
    assert interval == wilson_interval(30 * score, 30)
    assert interval.high - interval.low == pytest.approx(0.1135, abs=1e-4)


def test_one_question_proves_little() -> None:
    interval = score_interval([0.5])
    assert interval.low < 0.1 and interval.high > 0.9


@pytest.mark.parametrize("values", [[], [float("nan"), 1.0], [float("inf")]])
def test_senseless_values_are_refused(values: list[float]) -> None:
    for interval in (bootstrap_interval, score_interval):
        with pytest.raises(ValueError, match=r"at least one value|must be finite"):
            interval(values)
    with pytest.raises(ValueError, match=r"at least one value|must be finite"):
        paired_bootstrap(values, [0.0] * len(values))


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="differ in number: 2 and 1"):
        paired_bootstrap([1.0, 0.0], [1.0])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        score_interval([0.5, 1.5])
    for c, n in [(2, 1), (-1, 3), (0, 0)]:
        with pytest.raises(ValueError, match="impossible"):
            wilson_interval(c, n)


def test_five_hundred_questions_are_quick_and_lean() -> None:
    values = np.random.default_rng(4).random(500).tolist()
    tracemalloc.start()
    started = time.perf_counter()
    first = bootstrap_interval(values)
    seconds = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1.0
    assert peak < 64e6  # 10,000 x 500 indices and values at once would be 80 MB
    assert first == bootstrap_interval(values)  # the seed is fixed
    assert first != bootstrap_interval(values, seed=1)
