"""avg@k, pass@k and maj@k against enumeration of every k-subset and published numbers."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.scaling import MAX_SUBSETS, avg_at_k, majority_at_k, pass_at_k

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
    value = majority_at_k(answers, "1", k)
    assert value == majority_at_k(answers, "1", k)
    assert value != majority_at_k(answers, "1", k, seed=1)
    assert value == pytest.approx(expected, abs=4 * math.sqrt(0.25 / MAX_SUBSETS))
