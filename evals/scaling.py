"""What k samples a question are worth: avg@k, pass@k and maj@k of one question from n samples.

All three are expectations over the k-subsets of the n samples, so every k is estimated from the
same samples. A benchmark's score is their mean over questions (see :mod:`evals.stats`).
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

Ties = Literal["fractional", "first", "loss"]

#: Up to this many k-subsets are enumerated; beyond, as many are drawn.
MAX_SUBSETS = 2000


def avg_at_k(n: int, c: int) -> float:
    """Expected share of right samples among k of n, c of them right; the same for every k.

    Raises:
        ValueError: not 0 <= c <= n, or n = 0.
    """
    _check(n, c, 1)
    return c / n


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k of n samples, drawn without replacement, hold one of the c right ones.

    The unbiased estimator 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374), in exact
    integers. `1 - (1 - c/n)^k` is biased low.

    Raises:
        ValueError: not 0 <= c <= n or not 1 <= k <= n.
    """
    _check(n, c, k)
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


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
        seed: of the subsets, drawn where there are more than MAX_SUBSETS of them.

    Returns:
        A number in [0, 1]: exact over all subsets, or a mean of MAX_SUBSETS random ones.

    Raises:
        ValueError: not 1 <= k <= n.
    """
    _check(len(answers), 0, k)
    subsets: Iterable[Sequence[str | None]]
    if math.comb(len(answers), k) <= MAX_SUBSETS:
        subsets = itertools.combinations(answers, k)
    else:
        rng = random.Random(seed)
        positions = range(len(answers))
        draws = (sorted(rng.sample(positions, k)) for _ in range(MAX_SUBSETS))
        subsets = ([answers[i] for i in draw] for draw in draws)
    scores = [_vote(subset, gold, ties) for subset in subsets]
    return math.fsum(scores) / len(scores)


def _vote(answers: Sequence[str | None], gold: str, ties: Ties) -> float:
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]  # by first appearance
    if ties == "first":
        return float(winners[0] == gold)
    if ties == "loss" and len(winners) > 1:
        return 0.0
    return (gold in winners) / len(winners)


def _check(n: int, c: int, k: int) -> None:
    if not 0 <= c <= n:
        raise ValueError(f"{c} right of {n} samples is impossible")
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} needs 1 <= k <= n, and there are n = {n} samples")
