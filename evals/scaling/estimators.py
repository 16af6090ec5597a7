"""What k samples a question are worth, from n of them: exact expectations over the k-subsets.

Every k is estimated from the same n samples. A benchmark's score is the mean over its questions
(:mod:`evals.clusters`), each with its own n: an estimator refuses k > n and skips nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import groupby


def avg_at_k(n: int, c: int) -> float:
    """Expected share of right samples among k of n, c of them right; the same for every k.

    Raises:
        ValueError: not 0 <= c <= n, or n = 0.
    """
    check_counts(n, c, 1)
    return c / n


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k of n samples, drawn without replacement, hold one of the c right ones.

    The unbiased estimator 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374), in exact
    integers. `1 - (1 - c/n)^k` is biased low.

    Raises:
        ValueError: not 0 <= c <= n or not 1 <= k <= n.
    """
    check_counts(n, c, k)
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def pass_hat_k(n: int, c: int, k: int) -> float:
    """pass^k: probability that all of k samples are right, C(c, k) / C(n, k).

    The reliability of an agent (tau-bench, arXiv 2406.12045).

    Raises:
        ValueError: not 0 <= c <= n or not 1 <= k <= n.
    """
    check_counts(n, c, k)
    return math.comb(c, k) / math.comb(n, k)


def g_pass_at_k(n: int, c: int, k: int, tau: float) -> float:
    """G-Pass@k_tau: probability that at least ceil(tau k) of k samples are right.

    The hypergeometric tail (Liu et al. 2024, arXiv 2412.13147). At least one must be right, so
    tau -> 0 is pass@k; tau = 1 is pass^k.

    Raises:
        ValueError: not 0 < tau <= 1, not 0 <= c <= n, or not 1 <= k <= n.
    """
    check_counts(n, c, k)
    if not 0.0 < tau <= 1.0:
        raise ValueError(f"tau = {tau} needs 0 < tau <= 1")
    # 0.07 * 100 is 7.000000000000001: the decimal that was written is meant, not its double.
    needed = math.ceil(Fraction(str(tau)) * k)
    held = sum(math.comb(c, j) * math.comb(n - c, k - j) for j in range(needed, min(c, k) + 1))
    return held / math.comb(n, k)


def best_at_k(scores: Sequence[float | None], correct: Sequence[bool], k: int) -> float:
    """Best of k: expected correctness of the highest-scored of k samples.

    Exact by sorting: samples of one score that is topped by none are equally likely to be picked,
    so a tie gives its share of right samples.

    Args:
        scores: a number a sample (a reward model's, a mean log-probability). None: nothing to
            score; it counts among the k and loses to every other, and is wrong if it is all there
            is.
        correct: the verdicts, in the same order.

    Raises:
        ValueError: unequal lengths, a score that is NaN, or not 1 <= k <= n.
    """
    n = len(scores)
    if len(correct) != n:
        raise ValueError(f"{n} scores and {len(correct)} verdicts")
    check_counts(n, 0, k)
    ranked = [(s, c) for s, c in zip(scores, correct, strict=True) if s is not None]
    if any(math.isnan(score) for score, _ in ranked):
        raise ValueError("a score is NaN")
    ranked.sort(key=lambda pair: pair[0])
    below = n - len(ranked)
    total = Fraction(0)
    for _, pairs in groupby(ranked, key=lambda pair: pair[0]):
        tied = [right for _, right in pairs]
        subsets = math.comb(below + len(tied), k) - math.comb(below, k)
        total += Fraction(subsets * sum(tied), len(tied))
        below += len(tied)
    return float(total / math.comb(n, k))


def check_counts(n: int, c: int, k: int) -> None:
    """Refuse counts that no experiment can have.

    Raises:
        ValueError: not 0 <= c <= n or not 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"{c} right of {n} samples is impossible")
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} needs 1 <= k <= n, and there are n = {n} samples")
