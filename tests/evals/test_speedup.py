"""The test-time scaling speed-up: by hand, censored, and covering the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evals.scaling import majority_at_k
from evals.scaling.curves import FloatArray, QuestionCurves
from evals.scaling.speedup import SpeedUp, first_k, speed_up
from reopold.config import ConfigError

KS = (1, 2, 4, 8, 16)


def curves(
    average: FloatArray, tokens: FloatArray, parameters: float, scores: FloatArray | None = None,
    clusters: list[str] | None = None,
) -> QuestionCurves:  # fmt: skip
    return QuestionCurves(
        questions=[f"q{i}" for i in range(len(average))],
        clusters=clusters,
        ks=KS,
        samples=(16, 16),
        scores_QK={} if scores is None else {"maj@k": scores},
        average_Q=average,
        tokens_Q=tokens,
        seconds_Q=tokens / 50,
        prompt_tokens_Q=np.zeros(len(average)),
        parameters=parameters,
    )


def pair(
    score: Sequence[float], target: float, n: int = 40
) -> tuple[QuestionCurves, QuestionCurves]:
    """Questions that are all alike: the student's maj@k is `score`, a sample has 100 tokens; the
    teacher needs 300."""
    student = curves(
        np.full(n, score[0]), np.full(n, 100.0), 1.5e9, np.tile(np.array(score), (n, 1))
    )
    return student, curves(np.full(n, target), np.full(n, 300.0), 6e9)


def speed_up_of(
    student: QuestionCurves, teacher: QuestionCurves, **settings: Any
) -> SpeedUp:  # fmt: skip
    """Of a single student."""
    return speed_up([student], teacher, **settings)


def test_by_hand() -> None:
    # 0.55 lies half-way between maj@2 and maj@4: k = 2 sqrt 2, half-way in log k.
    result = speed_up_of(*pair([0.4, 0.5, 0.6, 0.7, 0.8], 0.55))
    k = 2 * math.sqrt(2)
    assert result.k == pytest.approx(k)
    assert result.tokens.value == pytest.approx(300 / (100 * k))
    assert result.seconds.value == pytest.approx(300 / (100 * k))
    assert result.flops.value == pytest.approx(300 * 6 / (100 * 1.5 * k))
    assert (result.target, result.start, result.best) == pytest.approx((0.55, 0.4, 0.8))
    assert result.reached == 1.0 and result.largest_k == 16
    # Nothing varies over questions, so nothing over resamples.
    assert result.k_low == pytest.approx(k) and result.k_high == pytest.approx(k)
    assert "Equal at k = 2.8 [2.8, 2.8]: speed-up 1.06× [1.06, 1.06] in time" in result.sentence()
    assert "Not reached" not in result.sentence()


def test_prompts_are_read_once_and_cost() -> None:
    student, teacher = pair([0.4, 0.5, 0.6, 0.7, 0.8], 0.55)
    k, n = 2 * math.sqrt(2), len(student.questions)
    student = replace(student, prompt_tokens_Q=np.full(n, 30.0))
    teacher = replace(teacher, prompt_tokens_Q=np.full(n, 90.0))  # an image takes more room there
    result = speed_up_of(student, teacher)
    assert result.k == pytest.approx(k)
    assert result.tokens.value == pytest.approx((90 + 300) / (30 + 100 * k))
    assert result.flops.value == pytest.approx(4 * (90 + 300) / (30 + 100 * k))
    assert result.seconds.value == pytest.approx(300 / (100 * k))
    never = speed_up_of(replace(student, ks=KS), replace(teacher, average_Q=np.full(n, 0.9)))
    assert never.tokens.low == 0.0
    assert never.tokens.value == pytest.approx((90 + 300) / (30 + 1600))


def test_seeds_are_averaged_and_resampled() -> None:
    # Two students that never vary over questions: only their seeds do, and two say very little.
    good, teacher = pair([0.5, 0.6, 0.7, 0.8, 0.9], 0.7)
    poor, _ = pair([0.3, 0.4, 0.5, 0.6, 0.7], 0.7)
    poor = replace(poor, tokens_Q=poor.tokens_Q * 3)
    result = speed_up([good, poor], teacher)
    # Their mean is 0.4, 0.5, 0.6, 0.7, ...: the target at k = 8, with 200 tokens a sample.
    assert result.k == pytest.approx(8.0) and result.seeds == 2
    assert result.tokens.value == pytest.approx(300 / (8 * 200))
    # Their target differs by 0.2 at the same k: Student's interval with one degree of freedom.
    assert (result.k_low, result.k_high) == (1.0, math.inf)
    assert result.tokens.low == 0.0 and result.tokens.high == pytest.approx(300 / 200)
    assert "(40 questions, mean over 2 seeds)" in result.sentence()
    twins, alone = speed_up([good, good], teacher).tokens, speed_up([good], teacher).tokens
    assert (twins.low, twins.value, twins.high) == pytest.approx(
        (alone.low, alone.value, alone.high)
    )


def test_seeds_of_other_questions_are_refused() -> None:
    student, teacher = pair([0.4, 0.5, 0.6, 0.7, 0.8], 0.55)
    fewer, _ = pair([0.4, 0.5, 0.6, 0.7, 0.8], 0.55, n=39)
    with pytest.raises(ConfigError, match="the seeds answer other questions"):
        speed_up([student, fewer], teacher)


@pytest.mark.parametrize(
    ("target", "expected"),
    [(0.3, 1.0), (0.4, 1.0), (0.5, 2.0), (0.45, math.sqrt(2)), (0.6, 8.0), (0.61, math.inf)],
)
def test_first_crossing(target: float, expected: float) -> None:
    # The curve dips at k = 4 and never passes 0.6: the first crossing counts.
    scores = np.array([[0.4, 0.5, 0.45, 0.6, 0.6]])
    found = first_k(scores, np.array([target]), np.log(np.array(KS, dtype=float)))
    assert found[0] == pytest.approx(expected)


def test_not_reached_is_a_bound() -> None:
    result = speed_up_of(*pair([0.4, 0.5, 0.6, 0.65, 0.7], 0.9))
    assert result.k is None and result.reached == 0.0
    assert result.k_low == result.k_high == math.inf
    assert result.tokens.value == pytest.approx(300 / 1600)  # below what 16 samples cost
    assert (result.tokens.low, result.tokens.high) == (0.0, pytest.approx(300 / 1600))
    assert "Not reached by k = 16: speed-up < 0.19× [0.00, 0.19] in time" in result.sentence()


def test_reached_in_some_resamples() -> None:
    rng = np.random.default_rng(0)
    n = 40
    hard = rng.random(n)
    scores = np.clip(hard[:, None] + np.array([0.0, 0.02, 0.04, 0.06, 0.08]), 0, 1)
    student = curves(scores[:, 0], np.full(n, 100.0), 1.0, scores)
    teacher = curves(np.clip(hard + rng.normal(0.07, 0.2, n), 0, 1), np.full(n, 300.0), 1.0)
    result = speed_up_of(student, teacher)
    assert 0.1 < result.reached < 0.9
    assert result.k_high == math.inf and result.tokens.low == 0.0
    assert result.tokens.high > 0.0
    assert "% of the resamples" in result.sentence() or "Not reached by" in result.sentence()
    assert result == speed_up_of(student, teacher)  # the seed is fixed
    assert result != speed_up_of(student, teacher, seed=1)


def test_costs_are_resampled_with_the_scores() -> None:
    # The student is as good as the teacher throughout; only the tokens vary.
    rng = np.random.default_rng(1)
    tokens = rng.lognormal(5, 0.5, size=60)
    scores = np.full((60, 5), 0.5)
    student = curves(scores[:, 0], tokens, 1.0, scores)
    same = speed_up_of(student, curves(scores[:, 0], 2 * tokens, 1.0))
    # Twice the tokens on each question is a ratio of 2 in every resample: questions are paired.
    assert (same.tokens.low, same.tokens.high) == pytest.approx((2.0, 2.0))
    other = speed_up_of(student, curves(scores[:, 0], 2 * rng.permutation(tokens), 1.0))
    assert other.tokens.low < 1.8 and other.tokens.high > 2.2


def test_clusters_are_resampled_whole() -> None:
    rng = np.random.default_rng(2)
    base = rng.random(15)
    wide = np.repeat(base, 4)
    scores = np.clip(wide[:, None] + np.array([0.0, 0.05, 0.1, 0.15, 0.2]), 0, 1)
    target = np.clip(np.repeat(rng.random(15), 4) * 0.2 + wide, 0, 1)
    names = [f"figure {i // 4}" for i in range(60)]
    tokens = np.full(60, 100.0)
    alone = speed_up_of(curves(wide, tokens, 1.0, scores), curves(target, tokens, 1.0))
    grouped = speed_up_of(curves(wide, tokens, 1.0, scores, names), curves(target, tokens, 1.0))
    assert grouped.k == alone.k
    assert grouped.k_high - grouped.k_low > 1.4 * (alone.k_high - alone.k_low)


def test_one_question_knows_no_limits() -> None:
    result = speed_up_of(*pair([0.4, 0.5, 0.6, 0.7, 0.8], 0.55, n=1))
    assert (result.tokens.low, result.tokens.high) == (0.0, math.inf)


def test_other_questions_and_metrics_are_refused() -> None:
    student, teacher = pair([0.4, 0.5, 0.6, 0.7, 0.8], 0.55)
    _, fewer = pair([0.4] * 5, 0.55, n=39)
    with pytest.raises(ConfigError, match=r"other questions: 1 are in one only \(q39\)"):
        speed_up_of(student, fewer)
    with pytest.raises(ConfigError, match=r"pass@k is not among"):
        speed_up_of(student, teacher, metric="pass@k")


SAMPLES = 16
#: maj@k of a question by its number of right samples; the wrong ones split two to one.
VOTES = np.array(
    [
        [
            majority_at_k(["r"] * c + [("a", "b", "a")[i % 3] for i in range(SAMPLES - c)], "r", k)
            for k in KS
        ]
        for c in range(SAMPLES + 1)
    ]
)


def draw(n: int, gap: float, rng: np.random.Generator) -> tuple[QuestionCurves, QuestionCurves]:
    p = rng.beta(1.2, 0.8, size=n)
    better = np.clip(p + gap + 0.1 * rng.standard_normal(n), 0, 1)
    c = rng.binomial(SAMPLES, p)
    tokens = 1000 * (2 - p) * rng.lognormal(0, 0.2, n)
    taught = 900 * (2 - better) * rng.lognormal(0, 0.2, n)
    student = curves(c / SAMPLES, tokens, 1.5, VOTES[c])
    return student, curves(rng.binomial(4, better) / 4, taught, 7.0)


def truth(gap: float) -> SpeedUp:
    """Of 200,000 questions: the population's."""
    return speed_up_of(*draw(200_000, gap, np.random.default_rng(9)), resamples=1)


def coverage(n: int, gap: float, trials: int) -> tuple[float, float]:
    true, rng, hits = truth(gap), np.random.default_rng([n, int(100 * gap)]), np.zeros(2)
    assert true.k is not None
    for trial in range(trials):
        found = speed_up_of(*draw(n, gap, rng), resamples=1000, seed=trial)
        hits += (
            found.k_low <= true.k <= found.k_high,
            found.tokens.low <= true.tokens.value <= found.tokens.high,
        )
    k, tokens = hits / trials
    return float(k), float(tokens)


def test_the_interval_covers_the_truth() -> None:
    trials = 250
    noise = 3 * math.sqrt(0.95 * 0.05 / trials)
    assert min(coverage(60, 0.06, trials)) > 0.95 - noise


@pytest.mark.slow
@pytest.mark.parametrize("n", [30, 100, 300])
@pytest.mark.parametrize("gap", [0.03, 0.06, 0.09])
def test_coverage_of_speed_ups_at_length(n: int, gap: float) -> None:
    trials = 1500
    # Half a point below nominal is allowed: a crossing is no mean of questions.
    assert min(coverage(n, gap, trials)) > 0.945 - 3 * math.sqrt(0.95 * 0.05 / trials)
