"""Each objective against a hand-computed case, a float64 reference, or a brute force."""

from __future__ import annotations

import math
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reopold.objectives import build, group_advantages, top_fraction
from reopold.rollouts import TokenBatch

NAN = math.nan


def batch_of(
    student: list[float],
    teacher: list[float] | None = None,
    entropy: list[float] | None = None,
    valid: list[bool] | None = None,
    sequence: list[int] | None = None,
    **sequences: Any,
) -> TokenBatch:
    n = len(student)
    return TokenBatch(
        student_logprobs_N=torch.tensor(student, dtype=torch.float64),
        teacher_logprobs_N=None if teacher is None else torch.tensor(teacher, dtype=torch.float64),
        entropy_N=torch.tensor(entropy or [0.0] * n, dtype=torch.float64),
        valid_N=torch.tensor(valid or [True] * n),
        sequence_N=torch.tensor(sequence or [0] * n),
        **{key: torch.tensor(value) for key, value in sequences.items()},
    )


# R = [0.5, -3.0, -1.0, 0.0]; the mixture floor at 0.3 is -1.720.
HAND = batch_of(
    student=[-1.0, -1.0, -2.0, -0.5],
    teacher=[-0.5, -4.0, -3.0, -0.5],
    entropy=[0.1, 0.9, 0.5, 0.2],
)


def test_exploration_drops_tokens_below_the_floor_and_keeps_the_rest_unclipped() -> None:
    credit = build("reopold", lam=0.3, beta=0.25, switch_step=5)(HAND, 4)
    assert credit.keep_N.tolist() == [True, False, True, True]
    assert credit.advantages_N[credit.keep_N].tolist() == [0.5, -1.0, 0.0]
    assert credit.metrics["train/clip_fraction"] == 0.25


def test_refinement_clips_rewards_and_keeps_the_most_uncertain_tokens() -> None:
    credit = build("reopold", lam=0.3, beta=0.5, switch_step=5)(HAND, 5)
    assert credit.keep_N.tolist() == [False, True, True, False]
    assert credit.advantages_N[1].item() == pytest.approx(math.log(0.3) / 0.7)
    assert credit.advantages_N[2].item() == -1.0


def test_a_reward_on_the_floor_is_kept_in_exploration() -> None:
    floor = math.log(0.3) / 0.7
    credit = build("reopold", lam=0.3, switch_step=1)(batch_of([0.0], [floor]), 0)
    assert credit.keep_N.tolist() == [True]


def test_plain_distillation_is_the_reward_on_every_token() -> None:
    credit = build("opd")(HAND, 0)
    assert credit.advantages_N.tolist() == [0.5, -3.0, -1.0, 0.0]
    assert credit.keep_N.all()


@given(
    rewards=st.lists(st.floats(-30, 30), min_size=1, max_size=40),
    step=st.integers(0, 10),
)
def test_a_vanishing_floor_and_all_tokens_give_plain_distillation(
    rewards: list[float], step: int
) -> None:
    batch = batch_of([0.0] * len(rewards), rewards)
    relaxed = build("reopold", lam=1e-30, beta=1.0, switch_step=5)(batch, step)
    plain = build("opd")(batch, step)
    assert torch.equal(relaxed.keep_N, plain.keep_N)
    assert torch.equal(relaxed.advantages_N, plain.advantages_N)


@pytest.mark.parametrize("method", ["reopold", "opd"])
@pytest.mark.parametrize("step", [0, 9])
def test_a_teacher_equal_to_the_student_gives_no_reward(method: str, step: int) -> None:
    settings_ = {"switch_step": 5} if method == "reopold" else {}
    batch = batch_of([-1.0, -2.5], [-1.0, -2.5])
    assert build(method, **settings_)(batch, step).advantages_N.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("step", [0, 9])
def test_scores_at_invalid_positions_do_not_matter(step: int) -> None:
    batch = batch_of(
        [-1.0, NAN, -2.0], [-1.5, NAN, -2.0], entropy=[0.5, NAN, 0.1], valid=[True, False, True]
    )
    credit = build("reopold", beta=0.5, switch_step=5)(batch, step)
    assert not credit.keep_N[1]
    assert torch.isfinite(credit.advantages_N).all()
    assert credit.keep_N.sum() == (2 if step == 0 else 1)


def test_a_missing_teacher_score_stops_the_step() -> None:
    with pytest.raises(ValueError, match="not finite"):
        build("opd")(batch_of([-1.0, -1.0], [-1.0, NAN]), 0)


def test_distillation_without_a_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="needs teacher log-probs"):
        build("opd")(batch_of([-1.0]), 0)


def test_grpo_by_hand() -> None:
    """Two prompts of two samples; lengths 1, 3, 2, 2; the second prompt teaches nothing."""
    batch = batch_of(
        [-1.0] * 8,
        sequence=[0, 1, 1, 1, 2, 2, 3, 3],
        reward_S=[1.0, 0.0, 1.0, 1.0],
        group_S=[0, 0, 1, 1],
    )
    credit = build("grpo")(batch, 0)
    advantage = 0.5 / (0.5 + 1e-4)
    # sum over tokens / 8 kept tokens must be the mean over 4 sequences of the mean over tokens
    expected = [advantage * 8 / 4 / 1] + [-advantage * 8 / 4 / 3] * 3 + [0.0] * 4
    assert credit.advantages_N.tolist() == pytest.approx(expected, rel=1e-6)
    assert credit.keep_N.all()


@settings(max_examples=50)
@given(data=st.data())
def test_group_advantages_match_the_textbook(data: Any) -> None:
    groups = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=20))
    rewards = [data.draw(st.floats(-2, 2, width=32)) for _ in groups]
    found = group_advantages(torch.tensor(rewards), torch.tensor(groups), 1e-4).tolist()
    for value, reward, group in zip(found, rewards, groups, strict=True):
        mine = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        expected = (reward - fmean(mine)) / (pstdev(mine) + 1e-4)
        assert value == pytest.approx(expected, abs=2e-3)


@given(data=st.data())
def test_top_fraction_is_exact_with_ties_broken_by_position(data: Any) -> None:
    values = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5]), min_size=1, max_size=60))
    valid = [data.draw(st.booleans()) for _ in values]
    fraction = data.draw(st.floats(0.01, 1.0))
    keep = top_fraction(torch.tensor(values), torch.tensor(valid), fraction).tolist()
    candidates = [i for i, ok in enumerate(valid) if ok]
    wanted = math.ceil(fraction * len(candidates))
    best = sorted(candidates, key=lambda i: (-values[i], i))[:wanted]
    assert [i for i, kept in enumerate(keep) if kept] == sorted(best)


def test_unknown_methods_and_foreign_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown method 'ppo'"):
        build("ppo")
    with pytest.raises(TypeError, match="takes no arguments"):
        build("opd", lam=0.3)
    with pytest.raises(ValueError, match="beta"):
        build("reopold", switch_step=1, beta=0.0)
    with pytest.raises(ValueError, match="odds form"):
        build("reopold", switch_step=1, lam=0.6, floor="odds")
