"""Every method is one small rule from token signals to (advantage, loss mask).

An objective sees a :class:`TokenBatch` of the whole optimiser step and returns a
:class:`Credit`; sampling, scoring, loss and checkpoints do not know which one runs.

Axes: N response tokens flattened over the batch, S sequences, K of the teacher's likeliest ids.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from reopold.divergences import Divergence, Kind, TopK, Vocabulary
from reopold.loss import RatioClip
from reopold.outcomes import (
    group_advantages,
    informative,
    lengths,
    outcomes,
    overlong_penalty,
    sequence_share,
)
from reopold.rewards import reward_floor, token_rewards
from reopold.rollouts import Credit, Needs, TokenBatch
from reopold.sampler_gap import Level, WithSamplerWeights
from reopold.selection import random_scores, top_fraction

Mask = Literal["entropy", "reward", "random", "none"]


class Objective(Protocol):
    ratio_clip: RatioClip | None
    """PPO clip of the importance ratio that the loss applies; None leaves the ratio alone."""
    needs: Needs
    """Signals it reads beyond the student's own scores."""
    floor: float | None
    """Reward floor in nats, for the diagnostics; None where the method has none."""
    sequence_mean: bool
    """Whether the loss is a mean over sequences, its advantages scaled for the step's kept tokens:
    an update on some of the sequences is then normalised by its share of them."""

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        """Credit of every token at optimiser step `step`, counted from 0."""
        ...


class _Base:
    """Defaults of the protocol."""

    ratio_clip: RatioClip | None = None
    needs = Needs()
    floor: float | None = None
    sequence_mean = False


class Reopold(_Base):
    """Relaxed on-policy distillation (arXiv 2603.11137, Eq. 4 and 7 to 10; method.md 1 to 4).

    Two phases: exploration (step < switch_step) takes the reward R and drops tokens below the
    floor; refinement takes max(R, floor) and keeps the top-beta fraction of tokens by entropy, over
    all valid tokens of the step. One phase: refinement from the first step. The switches of
    refinement make the ablation grid: `clip` off takes R as it is; `mask` is "entropy", "reward"
    (R >= floor), "random" (a beta fraction drawn by chance) or "none".

    Raises:
        ValueError: a setting out of range, or the odds form with lam >= 0.5.
    """

    needs = Needs(teacher=True)

    def __init__(
        self,
        *,
        switch_step: int = 0,
        lam: float = 0.3,
        floor: Literal["mixture", "odds"] = "mixture",
        beta: float = 0.2,
        clip: bool = True,
        mask: Mask = "entropy",
        phases: Literal["two", "one"] = "two",
        seed: int = 0,
    ) -> None:
        if not 0.0 < beta <= 1.0:
            raise ValueError(f"beta must lie in (0, 1], got {beta}")
        if mask not in ("entropy", "reward", "random", "none"):
            raise ValueError(f"mask must be entropy, reward, random or none, got {mask!r}")
        self.floor = reward_floor(lam, floor)
        self.beta, self.clip, self.mask, self.seed = beta, clip, mask, seed
        self.switch_step = switch_step if phases == "two" else 0

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        assert self.floor is not None
        rewards_N = _distillation_rewards(batch)
        above_N = batch.valid_N & (rewards_N >= self.floor)
        metrics = {
            "train/clip_fraction": _fraction(batch.valid_N & ~above_N, batch.valid_N),
            **_reward_metrics(rewards_N, batch),
        }
        if step < self.switch_step:
            return Credit(rewards_N, above_N, metrics)
        advantages_N = rewards_N.clamp(min=self.floor) if self.clip else rewards_N
        if self.mask == "entropy":
            keep_N = top_fraction(batch.entropy_N, batch.valid_N, self.beta)
        elif self.mask == "random":
            chance_N = random_scores(
                len(batch.valid_N), seed=self.seed, step=step, device=batch.valid_N.device
            )
            keep_N = top_fraction(chance_N, batch.valid_N, self.beta)
        else:
            keep_N = above_N if self.mask == "reward" else batch.valid_N
        return Credit(advantages_N, keep_N, metrics)


