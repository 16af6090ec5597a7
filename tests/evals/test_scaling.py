"""Estimators of multi-sample metrics against enumeration of every k-subset and graded runs."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.scaling import (
    MAX_SUBSETS,
    avg_at_k,
    best_at_k,
    g_pass_at_k,
    majority_at_k,
    pass_at_k,
    pass_hat_k,
    weighted_majority_at_k,
)

ANSWERS = st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=7)


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 9))
    return n, draw(st.integers(0, n)), draw(st.integers(1, n))


@settings(deadline=None)
@given(counts())
def test_pass_and_avg_are_means_over_all_subsets(case: tuple[int, int, int]) -> None:
    n, c, k = case
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    passed = Fraction(sum(any(subset) for subset in subsets), len(subsets))
    average = Fraction(sum(sum(subset) for subset in subsets), k * len(subsets))
    assert pass_at_k(n, c, k) == pytest.approx(float(passed), abs=1e-12)
    assert avg_at_k(n, c) == pytest.approx(float(average), abs=1e-12)


def test_pass_at_k_by_hand() -> None:
    # human-eval: 1 - C(n-c, k)/C(n, k); C(7, 2)/C(10, 2) = 21/45
    assert pass_at_k(10, 3, 2) == pytest.approx(1 - 21 / 45)
    # The plug-in 1 - (1 - c/n)^k gives 0.51 here: biased low.
    assert pass_at_k(10, 3, 2) > 1 - 0.7**2
    assert pass_at_k(10**5, 1, 10**5) == 1.0
    assert pass_at_k(10**4, 1, 100) == pytest.approx(0.01)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 5, 1), (4, -1, 1), (4, 1, 0), (0, 0, 1)])
def test_impossible_counts_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"impossible|needs 1 <= k <= n"):
        pass_at_k(n, c, k)


def test_majority_refuses_more_votes_than_answers() -> None:
    with pytest.raises(ValueError, match="k = 3"):
        majority_at_k(["1", "2"], "1", 3)
    with pytest.raises(ValueError, match="n = 0 samples"):
        avg_at_k(0, 0)


def brute_majority(answers: list[str | None], gold: str, k: int, ties: str) -> float:
    """Written another way: a scan of every subset with its own vote count."""
    total = Fraction(0)
    subsets = list(itertools.combinations(answers, k))
    for subset in subsets:
        spoken = [answer for answer in subset if answer is not None]
        best = max((spoken.count(answer) for answer in spoken), default=0)
        top = sorted({answer for answer in spoken if spoken.count(answer) == best})
        if gold not in top:
            continue
        if ties == "fractional":
            total += Fraction(1, len(top))
        elif ties == "first":
            total += min(top, key=spoken.index) == gold
        else:
            total += len(top) == 1
    return float(total / len(subsets))


@settings(deadline=None)
@given(ANSWERS, st.sampled_from(["fractional", "first", "loss"]), st.data())
def test_majority_is_the_mean_over_all_subsets(
    answers: list[str | None], ties: str, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(answers)))
    expected = brute_majority(answers, "1", k, ties)
    assert majority_at_k(answers, "1", k, ties) == pytest.approx(expected)  # type: ignore[arg-type]


@settings(deadline=None)
@given(ANSWERS)
def test_the_fractional_rule_ignores_the_order(answers: list[str | None]) -> None:
    forward = majority_at_k(answers, "1", len(answers))
    assert majority_at_k(answers[::-1], "1", len(answers)) == forward


def test_tie_rules_by_hand() -> None:
    tied = ["2", "1", "1", "2", None]
    assert majority_at_k(tied, "1", 5) == 0.5
    assert majority_at_k(tied, "1", 5, "first") == 0.0
    assert majority_at_k(tied, "2", 5, "first") == 1.0
    assert majority_at_k(tied, "1", 5, "loss") == 0.0


def test_no_answer_has_no_vote_but_is_drawn() -> None:
    # One right answer among two silences wins each subset that holds it: C(2,1)/C(3,2) = 2/3.
    assert majority_at_k([None, None, "1"], "1", 2) == pytest.approx(2 / 3)
    assert majority_at_k([None, None], "1", 2) == 0.0


def test_many_subsets_are_drawn_and_reproducible() -> None:
    # 12 right, 8 wrong and alike: P(majority of 13 right) is hypergeometric, 0.89. Drawn with
    # replacement it would be 0.77.
    n, right, k = 20, 12, 13
    assert math.comb(n, k) > MAX_SUBSETS >= 1000
    exact = sum(math.comb(right, j) * math.comb(n - right, k - j) for j in range(7, 13))
    expected = exact / math.comb(n, k)
    answers: list[str | None] = [*["1"] * right, *["2"] * (n - right)]
    for vote in (
        lambda seed: majority_at_k(answers, "1", k, "first", seed=seed),
        lambda seed: weighted_majority_at_k(answers, [0.5] * n, "1", k, seed=seed),
    ):
        assert vote(0) == vote(0) != vote(1)
        assert vote(0) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / MAX_SUBSETS))
    assert majority_at_k(answers, "1", k) == pytest.approx(expected, abs=1e-12)  # exact


def test_sixty_four_samples_are_exact_and_quick() -> None:
    # 30 right, 24 wrong and alike, 10 silent, 32 drawn: hypergeometric in two dimensions.
    answers: list[str | None] = [*["1"] * 30, *["2"] * 24, *[None] * 10]
    shared = lost = Fraction(0)
    for g, w in itertools.product(range(31), range(25)):
        if 0 <= (rest := 32 - g - w) <= 10 and g >= w and g > 0:
            ways = math.comb(30, g) * math.comb(24, w) * math.comb(10, rest)
            shared += Fraction(ways, 2 if g == w else 1)
            lost += ways if g > w else 0
    started = time.process_time()
    assert majority_at_k(answers, "1", 32) == float(shared / math.comb(64, 32))
    assert majority_at_k(answers, "1", 32, "loss") == float(lost / math.comb(64, 32))
    distinct: list[str | None] = [str(i) for i in range(64)]
    # 64 answers that all differ: whichever wins, it is right once in 64 by symmetry.
    assert majority_at_k(distinct, "1", 32) == pytest.approx(1 / 64, abs=1e-15)
    assert time.process_time() - started < 0.5


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12), st.data())
def test_credits_of_all_answers_sum_to_one(answers: list[str], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    total = sum(majority_at_k(answers, gold, k) for gold in sorted(set(answers)))
    assert total == pytest.approx(1.0, abs=1e-12)


@settings(deadline=None)
@given(counts(), st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.75, 0.8, 1.0]))
def test_reliability_metrics_are_means_over_all_subsets(
    case: tuple[int, int, int], tau: float
) -> None:
    n, c, k = case
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    every = Fraction(sum(all(subset) for subset in subsets), len(subsets))
    share = Fraction(tau).limit_denominator(100)
    enough = sum(sum(s) >= share * k for s in subsets)
    assert pass_hat_k(n, c, k) == pytest.approx(float(every), abs=1e-12)
    assert g_pass_at_k(n, c, k, tau) == pytest.approx(enough / len(subsets), abs=1e-12)
    assert g_pass_at_k(n, c, k, 1.0) == pass_hat_k(n, c, k)
    assert g_pass_at_k(n, c, k, 1e-9) == pytest.approx(pass_at_k(n, c, k), abs=1e-12)


def test_reliability_metrics_by_hand() -> None:
    assert pass_hat_k(4, 3, 2) == 3 / 6  # tau-bench: C(3, 2) / C(4, 2)
    # 0.07 * 100 exceeds 7 in floating point: 7 of 100 are enough all the same.
    assert g_pass_at_k(100, 7, 100, 0.07) == 1.0
    assert g_pass_at_k(16, 8, 4, 0.5) == pytest.approx(
        1 - (math.comb(8, 4) + 8 * math.comb(8, 3)) / math.comb(16, 4)
    )
    for tau in (0.0, -0.5, 1.5, math.nan):
        with pytest.raises(ValueError, match="tau"):
            g_pass_at_k(4, 2, 2, tau)
    for estimate in (pass_hat_k, lambda n, c, k: g_pass_at_k(n, c, k, 0.5)):
        with pytest.raises(ValueError, match="k = 5"):
            estimate(4, 2, 5)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([-1.0, 0.0, 0.5, 2.0, None]), st.booleans()),
        min_size=1,
        max_size=8,
    ),
    st.data(),
)
def test_best_of_k_is_the_mean_over_all_subsets(
    samples: list[tuple[float | None, bool]], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(samples)))
    total = Fraction(0)
    subsets = list(itertools.combinations(samples, k))
    for subset in subsets:
        scored = [(score, right) for score, right in subset if score is not None]
        top = max((score for score, _ in scored), default=None)
        tied = [right for score, right in scored if score == top]
        total += Fraction(sum(tied), len(tied)) if tied else 0
    value = best_at_k([s for s, _ in samples], [r for _, r in samples], k)
    assert value == pytest.approx(float(total / len(subsets)), abs=1e-12)


def test_best_of_k_by_hand() -> None:
    assert best_at_k([0.9, 0.1, 0.5], [False, True, True], 2) == pytest.approx(1 / 3)
    assert best_at_k([0.9, 0.9], [False, True], 2) == 0.5  # a tie is shared
    assert best_at_k([None, 0.1], [True, False], 2) == 0.0  # unscored loses, right or not
    assert best_at_k([None], [True], 1) == 0.0
    with pytest.raises(ValueError, match="NaN"):
        best_at_k([math.nan, 1.0], [True, True], 1)
    with pytest.raises(ValueError, match="2 scores and 1 verdicts"):
        best_at_k([1.0, 2.0], [True], 1)
    with pytest.raises(ValueError, match="k = 3"):
        best_at_k([1.0, 2.0], [True, False], 3)


@settings(deadline=None)
@given(ANSWERS, st.sampled_from(["fractional", "first", "loss"]), st.data())
def test_equal_weights_are_the_plain_majority(
    answers: list[str | None], ties: str, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(answers)))
    weights = [0.1] * len(answers)
    weighted = weighted_majority_at_k(answers, weights, "1", k, ties)  # type: ignore[arg-type]
    assert weighted == pytest.approx(brute_majority(answers, "1", k, ties))


def test_weighted_majority_by_hand() -> None:
    answers: Sequence[str | None] = ["1", "2", "2", None]
    assert weighted_majority_at_k(answers, [0.9, 0.4, 0.4, 5.0], "1", 4) == 1.0
    assert weighted_majority_at_k(answers, [0.9, 0.5, 0.4, 0.0], "1", 4) == 0.5  # 0.9 each
    assert weighted_majority_at_k(answers, [0.0, 0.0, 0.0, 1.0], "1", 4) == 0.0  # no vote at all
    for weights in ([1.0], [-1.0, 1, 1, 1], [math.inf, 1, 1, 1]):
        with pytest.raises(ValueError, match=r"4 answers and 1|finite and not negative"):
            weighted_majority_at_k(answers, weights, "1", 2)


#: (right, sizes of the wrong classes, whether a right one came first) of the 14 questions out of
#: 100 that Qwen2.5-Math's published example of 8 samples a question did not answer right each time.
IMPERFECT = [
    (0, (3, 1, 1, 1, 1, 1), False), (0, (4, 4), False), (0, (8,), False), (0, (8,), False),
    (1, (2, 1, 1, 1, 1, 1), False), (2, (2, 1, 1, 1, 1), False), (3, (2, 1, 1, 1), False),
    (3, (5,), False), (4, (2, 1, 1), True), (4, (4,), True), (4, (4,), True), (6, (1, 1), False),
    (6, (1, 1), False), (7, (1,), True),
]  # fmt: skip


def test_graded_run_gives_its_published_scores() -> None:
    questions = [(8, (), True)] * 86 + IMPERFECT
    spelt = []
    for right, wrong, ahead in questions:
        others = [f"wrong {i}" for i, size in enumerate(wrong) for _ in range(size)]
        gold = ["right"] * right
        spelt.append([*gold, *others] if ahead else [*others, *gold])
    scores = {
        ties: sum(majority_at_k(answers, "right", 8, ties) for answers in spelt)  # type: ignore[arg-type]
        for ties in ("first", "fractional", "loss")
    }
    assert scores == pytest.approx({"first": 93, "fractional": 92.5, "loss": 91})
    assert sum(avg_at_k(8, right) for right, _, _ in questions) == pytest.approx(91)
    assert sum(pass_at_k(8, right, 8) for right, _, _ in questions) == pytest.approx(96)
    plug_in = sum(1 - (1 - right / 8) ** 8 for right, _, _ in questions)
    assert plug_in == pytest.approx(95.498, abs=1e-3)  # what the biased estimator makes of it
