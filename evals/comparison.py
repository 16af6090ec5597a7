"""Two evaluations on the same questions: is one better, and if nobody can tell, what would it take.

Everything is paired: a question's difference takes out how hard it is (Miller 2024, arXiv
2411.00640). The interval is chosen by simulated coverage (tests/evals/test_comparison.py): with 30
questions the paired percentile bootstrap covers 90 to 93 times in 100 at 32 samples a question and
61 to 96 at one, Student's t over the questions 95 to 97, and Bonett and Price's interval for
single verdicts 96 to 100. From about 100 questions on they agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np

from evals.clusters import FloatArray, cluster_sums, resampled_counts
from evals.stats import LEVEL, RESAMPLES, Interval, student_quantile, wilson_interval
from reopold.config import ConfigError

Outcome = Literal["better", "worse", "undecided"]
Test = Literal["McNemar", "sign flip"]

#: With which a plan is to find a difference of the size that was seen.
POWER = 0.8


@dataclass(frozen=True)
class Need:
    """What would settle an undecided comparison, were the true difference the one seen."""

    questions: int
    """More questions of the same kind, at the same samples a question."""
    samples: int | None
    """More samples a question from both, on the same questions. None: no number suffices, or
    nothing can be said."""
    known: bool
    """Whether the samples' share of the variance is known; one sample a question does not tell."""


@dataclass(frozen=True)
class Comparison:
    """`first` against `second`; scores and differences are in [-1, 1], first minus second."""

    names: tuple[str, str]
    benchmark: str
    questions: int
    clusters: int
    samples: tuple[int, int]
    """The fewest that a question has, of each."""
    scores: tuple[float, float]
    difference: Interval
    """The verdict's: t over clusters, or Bonett and Price's for single verdicts."""
    bootstrap: Interval
    """The customary paired percentile bootstrap; too narrow below about 100 clusters."""
    question_se: float | None
    seed_se: float | None
    """Standard error of the difference in a rerun on the same questions."""
    wins: int
    """Questions on which first scored more."""
    losses: int
    sign_p: float
    """Two-sided sign test of wins against losses; blind to how much was won."""
    p_value: float
    test: Test
    """Of `p_value`: exact McNemar for single verdicts, else flips of the clusters' signs."""
    need: Need | None
    """None where decided, or where there is no difference to settle."""
    adjusted_p: float | None = None
    """`p_value` after Holm's correction over several benchmarks (:func:`with_holm`)."""

    @property
    def outcome(self) -> Outcome:
        """What the interval says of `first`: better or worse where it excludes 0."""
        if self.difference.low > 0.0:
            return "better"
        return "worse" if self.difference.high < 0.0 else "undecided"

    def sentence(self) -> str:
        """The comparison in words."""
        first, second = self.names
        where = f" on {self.benchmark}" if self.benchmark else ""
        value, low, high = (
            _points(x) for x in (self.difference.value, self.difference.low, self.difference.high)
        )
        adjusted = "" if self.adjusted_p is None else f", {_p(self.adjusted_p)} after Holm"
        verdict = {
            "better": f"{first} is better.",
            "worse": f"{second} is better.",
            "undecided": "undecided.",
        }[self.outcome]
        text = (
            f"{first} scores {100 * self.scores[0]:.1f} % and {second} "
            f"{100 * self.scores[1]:.1f} %{where} ({self._sample()}): {value} points "
            f"[{low}, {high}], {_p(self.p_value)} ({self.test} test{adjusted}): {verdict}"
        )
        return text if self.outcome != "undecided" else f"{text} {self._advice()}"

    def _sample(self) -> str:
        a, b = self.samples
        each = f"{a} and {b} samples" if a != b else _count(a, "sample")
        grouped = f" in {self.clusters} clusters" if self.clusters < self.questions else ""
        return f"{_count(self.questions, 'question')}{grouped}, {each} each"

    def _advice(self) -> str:
        if self.need is None:
            return "There is no difference to tell."
        text = (
            f"To tell a difference of this size needs about {self.need.questions:,} more questions"
        )
        if not self.need.known:
            return f"{text}; a single sample a question does not say what more samples would do."
        if self.need.samples is None:
            return f"{text}; no number of samples on these questions suffices."
        return f"{text} or about {self.need.samples:,} more samples a question from both."