class Opd(_Base):
    """Plain on-policy distillation: reward R on every token (reverse KL, K1 estimator)."""

    needs = Needs(teacher=True)

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        rewards_N = _distillation_rewards(batch)
        return Credit(rewards_N, batch.valid_N, _reward_metrics(rewards_N, batch))


class ExOpd(_Base):
    """Reward extrapolation, G-OPD / ExOPD (arXiv 2602.12125).

    The teacher's implicit reward `log pi_T - log pi_ref` counts `reward_scale` times against the
    KL to the reference: `R = scale (log pi_T - log pi_ref) - (log pi_theta - log pi_ref)`. Scale 1
    is plain distillation whatever the reference; above 1 extrapolates, below 1 interpolates.
    """

    needs = Needs(teacher=True, reference=True)

    def __init__(self, *, reward_scale: float = 1.25) -> None:
        if reward_scale <= 0.0:
            raise ValueError(f"reward_scale must be positive, got {reward_scale}")
        self.reward_scale = reward_scale

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        if batch.reference_logprobs_N is None or batch.teacher_logprobs_N is None:
            raise ValueError("exopd needs teacher and reference log-probs")
        rewards_N = _distillation_rewards(batch)
        reference_N = batch.reference_logprobs_N.where(batch.valid_N, 0.0)
        teacher_N = batch.teacher_logprobs_N.where(batch.valid_N, 0.0)
        extra_N = token_rewards(teacher_N, reference_N)
        advantages_N = rewards_N + (self.reward_scale - 1.0) * extra_N
        return Credit(advantages_N, batch.valid_N, _reward_metrics(rewards_N, batch))


class IwOpd(_Base):
    """Importance-weighted on-policy distillation (arXiv 2606.22600, as TRL's IWOPDTrainer).

    Early tokens weigh more: `A_t = R_t (1 + gamma (1 - sum_{s<t} |R_s| / sum_s |R_s|))` within each
    sequence, so the weight falls from 1 + gamma to 1 as the sequence's |R| is used up.
    """

    needs = Needs(teacher=True)
    epsilon: ClassVar[float] = 1e-8

    def __init__(self, *, gamma: float = 0.5) -> None:
        if gamma < 0.0:
            raise ValueError(f"gamma must not be negative, got {gamma}")
        self.gamma = gamma

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        rewards_N = _distillation_rewards(batch)
        before_N, total_N = _running_totals(rewards_N.abs(), batch.sequence_N)
        weight_N = 1.0 + self.gamma * (1.0 - before_N / total_N.clamp(min=self.epsilon))
        return Credit(weight_N * rewards_N, batch.valid_N, _reward_metrics(rewards_N, batch))


class EntropyOpd(_Base):
    """Entropy-aware on-policy distillation, EOPD (arXiv 2603.07079).

    `L_t = L_OPD,t + weight * 1[H_T,t >= threshold] KL(T, S)_t`: where the teacher itself is
    uncertain, the forward KL over its top ids keeps the student from collapsing on one of them. The
    sum, the gate and its 0.8 nats are those of the authors' code (paper: 16 ids; code: 32). There
    the teacher is renormalised over its top ids; here the rest is a tail bucket, so that the term
    is a divergence (0 where student and teacher agree).
    """

    def __init__(
        self, *, entropy_threshold: float = 0.8, forward_weight: float = 1.0, top_k: int = 64
    ) -> None:
        self.entropy_threshold, self.forward_weight = entropy_threshold, forward_weight
        self.needs = Needs(teacher=True, top_k=top_k)

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        rewards_N = _distillation_rewards(batch)
        if batch.teacher_entropy_N is None:
            raise ValueError("entropy_opd needs the teacher's entropy")
        uncertain_N = batch.valid_N & (batch.teacher_entropy_N >= self.entropy_threshold)
        metrics = {
            "train/forward_fraction": _fraction(uncertain_N, batch.valid_N),
            **_reward_metrics(rewards_N, batch),
        }
        wanted = _forward(batch, self.forward_weight * uncertain_N, "entropy_opd")
        return Credit(rewards_N, batch.valid_N, metrics, wanted)


