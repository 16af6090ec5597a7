"""The token reward and its floor (method.md sections 1 and 2)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor


class MissingScore(ValueError):
    """A teacher or student score is missing or not finite; it never becomes 0."""


def reward_floor(lam: float, form: Literal["mixture", "odds"] = "mixture") -> float:
    """Lower bound of the token reward, in nats (Eq. 7).

    mixture: `log(lam) / (1 - lam)`, the limit of the mixture bound as R -> -inf.
    odds: `log(lam / (1 - lam))`, which is negative only below lam = 0.5.

    Raises:
        ValueError: lam outside (0, 1), or the odds form with lam >= 0.5.
    """
    if not 0.0 < lam < 1.0:
        raise ValueError(f"lam must lie strictly between 0 and 1, got {lam}")
    if form == "mixture":
        return math.log(lam) / (1.0 - lam)
    if lam >= 0.5:
        raise ValueError(
            f"the odds form needs lam < 0.5, got {lam}: its floor would not be negative"
        )
    return math.log(lam / (1.0 - lam))


def token_rewards(teacher_logprobs: Tensor, student_logprobs: Tensor) -> Tensor:
    """`R = log pi_T - log pi_theta` of each sampled token, in nats, without gradient.

    The negated K1 estimator of the per-position reverse KL. The gradient is stopped on purpose:
    K1 as a direct loss has zero expected gradient (OpenRLHF PR 1309).

    Raises:
        MissingScore: a score is NaN or infinite (fail closed, training-gym PR 155).
    """
    rewards = (teacher_logprobs - student_logprobs).detach()
    broken = ~torch.isfinite(rewards)
    if broken.any():
        first = int(broken.nonzero()[0, 0])
        raise MissingScore(
            f"{int(broken.sum())} of {rewards.numel()} token rewards are not finite; the first is "
            f"token {first}: teacher {float(teacher_logprobs[first])}, "
            f"student {float(student_logprobs[first])}"
        )
    return rewards
