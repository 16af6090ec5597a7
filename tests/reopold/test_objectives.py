"""Each objective against a hand-computed case, a float64 reference, or a brute force."""

from __future__ import annotations

import dataclasses
import math
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reopold.divergences import TopK
from reopold.objectives import build
from reopold.outcomes import group_advantages, overlong_penalty
from reopold.rollouts import Credit, TokenBatch

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


def test_the_switches_of_refinement() -> None:
    """One phase starts refined; each mask and the clip by hand on R = [0.5, -3, -1, 0]."""

    def credit(**switches: Any) -> Credit:
        return build("reopold", lam=0.3, beta=0.5, phases="one", switch_step=9, **switches)(HAND, 0)

    assert credit().keep_N.tolist() == [False, True, True, False]  # refinement from step 0 on
    assert credit(mask="none").keep_N.all()
    assert credit(mask="reward").keep_N.tolist() == [True, False, True, True]
    assert credit(mask="none").advantages_N[1].item() == pytest.approx(math.log(0.3) / 0.7)
    assert credit(mask="none", clip=False).advantages_N.tolist() == [0.5, -3.0, -1.0, 0.0]
    two = build("reopold", lam=0.3, switch_step=9, mask="none", clip=False)(HAND, 8)
    assert two.keep_N.tolist() == [True, False, True, True]  # exploration is as it is in Eq. 9


def test_the_random_mask_keeps_the_same_rate_and_follows_the_seed() -> None:
    batch = batch_of([-1.0] * 1000, [-1.0] * 1000, valid=[i % 3 > 0 for i in range(1000)])

    def kept(seed: int, step: int) -> Tensor:
        return build("reopold", beta=0.2, phases="one", mask="random", seed=seed)(
            batch, step
        ).keep_N

    wanted = math.ceil(0.2 * int(batch.valid_N.sum()))
    assert kept(1, 0).sum() == wanted and not (kept(1, 0) & ~batch.valid_N).any()
    assert torch.equal(kept(1, 0), kept(1, 0))
    overlap = int((kept(1, 0) & kept(1, 1)).sum())
    assert overlap < wanted / 2 and not torch.equal(kept(1, 0), kept(2, 0))


def with_signals(**signals: Any) -> TokenBatch:
    return dataclasses.replace(HAND, **signals)


def test_exopd_by_hand() -> None:
    """scale (T - ref) - (S - ref), with T = [-.5, -4, -3, -.5] and S = [-1, -1, -2, -.5]."""
    reference = torch.tensor([-0.5, -2.0, -2.0, -1.0], dtype=torch.float64)
    batch = with_signals(reference_logprobs_N=reference)
    credit = build("exopd", reward_scale=2.0)(batch, 0)
    assert credit.advantages_N.tolist() == [
        2 * 0.0 - (-0.5),
        2 * -2.0 - 1.0,
        2 * -1.0 - 0.0,
        2 * 0.5 - 0.5,
    ]
    plain = build("exopd", reward_scale=1.0)(batch, 0)
    assert plain.advantages_N.tolist() == [0.5, -3.0, -1.0, 0.0]
    with pytest.raises(ValueError, match="reference"):
        build("exopd")(HAND, 0)


def test_iw_opd_by_hand() -> None:
    """Two interleaved sequences: |R| = [.5, 3, 1, 0]; tokens 0 and 2 are one, 1 and 3 the other."""
    batch = with_signals(sequence_N=torch.tensor([0, 1, 0, 1]))
    credit = build("iw_opd", gamma=0.5)(batch, 0)
    first, second = 1.5, 1 + 0.5 * (1 - 0.5 / 1.5)
    expected = [0.5 * first, -3.0 * 1.5, -1.0 * second, 0.0]
    assert credit.advantages_N.tolist() == pytest.approx(expected, rel=1e-12)
    silent = batch_of([-1.0, -1.0], [-1.0, -1.0])  # no |R| at all: 0, not NaN
    assert build("iw_opd")(silent, 0).advantages_N.tolist() == [0.0, 0.0]


TOP = TopK(torch.tensor([[0, 1]] * 4), torch.tensor([[0.5, 0.4]] * 4, dtype=torch.float64).log())


def test_entropy_aware_opd_adds_the_forward_kl_where_the_teacher_is_uncertain() -> None:
    teacher_entropy = torch.tensor([0.1, 0.8, 2.0, math.nan], dtype=torch.float64)
    batch = with_signals(
        teacher_entropy_N=teacher_entropy,
        teacher_distribution=TOP,
        valid_N=torch.tensor([True, True, True, False]),
    )
    credit = build("entropy_opd", entropy_threshold=0.8, forward_weight=0.5)(batch, 0)
    assert credit.advantages_N[:3].tolist() == [0.5, -3.0, -1.0]
    assert credit.divergence is not None and credit.divergence.kind == "forward"
    assert credit.divergence.weight_N.tolist() == [0.0, 0.5, 0.5, 0.0]
    assert credit.metrics["train/forward_fraction"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="more of the teacher"):
        build("entropy_opd")(with_signals(teacher_entropy_N=teacher_entropy), 0)


