"""Rewards against hand-computed values and the inequality that the floor comes from."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reopold.rewards import MissingScore, reward_floor, token_rewards


@pytest.mark.parametrize(
    ("lam", "mixture", "odds"),
    [(0.1, -2.558, -2.197), (0.3, -1.720, -0.847), (0.05, -3.153, -2.944)],
)
def test_floor_matches_published_values(lam: float, mixture: float, odds: float) -> None:
    assert reward_floor(lam) == pytest.approx(mixture, abs=5e-4)
    assert reward_floor(lam, "odds") == pytest.approx(odds, abs=5e-4)


@given(lam=st.floats(0.01, 0.99), reward=st.floats(-60, 20))
def test_mixture_floor_is_the_limit_of_a_bound(lam: float, reward: float) -> None:
    """R <= log(lam + (1-lam) e^R) / (1-lam), and that bound tends to the floor as R -> -inf."""
    bound = math.log(lam + (1 - lam) * math.exp(reward)) / (1 - lam)
    assert reward <= bound + 1e-9
    assert bound >= reward_floor(lam) - 1e-9
    far = math.log(lam + (1 - lam) * math.exp(-700.0)) / (1 - lam)
    assert far == pytest.approx(reward_floor(lam), rel=1e-12)


@pytest.mark.parametrize("lam", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_floor_refuses_lambda_outside_the_open_interval(lam: float) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        reward_floor(lam)


@pytest.mark.parametrize("lam", [0.5, 0.7])
def test_odds_floor_refuses_lambda_that_makes_it_non_negative(lam: float) -> None:
    with pytest.raises(ValueError, match=r"lam < 0\.5"):
        reward_floor(lam, "odds")
    assert reward_floor(lam) < 0


def test_reward_is_teacher_minus_student_without_gradient() -> None:
    student = torch.tensor([-1.0, -2.0], requires_grad=True)
    rewards = token_rewards(torch.tensor([-0.5, -4.0]), student)
    assert rewards.tolist() == [0.5, -2.0]
    assert not rewards.requires_grad


@pytest.mark.parametrize("broken", [math.nan, -math.inf, math.inf])
def test_missing_score_is_refused_never_zero(broken: float) -> None:
    with pytest.raises(MissingScore, match=r"1 of 3 .* token 1"):
        token_rewards(torch.tensor([-1.0, broken, -1.0]), torch.zeros(3))
