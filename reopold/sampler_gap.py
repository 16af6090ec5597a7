"""The sampler's log-probs against the trainer's, and what may be done about the difference.

Two implementations of one model disagree per token: 0.012 nats over 100 tokens is already a ratio
of 3.3 (trl #4772, vllm #42259). Axes: N response tokens of the step, S sequences.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from reopold.rewards import MissingScore
from reopold.rollouts import Credit, Needs, TokenBatch

if TYPE_CHECKING:
    from reopold.objectives import Objective

Level = Literal["token", "sequence"]


def gap_metrics(trainer_N: Tensor, sampler_N: Tensor, valid_N: Tensor) -> dict[str, float]:
    """Mean and largest |difference| in nats, and the k3 estimate of KL(sampler, trainer).

    Args:
        trainer_N, sampler_N: float, log-prob of each sampled token under either.
        valid_N: bool; scores elsewhere may be anything.
    """
    difference_N = (trainer_N - sampler_N)[valid_N].double()
    if difference_N.numel() == 0:
        difference_N = difference_N.new_zeros(1)
    excess = float((difference_N.exp() - 1.0 - difference_N).mean())
    return {
        "rollout/sampler_gap": float(difference_N.abs().mean()),
        "rollout/sampler_gap_max": float(difference_N.abs().max()),
        "rollout/sampler_kl": excess,
    }


def truncated_weights(batch: TokenBatch, level: Level, cap: float) -> Tensor:
    """min(pi_old / sampler, cap) of every token, float32, without gradient; 1 where invalid.

    At the level of sequences the ratio is that of the whole response: the exponential of the *sum*
    of the log-ratios (a mean would be its T-th root: trl PR 5815).

    Raises:
        MissingScore: a sampler's log-prob is missing or not finite.
    """
    if batch.sampler_logprobs_N is None:
        raise MissingScore("sampler weights need the sampler's own log-probs")
    # 0 before the exponential where nothing was sampled: never a log-prob of 1 (Flash-RL #19).
    difference_N = (batch.student_logprobs_N - batch.sampler_logprobs_N).where(batch.valid_N, 0.0)
    if not bool(difference_N.isfinite().all()):
        raise MissingScore("a log-prob of the sampler or of pi_old is not finite")
    difference_N = difference_N.double()
    if level == "sequence":
        sequences = int(batch.sequence_N.max()) + 1 if len(batch.sequence_N) else 0
        total_S = difference_N.new_zeros(sequences).index_add_(0, batch.sequence_N, difference_N)
        difference_N = total_S[batch.sequence_N].where(batch.valid_N, 0.0)
    return difference_N.clamp(max=60.0).exp().clamp(max=cap).to(batch.student_logprobs_N.dtype)


class WithSamplerWeights:
    """An objective whose advantages are weighed by :func:`truncated_weights`.

    With pi_old / sampler the gradient is again that of samples of pi_old; truncation trades a
    little bias for bounded variance (fengyao.notion.site "Your efficient RL framework...", TIS).
    What the objective keeps, and the normaliser, stay as they are.
    """

    def __init__(self, objective: Objective, level: Level, cap: float) -> None:
        self.objective, self.level, self.cap = objective, level, cap
        self.ratio_clip, self.floor = objective.ratio_clip, objective.floor
        self.needs: Needs = objective.needs
        self.sequence_mean = objective.sequence_mean

    def __call__(self, batch: TokenBatch, step: int) -> Credit:
        credit = self.objective(batch, step)
        weight_N = truncated_weights(batch, self.level, self.cap)
        kept_N = weight_N[credit.keep_N]
        cut = float((kept_N >= self.cap).float().mean()) if kept_N.numel() else 0.0
        metrics = {**credit.metrics, "rollout/sampler_weight_cut": cut}
        if credit.divergence is not None:
            raise ValueError("sampler weights weigh advantages; this method's loss is a divergence")
        return dataclasses.replace(
            credit, advantages_N=credit.advantages_N * weight_N, metrics=metrics
        )
