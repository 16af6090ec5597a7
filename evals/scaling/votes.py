"""Majority votes among k of n sampled answers: expectations over the k-subsets.

A vote is a class of equivalent answers. The plain majority is exact for any n and k, by counting
subsets; votes that depend on the order of the samples or on weights are exact up to MAX_SUBSETS
subsets and a mean over as many random ones beyond.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Literal

from evals.scaling.estimators import check_counts

Ties = Literal["fractional", "first", "loss"]

#: Up to this many k-subsets are enumerated; beyond, as many are drawn.
MAX_SUBSETS = 2000


def majority_at_k(
    answers: Sequence[str | None], gold: str, k: int, ties: Ties = "fractional", *, seed: int = 0
) -> float:
    """Expected score of the majority vote among k of the answers, drawn without replacement.

    Args:
        answers: the n extracted answers, equivalent ones already spelt alike. None (no answer)
            has no vote, but its sample counts among the k; a subset without any vote scores 0.
        gold: the right answer, spelt like the answers.
        ties: what `gold` gets when m answers share first place: "fractional" 1/m, "first" 1 if it
            came first among them, else 0 (depends on the order of the samples), "loss" 0.
        seed: of the subsets, which "first" draws where there are more than MAX_SUBSETS of them.

    Returns:
        A number in [0, 1], exact but for "first" with more than MAX_SUBSETS subsets.

    Raises:
        ValueError: not 1 <= k <= n.
    """
    check_counts(len(answers), 0, k)
    if ties != "first":
        votes = Counter(answers)
        silent, right = votes.pop(None, 0), votes.pop(gold, 0)
        return _exact(right, sorted(votes.values()), silent, k, shared=ties == "fractional")
    scores = [
        _credit(Counter(answer for i in subset if (answer := answers[i]) is not None), gold, ties)
        for subset in _subsets(len(answers), k, seed)
    ]
    return math.fsum(scores) / len(scores)


def weighted_majority_at_k(
    answers: Sequence[str | None],
    weights: Sequence[float],
    gold: str,
    k: int,
    ties: Ties = "fractional",
    *,
    seed: int = 0,
) -> float:
    """:func:`majority_at_k` where an answer has the summed weight of its samples as its votes.

    Weights are a verifier's scores or a confidence (Li et al. 2023, arXiv 2206.02336). A class of
    no weight at all has no vote.

    Raises:
        ValueError: unequal lengths, a weight that is negative or not finite, not 1 <= k <= n.
    """
    if len(answers) != len(weights):
        raise ValueError(f"{len(answers)} answers and {len(weights)} weights")
    if not all(math.isfinite(weight) and weight >= 0.0 for weight in weights):
        raise ValueError("weights must be finite and not negative")
    check_counts(len(answers), 0, k)
    scores = []
    for subset in _subsets(len(answers), k, seed):
        parts: dict[str, list[float]] = {}
        for i in subset:
            if (answer := answers[i]) is not None:
                parts.setdefault(answer, []).append(weights[i])
        # fsum rounds once, so the same weights in another order tie exactly.
        scores.append(_credit({a: math.fsum(part) for a, part in parts.items()}, gold, ties))
    return math.fsum(scores) / len(scores)


def _exact(right: int, wrong: Sequence[int], silent: int, k: int, *, shared: bool) -> float:
    """Mean credit of the right class over all k-subsets, from the sizes of the classes.

    For each number g of right votes, the subsets in which no wrong class has more than g are the
    coefficients of x^(k-g) of a product with a factor a class: (1 + x)^size where the class cannot
    have more than g votes, and else sum_{i<g} C(size, i) x^i + y C(size, g) x^g, y marking a
    class that ties. A polynomial in x is one integer, each coefficient in its own field of bits
    (Kronecker's substitution), so a product of polynomials is a product of integers.
    """
    n = right + sum(wrong) + silent
    width = n + 1  # bits: no coefficient exceeds the 2^n subsets of n samples
    credit = Fraction(0)
    for g in range(1, min(right, k) + 1):
        rivals = [size for size in wrong if size >= g]
        others = n - right - sum(rivals)
        tied = [_packed((math.comb(others, i) for i in range(others + 1)), width)]
        for size in rivals:
            fewer = _packed((math.comb(size, i) for i in range(g)), width)
            equal = math.comb(size, g) << (g * width)
            tied = [
                stay * fewer + join * equal
                for stay, join in zip([*tied, 0], [0, *tied], strict=True)
            ]
        counts = [(poly >> ((k - g) * width)) & ((1 << width) - 1) for poly in tied]
        won = sum(Fraction(count, ties + 1) for ties, count in enumerate(counts))
        credit += math.comb(right, g) * (won if shared else counts[0])
    return float(credit / math.comb(n, k))


def _packed(coefficients: Iterable[int], width: int) -> int:
    return sum(value << (i * width) for i, value in enumerate(coefficients))


def _subsets(n: int, k: int, seed: int) -> Iterator[Sequence[int]]:
    """All k-subsets of the n positions, or MAX_SUBSETS random ones, each in ascending order."""
    if math.comb(n, k) <= MAX_SUBSETS:
        yield from itertools.combinations(range(n), k)
        return
    rng = random.Random(seed)
    for _ in range(MAX_SUBSETS):
        yield sorted(rng.sample(range(n), k))


def _credit(votes: Mapping[str, float], gold: str, ties: Ties) -> float:
    most = max(votes.values(), default=0)
    if most <= 0:
        return 0.0
    winners = [answer for answer, count in votes.items() if count == most]  # by first appearance
    if ties == "first":
        return float(winners[0] == gold)
    if ties == "loss" and len(winners) > 1:
        return 0.0
    return (gold in winners) / len(winners)
