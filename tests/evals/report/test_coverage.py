"""Do 95 % intervals hold the truth 95 times in a hundred? Simulated studies whose truth is known.

Scores of S seeds on Q questions come from a crossed model: a question's difficulty, shared by all
arms; a seed's skill; their interaction; and k samples drawn. The truth is the mean over populations
of questions and seeds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from evals.report.statistics import (
    Curve,
    Efficiency,
    Estimate,
    FloatArray,
    Part,
    efficiency,
    resampled_means,
    seed_weights,
    trailing_mean,
)
from evals.scaling.curves import QuestionCurves
from evals.scaling.speedup import first_k, speed_up
from evals.stats import effective_freedom, inflation, student_quantile
from evals.stats import seed_weights as normal_weights

Q, K, B = 150, 4, 1_500
DIFFICULTY, INTERACTION = 1.5, 0.3
#: Checkpoints, and what each costs.
C = 8
COSTS = 1_000.0 * np.arange(1, C + 1)


def right(skill: FloatArray | float) -> FloatArray:
    chance: FloatArray = 1.0 / (1.0 + np.exp(-np.asarray(skill)))
    return chance


def truth(skills_C: FloatArray, seed_sd: float) -> FloatArray:
    """Mean score at each skill, by Gauss and Hermite's rule."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    sd = np.sqrt(DIFFICULTY**2 + seed_sd**2 + INTERACTION**2)
    means: FloatArray = right(skills_C[:, None] + sd * nodes) @ weights / weights.sum()
    return means


def arm(
    name: str, skills_C: FloatArray, seeds: int, seed_sd: float, difficulty_Q: FloatArray,
    generator: np.random.Generator,
) -> FloatArray:  # fmt: skip
    """Shares of right samples [S, C, Q]; a seed's luck is the same at all its checkpoints."""
    luck_S = generator.normal(0, seed_sd, (seeds, 1, 1))
    odd_SQ = generator.normal(0, INTERACTION, (seeds, 1, Q))
    chance = right(skills_C[None, :, None] + luck_S + odd_SQ - difficulty_Q)
    drawn: FloatArray = generator.binomial(K, chance) / K
    return drawn


def simulated(
    skills: dict[str, FloatArray], seeds: int, seed_sd: float, studies: int
) -> Iterator[dict[str, Curve]]:
    generator = np.random.default_rng([seeds, round(100 * seed_sd)])
    for number in range(studies):
        difficulty_Q = generator.normal(0, DIFFICULTY, Q)
        values = {
            name: arm(name, skills_C, seeds, seed_sd, difficulty_Q, generator)
            for name, skills_C in skills.items()
        }
        yield _curves(values, seeds, number)


def _curves(values: dict[str, FloatArray], seeds: int, number: int) -> dict[str, Curve]:
    draws_BR = resampled_means(np.concatenate([v.reshape(-1, Q) for v in values.values()]), B)
    found, start = {}, 0
    for name, values_SCQ in values.items():
        width = seeds * values_SCQ.shape[1]
        found[name] = Curve(
            method=name,
            units=Q,
            scores_SC=values_SCQ.mean(axis=2),
            draws_BSC=draws_BR[:, start : start + width].reshape(B, seeds, -1),
            weights_BS=seed_weights(f"{name} {number}", seeds, B),
            costs_SC=np.tile(COSTS[: values_SCQ.shape[1]], (seeds, 1)),
        )
        start += width
    return found


def allowed(studies: int) -> float:
    """The least coverage that chance leaves to a true rate of .95: 3 standard errors below."""
    return 0.95 - 3 * float(np.sqrt(0.95 * 0.05 / studies))


@pytest.mark.parametrize("seeds", [2, 3, 5, 9])
def test_the_mean_of_seeds_has_students_interval(seeds: int) -> None:
    generator = np.random.default_rng(3)
    values_S = generator.normal(0.6, 0.1, seeds)
    draws_B = normal_weights(seeds, 400_000, generator) @ values_S
    standard_error = values_S.std(ddof=1) / np.sqrt(seeds)
    estimate = Estimate(values_S.mean(), draws_B, {"seeds": Part(draws_B, seeds - 1)})
    interval = estimate.interval()
    half = student_quantile(seeds - 1) * standard_error
    assert interval.low == pytest.approx(values_S.mean() - half, abs=0.02 * half)
    assert interval.high == pytest.approx(values_S.mean() + half, abs=0.02 * half)
    assert normal_weights(seeds, 100, generator).sum(axis=1) == pytest.approx(1.0)


def test_degrees_of_freedom_by_hand() -> None:
    assert effective_freedom([(1.0, 4), (1.0, 4)]) == pytest.approx(8.0)
    assert effective_freedom([(1.0, 2), (0.0, 50)]) == pytest.approx(2.0)
    assert effective_freedom([(3.0, 2), (1.0, 10)]) == pytest.approx(16 / (9 / 2 + 1 / 10))
    assert inflation(effective_freedom([(0.0, 2)])) == 1.0
    assert inflation(1.0) == pytest.approx(12.706 / 1.95996, rel=1e-4)
    assert inflation(4.0) == pytest.approx(2.7764 / 1.95996, rel=1e-4)
    assert inflation(2.5) == pytest.approx(3.574 / 1.95996, rel=0.01)  # of t with 2.5 degrees