class TrustRegion(_Base):
    """Trust-region on-policy distillation, TrOPD (arXiv 2606.01249), its on-policy part.

    A sampled token is trusted with probability `min(pi_T / pi_theta, 1)`, the acceptance rule of
    speculative decoding. Trusted tokens get the reward R; outliers, where K1 is a bad estimate, get
    the forward KL over the teacher's top ids (64 in the paper) instead. Known from secondary
    readers only, who write the KL unnormalised and without a tail; here the rest is a tail bucket.
    The paper's off-policy guidance (going on from the teacher's prefixes) is not part of this.
    """

    def __init__(self, *, forward_weight: float = 1.0, top_k: int = 64, seed: int = 0) -> None:
        self.forward_weight, self.seed = forward_weight, seed
        self.needs = Needs(teacher=True, top_k=top_k)

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        rewards_N = _distillation_rewards(batch)
        chance_N = random_scores(len(rewards_N), seed=self.seed, step=step, device=rewards_N.device)
        outlier_N = batch.valid_N & (chance_N >= rewards_N.exp())
        metrics = {
            "train/forward_fraction": _fraction(outlier_N, batch.valid_N),
            **_reward_metrics(rewards_N, batch),
        }
        wanted = _forward(batch, self.forward_weight * outlier_N, "trust_region")
        return Credit(rewards_N.where(~outlier_N, 0.0), batch.valid_N, metrics, wanted)


class Gkd(_Base):
    """Generalised knowledge distillation on the student's samples (arXiv 2306.13649).

    The loss is a divergence from the teacher's distribution at every position, exact where the
    other methods estimate it from the sampled token: forward KL(T, S), reverse KL(S, T) or the
    generalised Jensen-Shannon with `mixture` as the teacher's share. `support`: the full vocabulary
    (the teacher's hidden states are kept for the step), or the teacher's `top_k` ids with all other
    ids in one tail bucket.

    Raises:
        ValueError: support "sampled": K1 as a direct loss.
    """

    def __init__(
        self,
        *,
        divergence: Kind = "reverse",
        support: Literal["full", "top_k", "sampled"] = "full",
        top_k: int = 64,
        mixture: float = 0.5,
    ) -> None:
        if support == "sampled":
            raise ValueError(
                "gkd over the sampled token only would be K1 as a direct loss, whose expected "
                "gradient is zero (OpenRLHF PR 1309): use method 'opd', which takes it as a reward"
            )
        if divergence == "js" and not 0.0 < mixture < 1.0:
            raise ValueError(f"mixture must lie strictly between 0 and 1, got {mixture}")
        self.divergence, self.mixture = divergence, mixture
        full = support == "full"
        self.needs = Needs(teacher=True, vocabulary=full, top_k=0 if full else top_k)

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        rewards_N = _distillation_rewards(batch)
        wanted = Divergence(
            self.divergence,
            torch.ones_like(rewards_N),
            _teacher_distribution(batch, "gkd"),
            self.mixture,
        )
        return Credit(
            torch.zeros_like(rewards_N), batch.valid_N, _reward_metrics(rewards_N, batch), wanted
        )


class Grpo(_Base):
    """GRPO (DeepSeekMath, arXiv 2402.03300, Eq. 3), without a reference KL.

    A sequence's advantage is its outcome reward, centred and scaled within the samples of its
    prompt; a sequence counts as the mean over its tokens. The loss divides by the number of kept
    tokens, so each token carries its sequence's advantage times `kept / (S * length)`.
    A group whose samples all score the same teaches nothing: advantage 0, still in the normaliser.
    """

    needs = Needs(outcome=True)
    sequence_mean = True

    def __init__(self, *, ratio_clip: float = 0.2) -> None:
        self.ratio_clip = (ratio_clip, ratio_clip)

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        advantage_S = group_advantages(*outcomes(batch, "grpo"))
        length_S = lengths(batch, len(advantage_S), advantage_S.dtype)
        advantage_S = advantage_S * sequence_share(batch, length_S)
        return Credit(advantage_S[batch.sequence_N], batch.valid_N)


