"""The report's intervals against exact enumeration, hand-made cases and plain loops."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.report.statistics import (
    Curve,
    Estimate,
    FloatArray,
    Part,
    efficiency,
    first_reach,
    over_seeds,
    resampled_means,
    seed_weights,
    smoothing_window,
    trailing_mean,
    unanimous_interval,
    verdict,
)
from evals.stats import Interval, inflation, paired_bootstrap
from evals.stats import seed_weights as normal_weights


def curve(scores: list[float], cost: float = 100.0) -> Curve:
    """One seed without noise: every resample equals the observation."""
    row = np.array([scores])
    costs = np.array([[cost * (index + 1) for index in range(len(scores))]])
    return Curve("one", 40, row, np.repeat(row[None], 8, axis=0), np.ones((8, 1)), costs)


def test_resampled_means_agree_with_the_paired_bootstrap() -> None:
    generator = np.random.default_rng(3)
    a, b = generator.random((2, 200))
    expected = paired_bootstrap(a.tolist(), b.tolist())
    means_BR = resampled_means(np.stack([a, b]))
    draws_B = means_BR[:, 0] - means_BR[:, 1]
    parts = {"questions": Part(draws_B, 10_000)}
    found = Estimate(float((a - b).mean()), draws_B, parts).interval()
    assert found.value == pytest.approx(expected.value)
    # Monte-Carlo error of a 2.5 percentile of 10,000 draws is about 0.03 standard errors.
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.04 * width)
    assert found.high == pytest.approx(expected.high, abs=0.04 * width)


def test_columns_share_their_questions() -> None:
    values = np.random.default_rng(4).random(50)
    means_BR = resampled_means(np.stack([values, 1 - values]), resamples=500)
    assert np.allclose(means_BR.sum(axis=1), 1.0)
    assert means_BR[:, 0].std() > 0


def test_no_question_is_refused() -> None:
    with pytest.raises(ValueError, match="no question"):
        resampled_means(np.empty((2, 0)))


def test_both_levels_add_their_variances() -> None:
    """Questions as the exact bootstrap has them, seeds as the variance of their mean."""
    values_SQ = np.array([[0.0, 0.5, 1.0], [0.5, 1.0, 1.0]])
    exact = [
        float(np.mean(values_SQ[:, list(questions)]))
        for questions in itertools.product(range(3), repeat=3)
    ]
    weights_BS = seed_weights("reopold", 2, 40_000)
    draws_BS = resampled_means(values_SQ, 40_000)
    found = over_seeds("reopold", values_SQ.mean(axis=1), draws_BS, weights_BS, 3)
    of_seeds = float(np.var(values_SQ.mean(axis=1), ddof=1)) / 2
    assert found.value == pytest.approx(np.mean(exact))
    assert found.draws_B.mean() == pytest.approx(np.mean(exact), abs=0.005)
    assert found.parts["questions"].draws_B.var() == pytest.approx(np.var(exact), rel=0.02)
    assert found.parts["reopold"].draws_B.var() == pytest.approx(of_seeds, rel=0.02)
    # Where a seed is more certain of some questions than another, their product adds a little.
    assert found.draws_B.var() == pytest.approx(np.var(exact) + of_seeds, rel=0.2)
    assert (found.parts["questions"].freedom, found.parts["reopold"].freedom) == (2, 1)


@given(st.integers(1, 6), st.sampled_from(["reopold", "grpo"]))
def test_seed_weights_sum_to_one(seeds: int, method: str) -> None:
    weights_BS = seed_weights(method, seeds, 50)
    assert weights_BS.shape == (50, seeds)
    assert np.allclose(weights_BS.sum(axis=1), 1.0)


def test_methods_resample_their_seeds_independently() -> None:
    pairs = seed_weights("reopold", 3), seed_weights("grpo", 3)
    assert abs(np.corrcoef(pairs[0][:, 0], pairs[1][:, 0])[0, 1]) < 0.05


def test_trailing_mean_by_hand() -> None:
    few = np.array([[3.0, 6.0, 9.0, 0.0]])
    assert trailing_mean(few).tolist() == few.tolist()
    many = np.array([[3.0, 6.0, 9.0, 0.0] + [0.0] * 20])
    assert trailing_mean(many)[0, :6].tolist() == [3.0, 4.5, 6.0, 5.0, 3.0, 0.0]
    assert [smoothing_window(c) for c in (1, 4, 15, 16, 23, 24, 100)] == [1, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("scores", "baseline", "ratio", "bound"),
    [
        # Reaches 0.4 at its second checkpoint, the baseline at its fourth.
        ([0.2, 0.6, 0.7, 0.7], [0.1, 0.2, 0.3, 0.4], 2.0, ""),
        # Never: 400 samples of the baseline against more than the 400 spent.
        ([0.1, 0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4], 1.0, "<"),
        # At the first checkpoint: it may have been much earlier.
        ([0.5, 0.6, 0.7, 0.7], [0.1, 0.2, 0.3, 0.4], 4.0, ">="),
        # The baseline fell back to 0.4, which it had passed at its second checkpoint.
        ([0.1, 0.2, 0.3, 0.9], [0.3, 0.5, 0.6, 0.4], 0.5, ""),
        # The baseline never rises: nothing between 0 and 100 samples was measured.
        ([0.1, 0.7, 0.7, 0.7], [0.4, 0.4, 0.4, 0.4], 0.5, "<="),
        ([0.5, 0.7, 0.7, 0.7], [0.4, 0.4, 0.4, 0.4], 1.0, "?"),
    ],
)
def test_efficiency_by_hand(
    scores: list[float], baseline: list[float], ratio: float, bound: str
) -> None:
    found = efficiency(curve(scores), curve(baseline))
    for limit in (found.value, found.low, found.high):
        assert limit.ratio == pytest.approx(ratio)
        assert limit.bound == bound
    assert found.reached == (0.0 if bound == "<" else 1.0)


def test_a_shorter_budget_bounds_by_what_was_spent() -> None:
    found = efficiency(curve([0.1, 0.1]), curve([0.1, 0.2, 0.3, 0.4]))
    assert (found.value.ratio, found.value.bound, found.cost) == (2.0, "<", 200.0)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 26))
def test_efficiency_against_a_loop(seed: int, seeds: int, checkpoints: int) -> None:
    generator = np.random.default_rng(seed)
    method = _random_curve(generator, seeds, checkpoints)
    baseline = _random_curve(generator, seeds, checkpoints)
    found = efficiency(method, baseline)
    looped = [_loop(method, baseline, draw) for draw in range(40)]
    never = [never for _, never in looped]
    assert found.reached == pytest.approx(1 - sum(never) / 40)
    keyed = sorted((0.0 if never else ratio, ratio) for ratio, never in looped)
    for limit, share in ((found.low, 0.025), (found.high, 0.975)):
        expected = keyed[math.ceil(share * 40) - 1]
        assert (limit.bound == "<") == (expected[0] == 0.0)
        if limit.bound != "<":
            assert limit.ratio == pytest.approx(expected[1])


def _random_curve(generator: np.random.Generator, seeds: int, checkpoints: int) -> Curve:
    draws_BSC = generator.random((40, seeds, checkpoints)).round(2)
    weights_BS = normal_weights(seeds, 40, generator)
    costs_SC = generator.random((seeds, checkpoints)).cumsum(axis=1) + 0.1
    return Curve("one", 10**6, draws_BSC.mean(axis=0), draws_BSC, weights_BS, costs_SC)


def _loop(method: Curve, baseline: Curve, draw: int) -> tuple[float, bool]:
    wide = inflation((method.last() - baseline.last()).freedom())

    def means(one: Curve) -> tuple[list[float], list[float]]:
        weights = one.weights_BS[draw]
        scores = []
        for c in range(one.scores_SC.shape[1]):
            seen, drawn = one.scores_SC[:, c].mean(), weights @ one.draws_BSC[draw, :, c]
            scores.append(float(seen + wide * (drawn - seen)))
        return scores, one.costs_SC.mean(axis=0).tolist()

    def reach(scores: list[float], target: float) -> int | None:
        for c in range(len(scores)):
            window = scores[max(0, c + 1 - max(1, min(3, len(scores) // 8))) : c + 1]
            if sum(window) / len(window) >= target - 1e-9:
                return c
        return None

    (scores, costs), (base_scores, base_costs) = means(method), means(baseline)
    own, base = reach(scores, base_scores[-1]), reach(base_scores, base_scores[-1])
    base_cost = base_costs[-1 if base is None else base]
    return base_cost / costs[-1 if own is None else own], own is None


def test_the_limits_do_not_depend_on_the_order_of_the_resamples() -> None:
    """Most resamples miss the target, and bound the ratio at two different values."""
    generator = np.random.default_rng(0)
    method = _random_curve(generator, 3, 4)
    baseline = _random_curve(generator, 3, 4)
    method = dataclasses.replace(method, draws_BSC=method.draws_BSC * 0.8)
    order = generator.permutation(len(method.draws_BSC))

    def permuted(one: Curve) -> Curve:
        return dataclasses.replace(
            one, draws_BSC=one.draws_BSC[order], weights_BS=one.weights_BS[order]
        )

    found = efficiency(method, baseline)
    assert 0.1 < found.reached < 0.9
    assert efficiency(permuted(method), permuted(baseline)) == found


def test_first_reach_takes_the_last_index_where_there_is_none() -> None:
    scores: FloatArray = np.array([[0.1, 0.5, 0.9], [0.1, 0.2, 0.3]])
    index_X, never_X = first_reach(scores, np.array([0.5, 0.5]))
    assert index_X.tolist() == [1, 2]
    assert never_X.tolist() == [False, True]


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_verdict_needs_an_interval_without_zero(value: float, down: float, up: float) -> None:
    low, high = value - down, value + up
    expected = "undecided" if low <= 0 <= high else "above" if low > 0 else "below"
    assert verdict(Interval(value, low, high)) == expected


def test_questions_of_one_cluster_are_drawn_together() -> None:
    rng = np.random.default_rng(3)
    base = rng.random((2, 40))
    twice = np.repeat(base, 2, axis=1)
    names = [f"picture {i // 2}" for i in range(80)]
    # Versions that agree are worth one question each; alone they would pass for eighty.
    assert np.allclose(resampled_means(twice, clusters=names), resampled_means(base))
    alone = resampled_means(twice).std(axis=0)
    assert (resampled_means(twice, clusters=names).std(axis=0) > 1.2 * alone).all()
    single = [str(i) for i in range(80)]
    assert (resampled_means(twice, clusters=single) == resampled_means(twice)).all()
    # Clusters of unequal size: a ratio of sums, so that the mean is the questions'.
    uneven = resampled_means(base[:1], 20_000, clusters=["a"] * 10 + [str(i) for i in range(30)])
    assert uneven.mean() == pytest.approx(base[0].mean(), abs=0.02)


def test_unanimous_clusters_leave_a_width() -> None:
    wide = unanimous_interval(np.ones((3, 40)), [str(i // 4) for i in range(40)])
    narrow = unanimous_interval(np.ones((3, 40)), None)
    assert (wide.value, wide.high) == (1.0, 1.0) and wide.low < narrow.low < 1.0