#: Two seeds that differ as much as the questions (.6) are left out: they hold a score in .90.
@pytest.mark.parametrize(
    ("seeds", "seed_sd"),
    [(2, 0.05), (2, 0.25), *((seeds, sd) for seeds in (3, 5) for sd in (0.05, 0.25, 0.6))],
)
def test_scores_differences_and_shares_of_a_gap(seeds: int, seed_sd: float) -> None:
    """The numbers of the final table. Student and teacher are one run each, without seeds."""
    skills = {name: np.array([skill]) for name, skill in (("one", 0.5), ("other", 1.0), ("top", 2))}
    low, high, top = truth(np.array([0.5, 1.0, 2.0]), seed_sd)
    truths = np.array([low, high - low, (high - low) / (top - low)])
    studies, hits = 300, np.zeros(3)
    for curves in simulated(skills, seeds, seed_sd, studies):
        one, other, best = (curves[name].last() for name in skills)
        for place, estimate in enumerate((one, other - one, (other - one) / (best - one))):
            interval = estimate.interval()
            hits[place] += interval.low <= truths[place] <= interval.high
    assert (hits / studies >= allowed(studies)).all(), hits / studies


def rising(gain: float, pace: float) -> FloatArray:
    part = np.arange(1, C + 1) / C
    skills: FloatArray = 0.2 + gain * (1.0 - np.exp(-part / pace))
    return skills


#: A method and a baseline by (gain, pace): faster, never there, the same, there at once.
SHAPES = {
    "faster": ((1.7, 0.25), (1.4, 0.8)),
    "never there": ((1.0, 0.8), (1.5, 0.25)),
    "the same": ((1.5, 0.5), (1.5, 0.5)),
    "there at once": ((2.5, 0.03), (1.4, 0.8)),
}


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_sample_efficiency(shape: str, seeds: int) -> None:
    skills = dict(zip(("method", "baseline"), (rising(*s) for s in SHAPES[shape]), strict=True))
    seed_sd, studies = 0.25, 200
    true, bound = _true_efficiency(*(truth(s, seed_sd) for s in skills.values()))
    hits = sum(
        _holds(efficiency(curves["method"], curves["baseline"]), true, bound)
        for curves in simulated(skills, seeds, seed_sd, studies)
    )
    assert hits / studies >= allowed(studies), hits / studies


def _true_efficiency(method_C: FloatArray, baseline_C: FloatArray) -> tuple[float, str]:
    """By the rule of the report on the true curves."""

    def first(scores_C: FloatArray) -> int | None:
        there = np.flatnonzero(trailing_mean(scores_C[None])[0] >= baseline_C[-1] - 1e-9)
        return int(there[0]) if len(there) else None

    own, base = first(method_C), first(baseline_C)
    assert base is not None
    if own is None:
        return float(COSTS[base] / COSTS[-1]), "<"
    return float(COSTS[base] / COSTS[own]), ">=" if own == 0 else ""


def _holds(found: Efficiency, true: float, bound: str) -> bool:
    below = found.low.bound in ("<", "<=", "?") or found.low.ratio <= true + 1e-9
    above = found.high.bound in (">=", "?") or found.high.ratio >= true - 1e-9
    if bound == "<":  # the truth is anywhere below: the interval must reach down to there
        return found.low.bound == "<" or found.low.ratio <= true
    return below and above


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_speed_up_of_voting(seeds: int) -> None:
    """Curves of maj@k are given question by question: a difficulty that student and teacher share,
    oddities of each student and of the teacher, a gain with k. One student stands for itself."""
    generator = np.random.default_rng(seeds)
    ks, studies, odd, seed_sd = (1, 2, 4, 8, 16), 400, 0.5, 0.2 * (seeds > 1)
    gains_K = 0.3 + np.array([0.0, 0.1, 0.25, 0.4, 0.5])
    logs_K = np.log(np.array(ks, dtype=float))
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    spread = np.sqrt(1 + odd**2 + seed_sd**2)
    true_K = right(gains_K[:, None] + spread * nodes) @ weights
    target = float(right(0.62 + np.sqrt(1 + odd**2) * nodes) @ weights)
    true_k = float(first_k(true_K[None], np.array([target]), logs_K)[0])
    hits = 0
    for _ in range(studies):
        difficulty_Q1 = generator.normal(0, 1, (Q, 1))
        students = []
        for _ in range(seeds):
            own_Q1 = difficulty_Q1 + generator.normal(0, odd, (Q, 1)) + generator.normal(0, seed_sd)
            students.append(_voter(ks, right(own_Q1 + gains_K)))
        teacher = _voter((1,), right(difficulty_Q1 + generator.normal(0, odd, (Q, 1)) + 0.62))
        found = speed_up(students, teacher, resamples=B)
        hits += found.k_low <= true_k <= found.k_high
    assert hits / studies >= allowed(studies), hits / studies


def _voter(ks: tuple[int, ...], chance_QK: FloatArray) -> QuestionCurves:
    ones = np.ones(Q)
    return QuestionCurves(
        questions=[str(i) for i in range(Q)],
        clusters=None,
        ks=ks,
        samples=(ks[-1], ks[-1]),
        scores_QK={"maj@k": chance_QK},
        average_Q=chance_QK[:, 0],
        tokens_Q=ones,
        seconds_Q=ones,
        prompt_tokens_Q=ones,
        parameters=1.0,
    )