class DrGrpo(_Base):
    """Dr. GRPO (arXiv 2503.20783): GRPO without the two biases.

    The advantage is `r - mean` (no std), and a sequence counts as `sum over tokens / max_length`
    (no division by its own length, which favours short right and long wrong answers).
    """

    needs = Needs(outcome=True)
    sequence_mean = True

    def __init__(self, *, max_length: int, ratio_clip: float = 0.2) -> None:
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        self.max_length, self.ratio_clip = max_length, (ratio_clip, ratio_clip)

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        advantage_S = group_advantages(*outcomes(batch, "dr_grpo"), scaled=False)
        length_S = torch.full_like(advantage_S, self.max_length)
        advantage_S = advantage_S * sequence_share(batch, length_S)
        return Credit(advantage_S[batch.sequence_N], batch.valid_N)


class Dapo(_Base):
    """DAPO (arXiv 2503.14476): GRPO with clip-higher, a mean over tokens, overlong shaping and
    dynamic sampling.

    Groups whose samples all have the same outcome are dropped, in the sum and in the normaliser
    (the trainer draws more prompts in their place, up to `resample_rounds`); the length penalty is
    added after that choice. `overlong_buffer` tokens before `max_length` the penalty begins; 0
    turns it off.
    """

    def __init__(
        self,
        *,
        max_length: int,
        ratio_clip: float = 0.2,
        ratio_clip_high: float = 0.28,
        overlong_buffer: int = 0,
        resample_rounds: int = 3,
    ) -> None:
        if not 0 <= overlong_buffer <= max_length:
            raise ValueError(
                f"overlong_buffer must lie in 0 to max_length ({max_length}), got {overlong_buffer}"
            )
        if ratio_clip_high < ratio_clip:
            raise ValueError(
                f"dapo clips higher above 1 than below: ratio_clip_high {ratio_clip_high} is less "
                f"than ratio_clip {ratio_clip}"
            )
        self.max_length, self.overlong_buffer = max_length, overlong_buffer
        self.ratio_clip = (ratio_clip, ratio_clip_high)
        self.needs = Needs(outcome=True, sampling_rounds=resample_rounds)

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        reward_S, group_S = outcomes(batch, "dapo")
        length_S = lengths(batch, len(reward_S), reward_S.dtype)
        shaped_S = reward_S + overlong_penalty(length_S, self.max_length, self.overlong_buffer)
        advantage_S = group_advantages(shaped_S, group_S)
        useful_S = informative(reward_S, group_S)
        keep_N = batch.valid_N & useful_S[batch.sequence_N]
        useful = useful_S[~reward_S.isnan()].float()
        metrics = {"rollout/informative_fraction": float(useful.mean()) if len(useful) else 0.0}
        return Credit(advantage_S[batch.sequence_N], keep_N, metrics)


class Sft(_Base):
    """Supervised fine-tuning: the likelihood of given responses, every token alike."""

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        return Credit(torch.ones_like(batch.student_logprobs_N), batch.valid_N)


class WithOutcome(_Base):
    """A distillation objective plus `weight` times the group advantage of the outcome reward.

    `A = A_distillation + weight * (r - mean) / (std + epsilon)` on the tokens that the objective
    keeps. The sum is never normalised again: over the batch that would z-score the teacher's term
    away (SkyRL PR 2256).
    """

    def __init__(self, objective: Objective, weight: float) -> None:
        if not objective.needs.teacher:
            raise ValueError("outcome_weight mixes an outcome into a distillation objective only")
        self.objective, self.weight = objective, weight
        self.ratio_clip, self.floor = objective.ratio_clip, objective.floor
        self.needs = dataclasses.replace(objective.needs, outcome=True)

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        credit = self.objective(batch, step)
        advantage_S = group_advantages(*outcomes(batch, "outcome_weight"))
        mixed_N = credit.advantages_N + self.weight * advantage_S[batch.sequence_N]
        return dataclasses.replace(credit, advantages_N=mixed_N)


