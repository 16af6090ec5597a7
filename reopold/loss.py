"""One loss for every method (method.md Eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from reopold.rollouts import Credit


def policy_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    credit: Credit,
    *,
    ratio_clip: float | None = None,
    normaliser: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`-(1 / normaliser) * sum over kept tokens of rho * advantage`, rho = pi_theta / pi_old.

    Args:
        logprobs_N: log pi_theta of the sampled tokens, with gradient.
        old_logprobs_N: log pi_old of them, without.
        credit: advantages and mask of the same N tokens.
        ratio_clip: PPO clip (GRPO); None for the distillation methods, which clip the reward.
        normaliser: kept tokens of the whole optimiser step, over all micro-batches and ranks;
            by default those of this call. So the gradient does not change with the split
            (trl #4719, ms-swift #10076).

    Returns:
        The loss (0 with a graph if nothing is kept) and `ratio_max` over kept tokens.
    """
    keep_N = credit.keep_N
    # Difference 0 before the exponential at dropped positions: exp(inf) * 0 is NaN (Flash-RL #19).
    ratio_N = (logprobs_N - old_logprobs_N).where(keep_N, 0.0).exp()
    gain_N = ratio_N * credit.advantages_N
    if ratio_clip is not None:
        clipped_N = ratio_N.clamp(1.0 - ratio_clip, 1.0 + ratio_clip) * credit.advantages_N
        gain_N = torch.minimum(gain_N, clipped_N)
    total = keep_N.sum() if normaliser is None else normaliser
    if not isinstance(total, Tensor):
        total = torch.as_tensor(total)
    loss = -gain_N.where(keep_N, 0.0).sum() / total.clamp(min=1)
    kept_ratio = ratio_N.detach().where(keep_N, 1.0)
    return loss, {"ratio_max": kept_ratio.max() if kept_ratio.numel() else kept_ratio.sum() + 1.0}
