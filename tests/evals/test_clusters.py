"""Clustered intervals: closed forms, a graded run, and simulated coverage."""

from __future__ import annotations

import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evals.clusters import (
    accuracy_score,
    question_score,
    seed_standard_error,
    share_interval,
    tally_scores,
)
from evals.stats import bootstrap_interval, wilson_interval
from reopold.config import ConfigError

#: Right samples of 8, for 100 questions of a published graded run.
GRADED = [0] * 4 + [1, 2] + [3] * 2 + [4] * 3 + [6] * 2 + [7] + [8] * 86


def test_graded_run_gives_its_published_standard_errors() -> None:
    score = accuracy_score([(8, c) for c in GRADED])
    assert score.value == pytest.approx(0.91)
    assert score.question_se == pytest.approx(0.0250, abs=5e-5)
    assert score.seed_se == pytest.approx(0.0053, abs=5e-5)
    # What 800 independent trials would have, which they are not:
    assert math.sqrt(0.91 * 0.09 / 800) == pytest.approx(0.0101, abs=5e-5)
    assert score.low < 0.86 and 0.94 < score.high < 0.96


def test_standard_errors_estimate_the_known_variances() -> None:
    # p = 0.2 or 0.8, K = 4: Var_q = 0.09 and E[p(1-p)] = 0.16, so Var = (0.09 + 0.04) / n.
    rng = np.random.default_rng(0)
    n, question, seeds, means = 50, [], [], []
    for _ in range(2000):
        c = rng.binomial(4, rng.choice([0.2, 0.8], size=n))
        score = accuracy_score([(4, int(right)) for right in c])
        assert score.question_se is not None and score.seed_se is not None
        means.append(score.value)
        question.append(score.question_se**2)
        seeds.append(score.seed_se**2)
    assert np.mean(question) == pytest.approx(0.13 / n, rel=0.02)
    assert np.var(means) == pytest.approx(0.13 / n, rel=0.1)
    assert np.mean(seeds) == pytest.approx(0.04 / n, rel=0.02)


def test_seed_error_takes_each_question_s_own_number_of_samples() -> None:
    expected = math.sqrt(0.5 * 0.5 / 3 + 0.25 * 0.75 / 7) / 2
    assert seed_standard_error([(4, 2), (8, 2)]) == pytest.approx(expected)
    assert seed_standard_error([(4, 2), (1, 1)]) is None
    # Questions weigh the same: 1/2 and 1/4, not 4 of 12.
    assert accuracy_score([(4, 2), (8, 2)]).value == pytest.approx(0.375)


@pytest.mark.parametrize(("c", "n"), [(0, 30), (30, 30), (9, 30), (1, 1), (120, 500)])
def test_single_verdicts_get_wilsons_interval(c: int, n: int) -> None:
    score = accuracy_score([(1, 1)] * c + [(1, 0)] * (n - c))
    theirs = scipy_stats.binomtest(c, n).proportion_ci(method="wilson")
    assert (score.low, score.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert score.seed_se is None
    if n > 1:
        sd = math.sqrt(c / n * (1 - c / n) * n / (n - 1))
        assert score.question_se == pytest.approx(sd / math.sqrt(n))
    else:
        assert score.question_se is None


def test_large_samples_agree_with_the_bootstrap() -> None:
    values = (np.random.default_rng(1).binomial(8, 0.3, size=2000) / 8).tolist()
    ours, theirs = question_score(values), bootstrap_interval(values)
    assert ours.low == pytest.approx(theirs.low, abs=5e-4)
    assert ours.high == pytest.approx(theirs.high, abs=5e-4)
    assert ours.question_se == pytest.approx(np.std(values, ddof=1) / math.sqrt(2000))


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=30))
@settings(max_examples=200, deadline=None)
def test_intervals_hold_their_value_and_stay_in_range(pairs: list[tuple[int, int]]) -> None:
    score = accuracy_score([(n, min(n, c)) for n, c in pairs])
    assert 0.0 <= score.low <= score.value <= score.high <= 1.0
    assert score.high - score.low > 0.01  # no certainty


def test_a_cluster_is_one_piece_of_evidence() -> None:
    verdicts = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0] * 3
    repeated = [value for value in verdicts for _ in range(5)]
    clusters = [f"figure {i}" for i in range(30) for _ in range(5)]
    clustered, alone = question_score(repeated, clusters), question_score(verdicts)
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high))
    assert clustered.question_se == pytest.approx(alone.question_se)
    assert clustered.clusters == 30
    flat = question_score(repeated)
    assert flat.question_se is not None and clustered.question_se is not None
    assert flat.question_se < clustered.question_se / 2