OBJECTIVES: dict[str, type[Any]] = {
    "reopold": Reopold,
    "opd": Opd,
    "exopd": ExOpd,
    "iw_opd": IwOpd,
    "entropy_opd": EntropyOpd,
    "trust_region": TrustRegion,
    "gkd": Gkd,
    "grpo": Grpo,
    "dr_grpo": DrGrpo,
    "dapo": Dapo,
    "sft": Sft,
}


def build(
    method: str,
    *,
    outcome_weight: float = 0.0,
    sampler_weights: Level | Literal["none"] = "none",
    sampler_weight_cap: float = 2.0,
    **settings: Any,
) -> Objective:
    """The objective of a method: `build("reopold", lam=0.3, beta=0.2, switch_step=150)`.

    Args:
        outcome_weight: of the outcome reward mixed into a distillation objective; 0 is none.
        sampler_weights: weigh advantages by the truncated ratio of pi_old to the sampler.

    Raises:
        ValueError: an unknown method, or settings that do not go together.
        TypeError: a setting the method does not have.
    """
    if method not in OBJECTIVES:
        raise ValueError(f"unknown method {method!r}: one of {', '.join(OBJECTIVES)}")
    objective: Objective = OBJECTIVES[method](**settings)
    if outcome_weight:
        objective = WithOutcome(objective, outcome_weight)
    if sampler_weights != "none":
        objective = WithSamplerWeights(objective, sampler_weights, sampler_weight_cap)
    return objective


def _distillation_rewards(batch: TokenBatch) -> Tensor:
    """R, with 0 at invalid positions (their scores are meaningless and must not reach a sum).

    The student is pi_old, or the policy just before this update where the batch carries that.
    """
    if batch.teacher_logprobs_N is None:
        raise ValueError("a distillation objective needs teacher log-probs")
    student_N = batch.student_logprobs_N
    if batch.current_logprobs_N is not None:
        student_N = batch.current_logprobs_N
    teacher_N = batch.teacher_logprobs_N.where(batch.valid_N, 0.0)
    return token_rewards(teacher_N, student_N.where(batch.valid_N, 0.0))


def _teacher_distribution(batch: TokenBatch, method: str) -> TopK | Vocabulary:
    if batch.teacher_distribution is None:
        raise ValueError(f"{method} needs more of the teacher than the sampled token's log-prob")
    return batch.teacher_distribution


def _forward(batch: TokenBatch, weight_N: Tensor, method: str) -> Divergence:
    """Forward KL over the teacher's top ids, at the tokens that have a weight."""
    teacher = _teacher_distribution(batch, method)
    return Divergence("forward", weight_N.to(batch.student_logprobs_N.dtype), teacher)


def _running_totals(values_N: Tensor, sequence_N: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the earlier tokens of the same sequence, and over all of them. A sequence's tokens
    follow each other in time; float64, since a difference of long sums would lose digits."""
    order_N = sequence_N.argsort(stable=True)
    sorted_N, ids_N = values_N[order_N].double(), sequence_N[order_N]
    cumulative_N = sorted_N.cumsum(0)
    _, place_N, count_S = ids_N.unique_consecutive(return_inverse=True, return_counts=True)
    end_S = count_S.cumsum(0)
    total_S = torch.zeros_like(end_S, dtype=torch.float64).index_add_(0, place_N, sorted_N)
    base_S = torch.cat([cumulative_N.new_zeros(1), cumulative_N[end_S - 1]])[: len(end_S)]
    before_N, total_N = torch.empty_like(sorted_N), torch.empty_like(sorted_N)
    before_N[order_N] = cumulative_N - sorted_N - base_S[place_N]
    total_N[order_N] = total_S[place_N]
    return before_N.to(values_N.dtype), total_N.to(values_N.dtype)


def _reward_metrics(rewards_N: Tensor, batch: TokenBatch) -> dict[str, float]:
    valid = rewards_N[batch.valid_N]
    if valid.numel() == 0:
        return {}
    return {"teacher/reward": float(valid.mean()), "teacher/reward_min": float(valid.min())}


def _fraction(mask_N: Tensor, valid_N: Tensor) -> float:
    return float((mask_N & valid_N).sum() / valid_N.sum().clamp(min=1))
