"""Paired comparisons: scipy's tests, enumeration, hand-computed cases, simulated coverage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evals.comparison import (
    Comparison,
    Need,
    compare,
    discordant_interval,
    holm,
    needed,
    sign_flip_test,
    sign_test,
    with_holm,
)
from reopold.config import ConfigError

Samples = dict[str, list[float]]


def evaluation(rows: Sequence[Sequence[float]]) -> Samples:
    return {f"q{i}": list(row) for i, row in enumerate(rows)}


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (9, 2), (2, 9), (10, 10), (0, 40)])
def test_mcnemar_agrees_with_scipy(wins: int, losses: int) -> None:
    n = wins + losses
    expected = scipy_stats.binomtest(wins, n, 0.5).pvalue if n else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected)
    both = [[1.0]] * 7
    result = compare(
        evaluation([*[[1.0]] * wins, *[[0.0]] * losses, *both]),
        evaluation([*[[0.0]] * wins, *[[1.0]] * losses, *both]),
    )
    assert (result.wins, result.losses, result.test) == (wins, losses, "McNemar")
    assert result.p_value == result.sign_p == sign_test(wins, losses)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
@settings(max_examples=40, deadline=None)
def test_sign_flips_agree_with_enumeration(differences: list[int]) -> None:
    sums = np.array(differences) / 4
    flips = itertools.product([-1.0, 1.0], repeat=len(sums))
    extreme = [abs(np.dot(flip, sums)) >= abs(sums.sum()) - 1e-12 for flip in flips]
    exact = float(np.mean(extreme))
    noise = 5 * math.sqrt(exact * (1 - exact) / 10_000) + 1e-3
    assert sign_flip_test(sums) == pytest.approx(exact, abs=noise)


def test_sign_flips_of_single_verdicts_are_mcnemar() -> None:
    sums = np.array([1.0] * 12 + [-1.0] * 3 + [0.0] * 20)
    assert sign_flip_test(sums) == pytest.approx(sign_test(12, 3), abs=0.006)
    assert sign_flip_test(np.full(40, 0.1)) == pytest.approx(1 / 10_001)  # never 0


def test_discordant_interval_by_hand() -> None:
    # Bonett and Price: (9+1)/52 - (3+1)/52 = 0.1154, +- 1.96 sqrt((14/52 - 0.1154^2) / 52).
    interval = discordant_interval(9, 3, 50)
    half = 1.959964 * math.sqrt((14 / 52 - (6 / 52) ** 2) / 52)
    assert interval.value == pytest.approx(0.12)
    assert (interval.low, interval.high) == pytest.approx((6 / 52 - half, 6 / 52 + half), abs=1e-6)
    nothing = discordant_interval(0, 0, 30)
    assert nothing.value == 0.0 and nothing.high == -nothing.low > 0.05
    for wins, losses, n in [(-1, 0, 3), (2, 2, 3), (0, 0, 0)]:
        with pytest.raises(ValueError, match="impossible"):
            discordant_interval(wins, losses, n)


def test_the_interval_is_students_over_questions() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.binomial(1, 0.6, size=(2, 40, 8)).astype(float)
    result = compare(evaluation(a.tolist()), evaluation(b.tolist()))
    theirs = scipy_stats.ttest_rel(a.mean(axis=1), b.mean(axis=1)).confidence_interval(0.95)
    assert (result.difference.low, result.difference.high) == pytest.approx(
        (theirs.low, theirs.high), rel=1e-6
    )
    assert result.scores == pytest.approx((a.mean(), b.mean()))
    variances = [x.var(axis=1, ddof=1).sum() / 8 for x in (a, b)]
    assert result.seed_se == pytest.approx(math.sqrt(sum(variances)) / 40)


def test_the_bootstrap_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    p = rng.random(300)
    a, b = rng.binomial(4, np.minimum(1, p + 0.05)) / 4, rng.binomial(4, p) / 4
    result = compare(
        evaluation([[x, x] for x in a.tolist()]), evaluation([[x, x] for x in b.tolist()])
    )
    theirs = scipy_stats.bootstrap(
        (a, b), lambda x, y, axis: (x - y).mean(axis=axis), paired=True, method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert result.bootstrap.low == pytest.approx(theirs.low, abs=0.002)
    assert result.bootstrap.high == pytest.approx(theirs.high, abs=0.002)
    # With 300 questions the two kinds agree.
    assert result.difference.low == pytest.approx(result.bootstrap.low, abs=0.003)


def test_clusters_are_the_units() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random((20, 1)), rng.random((20, 1))
    alone = compare(evaluation(a.tolist()), evaluation(b.tolist()))
    a5, b5 = np.repeat(a, 5, axis=0), np.repeat(b, 5, axis=0)
    clusters = {f"q{i}": f"figure {i // 5}" for i in range(100)}
    grouped = compare(evaluation(a5.tolist()), evaluation(b5.tolist()), clusters=clusters)
    assert (grouped.questions, grouped.clusters) == (100, 20)
    assert grouped.difference.low == pytest.approx(alone.difference.low)
    assert grouped.p_value == pytest.approx(alone.p_value, abs=0.03)  # other random flips
    assert "100 questions in 20 clusters, 1 sample each" in grouped.sentence()


def test_comparison_is_antisymmetric_and_ignores_order() -> None:
    rng = np.random.default_rng(4)
    a, b = (evaluation(rng.binomial(1, 0.5, size=(30, 4)).tolist()) for _ in range(2))
    forward, backward = compare(a, b), compare(b, a)
    assert forward.difference.low == pytest.approx(-backward.difference.high)
    assert (forward.wins, forward.losses) == (backward.losses, backward.wins)
    shuffled = compare(dict(reversed(a.items())), b)
    assert shuffled == forward


def test_two_that_always_agree_are_not_proved_equal() -> None:
    same = evaluation([[1.0, 0.0]] * 30)
    result = compare(same, same)
    assert result.difference.low < -0.1 < 0.1 < result.difference.high
    assert result.outcome == "undecided" and result.need is None
    assert result.sentence().endswith("There is no difference to tell.")
    one = compare({"q": [1.0, 1.0]}, {"q": [0.0, 0.0]})
    assert one.outcome == "undecided" and one.question_se is None


def test_needs_by_hand() -> None:
    # Difference 2 points; 80 % power at 5 % wants an SE of 2 / 2.8016 = 0.7139 points.
    z = 1.959964 + 0.841621
    target = (0.02 / z) ** 2
    # SE^2 = (Var_q + W / K) / n, with n = 100, K = 4, Var_q = 0.004, W = 0.08.
    question, seeds = math.sqrt((0.004 + 0.02) / 100), math.sqrt(0.02 / 100)
    need = needed(0.02, question, seeds, 100, 4)
    assert need is not None and need.known and need.samples is not None
    assert need.questions == math.ceil(0.024 / target) - 100
    # And the plan keeps its promise: at the new K the variance is the target's, at K - 1 more.
    k = 4 + need.samples
    assert (0.004 + 0.08 / k) / 100 <= target < (0.004 + 0.08 / (k - 1)) / 100
    never = needed(0.01, question, seeds, 100, 4)  # Var_q / n alone exceeds the target
    assert never is not None and never.samples is None and never.known
    assert needed(0.02, question, None, 100, 1) == Need(need.questions, None, known=False)
    assert needed(0.0, question, seeds, 100, 4) is None


def test_the_number_of_questions_asked_for_has_the_power() -> None:
    rng = np.random.default_rng(5)
    found, trials = 0, 300
    need = needed(0.1, math.sqrt(0.25 / 30), None, 30, 1)
    assert need is not None
    for _ in range(trials):
        d = rng.normal(0.1, 0.5, size=30 + need.questions)
        found += scipy_stats.ttest_1samp(d, 0.0).pvalue < 0.05
    assert found / trials == pytest.approx(0.8, abs=0.07)


def test_holm_by_hand() -> None:
    # Holm 1979: 4 x .005, 3 x .01, 2 x .03, then .04 is raised to the .06 before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            holm([p])


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8), st.floats(0.001, 0.5))
@settings(deadline=None)
def test_holm_is_the_step_down_procedure(p_values: list[float], alpha: float) -> None:
    rejected = set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] * (len(p_values) - rank) > alpha:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected


def case(outcome: str) -> Comparison:
    rng = np.random.default_rng(6)
    p = rng.beta(0.5, 0.5, size=60)
    lift = {"better": 0.15, "worse": -0.15, "undecided": -0.02}[outcome]
    a = rng.binomial(1, np.clip(p + lift, 0, 1)[:, None], size=(60, 8))
    b = rng.binomial(1, p[:, None], size=(60, 8))
    return compare(
        evaluation(a.tolist()), evaluation(b.tolist()), names=("reopold", "opd"), benchmark="amc23"
    )


def test_sentences() -> None:
    better, worse = case("better"), case("worse")
    assert better.outcome == "better" and better.sentence().endswith("): reopold is better.")
    assert worse.outcome == "worse" and worse.sentence().endswith("): opd is better.")
    assert "on amc23 (60 questions, 8 samples each)" in better.sentence()
    open_ = case("undecided")
    assert open_.outcome == "undecided" and open_.need is not None
    plan = replace(open_, need=Need(1200, None, known=True)).sentence()
    assert "about 1,200 more questions; no number of samples on these questions suffices." in plan
    plan = replace(open_, need=Need(70, 24, known=True)).sentence()
    assert "about 70 more questions or about 24 more samples a question from both." in plan
    plan = replace(open_, need=Need(70, None, known=False)).sentence()
    assert "a single sample a question does not say" in plan


def test_holm_reaches_the_sentence() -> None:
    first, second = with_holm([case("better"), replace(case("worse"), p_value=0.03)])
    assert second.adjusted_p == 0.03
    assert first.adjusted_p == pytest.approx(2 * first.p_value)
    assert "p = 0.030 (sign flip test, p = 0.030 after Holm)" in second.sentence()


def test_other_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"same questions: 2 are in one only \(x, y\)"):
        compare({"x": [1.0]}, {"y": [1.0]})
    with pytest.raises(ConfigError, match="none in common"):
        compare({}, {})
    for scores in ([], [1.5], [math.nan]):
        with pytest.raises(ConfigError, match="question x needs scores"):
            compare({"x": scores}, {"x": [1.0]})
    with pytest.raises(ConfigError, match="question x has no cluster"):
        compare({"x": [1.0]}, {"x": [1.0]}, clusters={})


def coverage(n: int, k: int, trials: int) -> float:
    """Difficulties Beta(0.3, 1.2); b is easier by 0.1 on nine questions in ten."""
    rng = np.random.default_rng([n, k])
    population = rng.beta(0.3, 1.2, size=400_000)
    truth = 0.9 * float((np.minimum(1, population + 0.1) - population).mean())
    hits = 0
    for _ in range(trials):
        p = rng.beta(0.3, 1.2, size=n)
        q = np.where(rng.random(n) < 0.9, np.minimum(1, p + 0.1), rng.beta(0.3, 1.2, size=n))
        a = rng.random((n, k)) < q[:, None]
        b = rng.random((n, k)) < p[:, None]
        interval = compare(evaluation(a.tolist()), evaluation(b.tolist()), resamples=10).difference
        hits += interval.low <= truth <= interval.high
    return hits / trials


@pytest.mark.parametrize("k", [1, 4])
def test_paired_differences_cover_the_truth(k: int) -> None:
    trials = 500
    assert coverage(30, k, trials) > 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "k"), [(15, 4), (30, 1), (30, 4), (30, 32), (100, 1), (100, 8)])
def test_coverage_of_differences_at_length(n: int, k: int) -> None:
    trials = 4000
    found = coverage(n, k, trials)
    noise = 3 * math.sqrt(0.95 * 0.05 / trials)
    assert found > 0.95 - noise
    if n >= 100:
        assert found < 0.95 + 2 * noise
