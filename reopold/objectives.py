"""Every method is one small rule from token signals to (advantage, loss mask).

An objective sees a :class:`TokenBatch` of the whole optimiser step and returns a
:class:`Credit`; sampling, scoring, loss and checkpoints do not know which one runs.

Axes: N response tokens flattened over the batch, S sequences.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from reopold.rewards import reward_floor, token_rewards
from reopold.rollouts import Credit, TokenBatch


class Objective(Protocol):
    ratio_clip: float | None
    """PPO clip of the importance ratio that the loss applies; None leaves the ratio alone."""

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        """Credit of every token at optimiser step `step`, counted from 0."""
        ...


class Reopold:
    """Relaxed on-policy distillation (arXiv 2603.11137, Eq. 4 and 7 to 10).

    Exploration (step < switch_step): reward R, tokens below the floor are dropped.
    Refinement: reward max(R, floor), only the top-beta fraction of tokens by entropy is kept,
    over all valid tokens of the step.
    """

    ratio_clip = None

    def __init__(
        self,
        *,
        switch_step: int,
        lam: float = 0.3,
        floor: Literal["mixture", "odds"] = "mixture",
        beta: float = 0.2,
    ) -> None:
        if not 0.0 < beta <= 1.0:
            raise ValueError(f"beta must lie in (0, 1], got {beta}")
        self.floor = reward_floor(lam, floor)
        self.beta = beta
        self.switch_step = switch_step

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        rewards_N = _distillation_rewards(batch)
        above_floor_N = rewards_N >= self.floor
        clipped = _fraction(~above_floor_N, batch.valid_N)
        if step < self.switch_step:
            advantages_N, keep_N = rewards_N, batch.valid_N & above_floor_N
        else:
            advantages_N = rewards_N.clamp(min=self.floor)
            keep_N = top_fraction(batch.entropy_N, batch.valid_N, self.beta)
        return Credit(
            advantages_N,
            keep_N,
            {"train/clip_fraction": clipped, **_reward_metrics(rewards_N, batch)},
        )


class Opd:
    """Plain on-policy distillation: reward R on every token (reverse KL, K1 estimator)."""

    ratio_clip = None

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        rewards_N = _distillation_rewards(batch)
        return Credit(rewards_N, batch.valid_N, _reward_metrics(rewards_N, batch))


class Grpo:
    """GRPO (DeepSeekMath, arXiv 2402.03300, Eq. 3), without a reference KL.

    A sequence's advantage is its outcome reward, centred and scaled within the samples of its
    prompt; a sequence counts as the mean over its tokens. The loss divides by the number of kept
    tokens, so each token carries its sequence's advantage times `kept / (S * length)`.
    A group whose samples all score the same teaches nothing: advantage 0, still in the normaliser.
    """

    epsilon: ClassVar[float] = 1e-4

    def __init__(self, *, ratio_clip: float = 0.2) -> None:
        self.ratio_clip = ratio_clip

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        if batch.reward_S is None or batch.group_S is None:
            raise ValueError("grpo needs an outcome reward and a group for every sequence")
        advantage_S = group_advantages(batch.reward_S, batch.group_S, self.epsilon)
        length_S = torch.zeros_like(advantage_S).index_add_(
            0, batch.sequence_N, batch.valid_N.to(advantage_S.dtype)
        )
        share_S = batch.valid_N.sum() / (length_S.clamp(min=1.0) * advantage_S.numel())
        return Credit((advantage_S * share_S)[batch.sequence_N], batch.valid_N)


class Sft:
    """Supervised fine-tuning: the likelihood of given responses, every token alike."""

    ratio_clip = None

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        return Credit(torch.ones_like(batch.student_logprobs_N), batch.valid_N)


OBJECTIVES: dict[str, type[Any]] = {"reopold": Reopold, "opd": Opd, "grpo": Grpo, "sft": Sft}


def build(method: str, **settings: Any) -> Objective:
    """The objective of a method: `build("reopold", lam=0.3, beta=0.2, switch_step=150)`.

    Raises:
        ValueError: an unknown method, or settings that do not go together.
        TypeError: a setting the method does not have.
    """
    if method not in OBJECTIVES:
        raise ValueError(f"unknown method {method!r}: one of {', '.join(OBJECTIVES)}")
    objective: Objective = OBJECTIVES[method](**settings)
    return objective


def top_fraction(values_N: Tensor, valid_N: Tensor, fraction: float) -> Tensor:
    """Mask of the ceil(fraction * valid) largest values among valid tokens; ties by position.

    Exact at any size: torch.quantile refuses more than 2^24 elements, and pads inside a quantile
    shift it (trl #3709).
    """
    wanted = math.ceil(fraction * int(valid_N.sum()))
    order = torch.where(valid_N, values_N, -torch.inf).argsort(descending=True, stable=True)
    keep_N = torch.zeros_like(valid_N)
    keep_N[order[:wanted]] = True
    return keep_N & valid_N


def group_advantages(reward_S: Tensor, group_S: Tensor, epsilon: float) -> Tensor:
    """`(r - mean) / (std + epsilon)` within each group, with the population std."""
    _, group_S = group_S.unique(return_inverse=True)
    count_G = torch.bincount(group_S).to(reward_S.dtype)
    mean_G = torch.zeros_like(count_G).index_add_(0, group_S, reward_S) / count_G
    centred_S = reward_S - mean_G[group_S]
    variance_G = torch.zeros_like(count_G).index_add_(0, group_S, centred_S.square()) / count_G
    return centred_S / (variance_G.sqrt()[group_S] + epsilon)


def _distillation_rewards(batch: TokenBatch) -> Tensor:
    """R, with 0 at invalid positions (their scores are meaningless and must not reach a sum)."""
    if batch.teacher_logprobs_N is None:
        raise ValueError("a distillation objective needs teacher log-probs")
    teacher_N = batch.teacher_logprobs_N.where(batch.valid_N, 0.0)
    return token_rewards(teacher_N, batch.student_logprobs_N.where(batch.valid_N, 0.0))


def _reward_metrics(rewards_N: Tensor, batch: TokenBatch) -> dict[str, float]:
    valid = rewards_N[batch.valid_N]
    if valid.numel() == 0:
        return {}
    return {"teacher/reward": float(valid.mean()), "teacher/reward_min": float(valid.min())}


def _fraction(mask_N: Tensor, valid_N: Tensor) -> float:
    return float((mask_N & valid_N).sum() / valid_N.sum().clamp(min=1))