def compare(
    first: Mapping[str, Sequence[float]],
    second: Mapping[str, Sequence[float]],
    *,
    names: tuple[str, str] = ("A", "B"),
    benchmark: str = "",
    clusters: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Comparison:
    """Compare the mean scores of two evaluations.

    Args:
        first, second: question id -> the scores of its samples in [0, 1] (verdicts, or the one
            value of a metric such as maj@k).
        clusters: question id -> cluster; None: every question by itself.

    Raises:
        ConfigError: other questions on one side, none at all, one without samples or cluster, or a
            score outside [0, 1].
    """
    order = _common(first, second, clusters)
    a_Q, b_Q = (np.array([np.mean(side[q]) for q in order]) for side in (first, second))
    groups = None if clusters is None else [clusters[q] for q in order]
    numer_C, denom_C = cluster_sums(a_Q - b_Q, groups)
    value = float((a_Q - b_Q).mean())
    residuals_C = numer_C - value * denom_C
    n, total = len(numer_C), float(denom_C.sum())
    spread = float((residuals_C**2).sum()) * n / max(1, n - 1)
    question_se = math.sqrt(spread) / total if n > 1 else None
    seed_se = _seed_se([first[q] for q in order], [second[q] for q in order])
    wins, losses = int((a_Q > b_Q).sum()), int((a_Q < b_Q).sum())
    single = n == total and all(
        len(side[q]) == 1 and side[q][0] in (0, 1) for side in (first, second) for q in order
    )
    sign_p = sign_test(wins, losses)
    if single:
        interval = discordant_interval(wins, losses, n, level=level)
    else:
        interval = _student_interval(value, question_se, n, level)
    samples = tuple(min(len(side[q]) for q in order) for side in (first, second))
    decided = interval.low > 0.0 or interval.high < 0.0
    return Comparison(
        names, benchmark, len(order), n, (samples[0], samples[1]),
        (float(a_Q.mean()), float(b_Q.mean())),
        interval, _bootstrap(numer_C, denom_C, value, resamples, level, seed),
        question_se, seed_se, wins, losses, sign_p,
        sign_p if single else sign_flip_test(numer_C, flips=resamples, seed=seed),
        "McNemar" if single else "sign flip",
        None if decided else needed(
            value, question_se, seed_se, len(order), max(samples), level=level
        ),
    )  # fmt: skip


def needed(
    difference: float,
    question_se: float | None,
    seed_se: float | None,
    questions: int,
    samples: int,
    *,
    level: float = LEVEL,
    power: float = POWER,
) -> Need | None:
    """What it takes to find `difference` with `power`, from the parts of its variance.

    Var = (Var_q + W / K) / n, with W / (K n) = seed_se^2, must fall to
    (difference / (z_level + z_power))^2. More questions shrink both parts, more samples the last.

    Returns:
        None where there is no difference, or a single cluster says nothing of its variance.
    """
    if difference == 0.0 or not question_se:
        return None
    z = NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(power)
    target = (difference / z) ** 2
    more = max(1, math.ceil(questions * (question_se**2 / target - 1.0)))
    if seed_se is None:
        return Need(more, None, known=False)
    room = target - max(0.0, question_se**2 - seed_se**2)
    if room <= 0.0:
        return Need(more, None, known=True)
    return Need(more, max(1, math.ceil(samples * (seed_se**2 / room - 1.0))), known=True)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact sign test; on single verdicts McNemar's exact test (McNemar 1947).

    The binomial probability, at even odds, of a split of the discordant questions at least as
    uneven; 1 where there is none.

    Raises:
        ValueError: a negative count.
    """
    if min(wins, losses) < 0:
        raise ValueError("wins and losses cannot be negative")
    n = wins + losses
    tail = sum(math.comb(n, i) for i in range(min(wins, losses) + 1))
    return min(1.0, float(2 * tail / 2**n))


def sign_flip_test(sums_C: FloatArray, *, flips: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided permutation test of paired differences, one sum a cluster.

    If neither evaluation is better, each cluster's difference could as well have had the other
    sign. Random flips, the observed one among them, so the value is never 0 (Phipson and Smyth
    2010).
    """
    rng = np.random.default_rng(seed)
    observed = abs(float(sums_C.sum()))
    rows = max(1, (1 << 20) // len(sums_C))
    extreme = 0
    for start in range(0, flips, rows):
        signs = rng.integers(2, size=(min(rows, flips - start), len(sums_C))) * 2.0 - 1.0
        # Rounding must not part a flip from one of the same size.
        extreme += int((np.abs(signs @ sums_C) >= observed - 1e-9).sum())
    return (extreme + 1) / (flips + 1)


def discordant_interval(wins: int, losses: int, n: int, *, level: float = LEVEL) -> Interval:
    """Difference of two paired shares with Bonett and Price's adjusted Wald interval (2012,
    doi 10.3102/1076998611411915): one more win and one more loss, two more questions.

    Raises:
        ValueError: counts that n questions cannot have.
    """
    if min(wins, losses) < 0 or wins + losses > n or n < 1:
        raise ValueError(f"{wins} wins and {losses} losses on {n} questions are impossible")
    z = NormalDist().inv_cdf((1 + level) / 2)
    up, down = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    centre, half = up - down, z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return Interval((wins - losses) / n, max(-1.0, centre - half), min(1.0, centre + half))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the order given (Holm 1979).

    The i-th smallest of m is multiplied by m - i + 1, capped at 1 and never below a smaller one.

    Raises:
        ValueError: a value outside [0, 1].
    """
    if not all(0.0 <= p <= 1.0 for p in p_values):
        raise ValueError("p-values must lie in [0, 1]")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def with_holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons, each with its p-value adjusted for all of them."""
    adjusted = holm([comparison.p_value for comparison in comparisons])
    return [replace(c, adjusted_p=p) for c, p in zip(comparisons, adjusted, strict=True)]


def _common(
    first: Mapping[str, Sequence[float]],
    second: Mapping[str, Sequence[float]],
    clusters: Mapping[str, str] | None,
) -> list[str]:
    """The questions in a fixed order, after checks."""
    if not first or first.keys() != second.keys():
        only = sorted(first.keys() ^ second.keys())
        raise ConfigError(
            f"the evaluations do not answer the same questions: {len(only)} are in one only"
            f"{' (' + ', '.join(only[:3]) + ')' if only else ', and there are none in common'}; "
            "compare evaluations of the same data"
        )
    order = sorted(first)
    for question in order:
        for scores in (first[question], second[question]):
            if len(scores) == 0 or not all(0.0 <= score <= 1.0 for score in scores):
                raise ConfigError(f"question {question} needs scores in [0, 1], one a sample")
        if clusters is not None and question not in clusters:
            raise ConfigError(f"question {question} has no cluster")
    return order


def _student_interval(value: float, se: float | None, n: int, level: float) -> Interval:
    if not se:  # nothing varies: no distribution on [-1, 1] varies more than verdicts of -1 and 1
        share = wilson_interval((value + 1) / 2 * n, n, level=level)
        return Interval(value, 2 * share.low - 1, 2 * share.high - 1)
    half = student_quantile(n - 1, level) * se
    return Interval(value, max(-1.0, value - half), min(1.0, value + half))


def _bootstrap(
    numer_C: FloatArray, denom_C: FloatArray, value: float, resamples: int, level: float, seed: int
) -> Interval:
    draws = [
        (counts @ numer_C) / (counts @ denom_C)
        for counts in resampled_counts(len(numer_C), resamples, seed)
    ]
    low, high = np.quantile(np.concatenate(draws), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _seed_se(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> float | None:
    if any(len(scores) < 2 for side in (first, second) for scores in side):
        return None
    variances = [
        float(np.var(scores, ddof=1)) / len(scores) for side in (first, second) for scores in side
    ]
    return math.sqrt(math.fsum(variances)) / len(first)


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "−")


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