def test_perfect_scores_claim_no_certainty() -> None:
    for n in (1, 30):
        score = accuracy_score([(8, 8)] * n)
        wilson = wilson_interval(n, n)
        assert (score.low, score.high) == (wilson.low, wilson.high)
    nearly = accuracy_score([(32, 32)] * 29 + [(32, 31)])
    assert 0.85 < nearly.low < 0.92  # neither certain nor clueless


def test_a_ratio_of_sums_weighs_clusters_by_their_size() -> None:
    tallies = [{"acc": (1.0, 4.0)}, {"acc": (2.0, 2.0)}, {}]
    score = tally_scores(tallies)["acc"]
    assert score.value == 0.5 and score.clusters == 2
    # Linearised by hand: residuals -1/6 and +1/6, times 2 / (2 - 1).
    assert score.question_se == pytest.approx(math.sqrt(2 * 2 / 36))


def test_composites_by_hand() -> None:
    tallies = [{"a": (1.0, 1.0)}, {"a": (0.0, 1.0)}, {"b": (3.0, 4.0)}, {"b": (1.0, 4.0)}]
    composites = {"top": {"mix": 1.0, "a": 1.0}, "mix": {"a": 10.0, "b": 30.0}}
    scores = tally_scores(tallies, composites)
    assert list(scores) == ["a", "b", "top", "mix"]
    assert scores["mix"].value == pytest.approx(0.25 * 0.5 + 0.75 * 0.5)
    # Parts of different clusters are independent: variances add, each sd^2 / n.
    a, b = 0.5 / 2, 0.125 / 2
    assert scores["a"].question_se == pytest.approx(math.sqrt(a))
    assert scores["b"].question_se == pytest.approx(math.sqrt(b))
    expected = math.sqrt(0.625**2 * a + 0.375**2 * b)
    assert scores["top"].question_se == pytest.approx(expected)
    assert scores["top"].low <= scores["top"].value <= scores["top"].high


def test_a_composite_of_parts_that_were_not_seen_is_left_out() -> None:
    composites = {"x": {"a": 1.0, "b": 1.0}, "y": {"x": 1.0, "a": 1.0}, "z": {"a": 2.0}}
    assert list(tally_scores([{"a": (1.0, 1.0)}] * 3, composites)) == ["a", "z"]


def test_facets_of_one_benchmark_do_not_disturb_one_another() -> None:
    # Level and subject cross: the standard error by level ignores subjects.
    rng = np.random.default_rng(8)
    right = rng.binomial(1, 0.5, size=90).astype(float)
    tallies = [
        {f"level {i % 3}": (float(r), 1.0), f"subject {i // 3}": (float(r), 1.0)}
        for i, r in enumerate(right)
    ]
    scores = tally_scores(tallies)
    own = right[0::3]
    assert scores["level 0"].question_se == pytest.approx(own.std(ddof=1) / math.sqrt(30))
    assert scores["level 0"].low == wilson_interval(own.sum(), 30).low


def test_a_part_of_one_cluster_says_nothing_of_its_spread() -> None:
    tallies = [{"a": (float(i % 2), 1.0)} for i in range(20)] + [{"b": (1.0, 1.0)}]
    score = tally_scores(tallies, {"mean": {"a": 1.0, "b": 1.0}})["mean"]
    assert score.question_se is None and score.value == 0.75
    a, b = wilson_interval(10, 20), wilson_interval(1, 1)
    assert (score.low, score.high) == pytest.approx(((a.low + b.low) / 2, (a.high + b.high) / 2))


def test_composite_intervals_agree_with_scipy() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.binomial(1, 0.7, size=200), rng.binomial(4, 0.4, size=300) / 4
    tallies = [{"a": (float(x), 1.0)} for x in a] + [{"b": (float(x), 1.0)} for x in b]
    score = tally_scores(tallies, {"mean": {"a": 1.0, "b": 1.0}})["mean"]
    theirs = scipy_stats.bootstrap(
        (a, b),
        lambda x, y, axis: (x.mean(axis=axis) + y.mean(axis=axis)) / 2,
        method="percentile",
        rng=np.random.default_rng(4),
    )
    assert score.low == pytest.approx(theirs.confidence_interval.low, abs=0.003)
    assert score.high == pytest.approx(theirs.confidence_interval.high, abs=0.003)
    assert score.question_se == pytest.approx(theirs.standard_error, rel=0.05)


def test_correlated_parts_of_a_composite_are_resampled_together() -> None:
    x = np.random.default_rng(5).binomial(1, 0.5, size=400).tolist()
    tallies = [{"a": (float(v), 1.0), "b": (1.0 - v, 1.0)} for v in x]
    score = tally_scores(tallies, {"half": {"a": 1.0, "b": 1.0}})["half"]
    assert score.value == 0.5 and score.question_se == pytest.approx(0.0, abs=1e-12)