def test_trust_region_trusts_a_token_as_speculative_decoding_accepts_it() -> None:
    """Share of trusted tokens = min(pi_T / pi_S, 1); they keep R, the rest gets the forward KL."""
    n = 20_000
    ratio = torch.tensor([0.25, 2.0] * (n // 2), dtype=torch.float64)
    top = TopK(torch.zeros(n, 1, dtype=torch.long), torch.zeros(n, 1, dtype=torch.float64) - 0.1)
    batch = dataclasses.replace(
        batch_of([-1.0] * n, (ratio.log() - 1.0).tolist()), teacher_distribution=top
    )
    credit = build("trust_region", seed=3)(batch, 4)
    assert credit.divergence is not None and credit.keep_N.all()
    outlier = credit.divergence.weight_N == 1.0
    assert not outlier[1::2].any()
    assert outlier[::2].double().mean().item() == pytest.approx(0.75, abs=0.02)
    assert (credit.advantages_N[outlier] == 0.0).all()
    assert torch.allclose(credit.advantages_N[~outlier], ratio.log()[~outlier])


def test_gkd_asks_for_a_divergence_and_refuses_the_sampled_token() -> None:
    credit = build("gkd", divergence="js", support="top_k", top_k=2, mixture=0.3)(
        with_signals(teacher_distribution=TOP), 0
    )
    assert credit.divergence is not None
    assert (credit.divergence.kind, credit.divergence.mixture) == ("js", 0.3)
    assert credit.divergence.weight_N.tolist() == [1.0] * 4 and not credit.advantages_N.any()
    assert build("gkd").needs.vocabulary and build("gkd", support="top_k", top_k=5).needs.top_k == 5
    with pytest.raises(ValueError, match="K1 as a direct loss"):
        build("gkd", support="sampled")


GROUPS = batch_of(
    [-1.0] * 8,
    [-1.0] * 8,
    sequence=[0, 1, 1, 1, 2, 2, 3, 3],
    reward_S=[1.0, 0.0, 1.0, 1.0],
    group_S=[0, 0, 1, 1],
)


def test_dr_grpo_by_hand() -> None:
    """No std, and every sequence counts as its sum over max_length."""
    credit = build("dr_grpo", max_length=5)(GROUPS, 0)
    share = 8 / 4 / 5  # 8 kept tokens, 4 sequences of at most 5
    assert credit.advantages_N.tolist() == pytest.approx(
        [0.5 * share] + [-0.5 * share] * 3 + [0] * 4
    )


def test_dapo_by_hand() -> None:
    """The second group is all right: dropped. Overlong: 3 of at most 4 tokens, buffer 2: -0.5."""
    objective = build("dapo", max_length=4, overlong_buffer=2, resample_rounds=5)
    assert objective.ratio_clip == (0.2, 0.28) and objective.needs.sampling_rounds == 5
    credit = objective(GROUPS, 0)
    assert credit.keep_N.tolist() == [True] * 4 + [False] * 4
    advantage = 0.75 / (0.75 + 1e-4)  # rewards 1 and -0.5
    assert credit.advantages_N[:4].tolist() == pytest.approx(
        [advantage] + [-advantage] * 3, rel=1e-6
    )
    assert credit.metrics["rollout/informative_fraction"] == 0.5
    lengths = torch.tensor([0.0, 2.0, 3.0, 4.0])
    assert overlong_penalty(lengths, 4, 2).tolist() == [0.0, 0.0, -0.5, -1.0]
    assert overlong_penalty(lengths, 4, 0).tolist() == [0.0] * 4
    for wrong in ({"overlong_buffer": 5}, {"ratio_clip_high": 0.1}):
        with pytest.raises(ValueError, match=r"overlong_buffer|ratio_clip_high"):
            build("dapo", max_length=4, **wrong)


def test_an_outcome_mixed_into_a_distillation_objective() -> None:
    """A = R + weight * group advantage, whatever the objective keeps; not normalised again."""
    batch = dataclasses.replace(GROUPS, teacher_logprobs_N=GROUPS.student_logprobs_N + 0.25)
    credit = build("opd", outcome_weight=2.0)(batch, 0)
    advantage = 0.5 / (0.5 + 1e-4)
    expected = [0.25 + 2 * advantage] + [0.25 - 2 * advantage] * 3 + [0.25] * 4
    assert credit.advantages_N.tolist() == pytest.approx(expected, rel=1e-6)
    assert build("reopold", outcome_weight=1.0).floor == build("reopold").floor
    with pytest.raises(ValueError, match="distillation"):
        build("grpo", outcome_weight=1.0)
    with pytest.raises(ValueError, match="outcome reward"):
        build("opd", outcome_weight=1.0)(HAND, 0)


def test_r_may_be_taken_under_the_policy_of_now() -> None:
    now = torch.tensor([-1.5, -1.0, -2.0, -0.5], dtype=torch.float64)
    credit = build("opd")(with_signals(current_logprobs_N=now), 0)
    assert credit.advantages_N.tolist() == [1.0, -3.0, -1.0, 0.0]


def test_unknown_methods_and_foreign_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown method 'ppo'"):
        build("ppo")
    with pytest.raises(TypeError, match="takes no arguments"):
        build("opd", lam=0.3)
    with pytest.raises(ValueError, match="beta"):
        build("reopold", switch_step=1, beta=0.0)
    with pytest.raises(ValueError, match="odds form"):
        build("reopold", switch_step=1, lam=0.6, floor="odds")
