"""The loss against finite differences, a scalar reference and its invariances, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reopold.loss import policy_loss
from reopold.rollouts import Credit


def random_case(n: int, seed: int) -> tuple[Tensor, Tensor, Credit]:
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(n, generator=generator, dtype=torch.float64) * 3
    logprobs = old + 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)
    advantages = torch.randn(n, generator=generator, dtype=torch.float64)
    keep = torch.rand(n, generator=generator) < 0.6
    keep[0] = True
    return logprobs.requires_grad_(), old, Credit(advantages, keep)


@pytest.mark.parametrize("clip", [None, (0.2, 0.28)])
def test_value_matches_a_scalar_reference(clip: tuple[float, float] | None) -> None:
    logprobs, old, credit = random_case(50, 0)
    total, kept = 0.0, 0
    for lp, o, a, k in zip(
        logprobs.tolist(),
        old.tolist(),
        credit.advantages_N.tolist(),
        credit.keep_N.tolist(),
        strict=True,
    ):
        if not k:
            continue
        ratio = math.exp(lp - o)
        gain = ratio * a
        if clip is not None:
            gain = min(gain, min(max(ratio, 1 - clip[0]), 1 + clip[1]) * a)
        total, kept = total + gain, kept + 1
    loss, _ = policy_loss(logprobs, old, credit, ratio_clip=clip)
    assert loss.item() == pytest.approx(-total / kept, rel=1e-12)


@pytest.mark.parametrize("clip", [None, (0.2, 0.28)])
def test_gradient_matches_finite_differences(clip: tuple[float, float] | None) -> None:
    logprobs, old, credit = random_case(12, 1)
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(x, old, credit, ratio_clip=clip)[0], (logprobs,), eps=1e-6, atol=1e-8
    )


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    """At rho = 1 the gradient in a kept token's log-prob is -A / kept, and 0 in a dropped one's."""
    logprobs, _, credit = random_case(20, 2)
    loss, metrics = policy_loss(logprobs, logprobs.detach(), credit)
    loss.backward()
    expected = -credit.advantages_N.where(credit.keep_N, 0.0) / credit.keep_N.sum()
    assert torch.allclose(logprobs.grad, expected, atol=1e-15)  # type: ignore[arg-type]
    assert metrics["ratio_max"].item() == 1.0


@settings(max_examples=40)
@given(n=st.integers(1, 30), cut=st.integers(0, 30), seed=st.integers(0, 1000))
def test_gradient_does_not_depend_on_the_micro_batch_split(n: int, cut: int, seed: int) -> None:
    logprobs, old, credit = random_case(n, seed)
    policy_loss(logprobs, old, credit)[0].backward()
    whole, logprobs.grad = logprobs.grad, None
    for part in (slice(0, min(cut, n)), slice(min(cut, n), n)):
        mine = Credit(credit.advantages_N[part], credit.keep_N[part])
        loss, _ = policy_loss(logprobs[part], old[part], mine, normaliser=credit.keep_N.sum())
        loss.backward()
    assert torch.allclose(logprobs.grad, whole, atol=1e-14)  # type: ignore[arg-type]


def test_dropped_tokens_cannot_poison_the_sum() -> None:
    """exp(inf) * 0 would be NaN; a dropped token's ratio must never be formed."""
    logprobs = torch.tensor([0.0, 800.0], dtype=torch.float64, requires_grad=True)
    credit = Credit(torch.ones(2, dtype=torch.float64), torch.tensor([True, False]))
    loss, metrics = policy_loss(logprobs, torch.tensor([0.0, -800.0]).double(), credit)
    loss.backward()
    assert loss.item() == -1.0
    assert logprobs.grad.tolist() == [-1.0, 0.0]  # type: ignore[union-attr]
    assert metrics["ratio_max"].item() == 1.0


def test_dropped_tokens_leave_the_denominator() -> None:
    logprobs = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    credit = Credit(torch.ones(4, dtype=torch.float64), torch.tensor([True, False, False, True]))
    policy_loss(logprobs, logprobs.detach(), credit)[0].backward()
    assert logprobs.grad.tolist() == [-0.5, 0.0, 0.0, -0.5]  # type: ignore[union-attr]


def test_nothing_kept_is_a_zero_loss_with_a_zero_gradient() -> None:
    logprobs = torch.randn(3, dtype=torch.float64, requires_grad=True)
    credit = Credit(torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.bool))
    loss, _ = policy_loss(logprobs, logprobs.detach(), credit)
    loss.backward()
    assert loss.item() == 0.0
    assert logprobs.grad.tolist() == [0.0, 0.0, 0.0]  # type: ignore[union-attr]