def test_what_is_no_share_is_bootstrapped() -> None:
    values = np.random.default_rng(6).lognormal(size=300)
    score = tally_scores([{"calls": (float(v), 1.0)} for v in values])["calls"]
    theirs = bootstrap_interval(values.tolist())
    assert score.low == pytest.approx(theirs.low, abs=0.02)
    assert score.high == pytest.approx(theirs.high, abs=0.02)


def test_degenerate_tallies() -> None:
    perfect = tally_scores(
        [{"a": (1.0, 1.0), "b": (1.0, 1.0)}] * 10, {"mean": {"a": 1.0, "b": 1.0}}
    )["mean"]
    assert perfect.value == 1.0 and perfect.low == pytest.approx(wilson_interval(10, 10).low)
    empty = tally_scores([{"rate": (0.0, 0.0)}, {"rate": (0.0, 0.0)}])["rate"]
    assert math.isnan(empty.value) and empty.question_se is None and empty.clusters == 0
    # Some clusters may have an empty denominator: they do not concern the rate.
    some = tally_scores([{"rate": (1.0, 1.0)}] * 8 + [{"rate": (0.0, 0.0)}] * 8)["rate"]
    assert some.low == wilson_interval(8, 8).low


def test_senseless_input_is_refused() -> None:
    one = [{"a": (1.0, 1.0)}]
    with pytest.raises(ConfigError, match="a part of itself: x > y > x"):
        tally_scores(one, {"x": {"y": 1.0}, "y": {"x": 1.0}})
    for weights in ({"a": -1.0}, {"a": 0.0}, {}):
        with pytest.raises(ConfigError, match="weights"):
            tally_scores(one, {"x": weights})
    with pytest.raises(ValueError, match="at least one cluster"):
        tally_scores([])
    with pytest.raises(ValueError, match="finite"):
        tally_scores([{"a": (math.nan, 1.0)}])
    with pytest.raises(ValueError, match="impossible"):
        accuracy_score([(4, 5)])
    for values in ([], [1.5], [math.nan]):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            question_score(values)
    with pytest.raises(ValueError, match="2 values and 1 clusters"):
        question_score([0.5, 0.5], ["x"])


def test_thousands_of_clusters_are_quick_and_lean() -> None:
    rng = np.random.default_rng(7)
    tallies = [{f"category {i % 8}": (float(rng.random() < 0.6), 1.0)} for i in range(4400)]
    composites = {"overall": {f"category {i}": 1.0 + i for i in range(8)}}
    tracemalloc.start()
    started = time.process_time()
    first = tally_scores(tallies, composites)
    seconds = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 5.0
    assert peak < 100e6
    assert first == tally_scores(tallies, composites)


#: Beta parameters of the questions' difficulty.
DIFFICULTIES = [(0.3, 0.3), (2, 2), (0.15, 1.35), (1.8, 0.2), (0.6, 0.02)]


def coverage(a: float, b: float, n: int, k: int, trials: int) -> float:
    rng = np.random.default_rng([n, k, int(100 * a)])
    truth = a / (a + b)
    hits = 0
    for _ in range(trials):
        values = rng.binomial(k, rng.beta(a, b, size=n)) / k
        interval = share_interval(values, np.ones(n))
        hits += interval.low <= truth <= interval.high
    return hits / trials


@pytest.mark.parametrize(("a", "b"), DIFFICULTIES)
def test_thirty_questions_cover_at_least_the_nominal_level(a: float, b: float) -> None:
    trials = 600
    noise = 3 * math.sqrt(0.95 * 0.05 / trials)
    assert coverage(a, b, 30, 32, trials) > 0.95 - noise


@pytest.mark.slow
@pytest.mark.parametrize(("n", "k"), [(15, 16), (30, 1), (30, 4), (30, 32), (100, 8), (500, 4)])
@pytest.mark.parametrize(("a", "b"), [*DIFFICULTIES, (0.3, 1.2), (0.1, 1.9)])
def test_coverage_at_length(a: float, b: float, n: int, k: int) -> None:
    trials = 4000
    noise = 3 * math.sqrt(0.95 * 0.05 / trials)
    found = coverage(a, b, n, k, trials)
    # Wilson's coverage of a single binomial share swings about the level as p moves.
    assert found > (0.92 if k == 1 else 0.95) - noise
    if n >= 500:  # many questions: no wider than need be
        assert found < 0.95 + 2 * noise
