"""What a step's distributions look like: pure functions, cheap beside the step.

Axes: N response tokens flattened over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from reopold.reward_bins import ENTROPY_PARTS, EPS, REWARD_EDGES

#: Log-ratios, nats, are cut here before the exponential: even squared it is finite in float64, so
#: that a broken update still gives numbers that JSON can hold.
LOG_RATIO_LIMIT = 300.0


def reward_diagnostics(
    rewards_N: Tensor, entropy_N: Tensor, valid_N: Tensor, *, floor: float | None
) -> dict[str, Any]:
    """One line of `diagnostics.jsonl`: how R is distributed over the valid tokens.

    Args:
        rewards_N: float, R in nats, finite at valid tokens (`token_rewards` refuses others).
        entropy_N: float, entropy of the student's distribution, nats.
        valid_N: bool; rewards and entropies at other positions may be anything.
        floor: the method's reward floor in nats, None where it has none.

    Returns:
        `floor` (nats or None); `reward_counts`, tokens in the bins of :data:`REWARD_EDGES` (a bin
        holds its lower edge) with one more at either end for what lies outside; `small_fraction`,
        share with |R| < :data:`EPS`; `abs_reward_by_entropy`, mean |R| of each tenth of the tokens
        from lowest entropy to highest (ties by position), and `abs_share_by_entropy`, its share of
        the total |R|. The lists by entropy are empty where there are fewer tokens than parts.
    """
    rewards = rewards_N[valid_N].float()
    edges = torch.tensor(REWARD_EDGES, device=rewards.device)
    counts = torch.bincount(
        torch.bucketize(rewards, edges, right=True), minlength=len(REWARD_EDGES) + 1
    )
    size = rewards.abs()
    small = float((size < EPS).float().mean()) if len(size) else 0.0
    means: list[float] = []
    shares: list[float] = []
    if len(size) >= ENTROPY_PARTS:
        ordered = size[entropy_N[valid_N].argsort(stable=True)].double()
        parts = torch.tensor_split(ordered, ENTROPY_PARTS)
        total = float(ordered.sum())
        means = [float(part.mean()) for part in parts]
        shares = [float(part.sum()) / total if total > 0.0 else 0.0 for part in parts]
    return {
        "floor": floor,
        "reward_counts": counts.tolist(),
        "small_fraction": small,
        "abs_reward_by_entropy": means,
        "abs_share_by_entropy": shares,
    }


def ratio_diagnostics(
    logprobs_N: Tensor, old_logprobs_N: Tensor, keep_N: Tensor
) -> dict[str, float]:
    """The importance ratio pi_theta / pi_old over the kept tokens.

    `train/kl_old` is the k3 estimate of KL(pi_old, pi_theta): the mean of `rho - 1 - log rho`.
    Log-probs (float, nats) at dropped positions may be anything. Where nothing is kept, the ratio
    is 1 and the KL 0.
    """
    difference = (logprobs_N[keep_N] - old_logprobs_N[keep_N]).double()
    difference = difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if difference.numel() == 0:
        difference = difference.new_zeros(1)
    ratio = difference.exp()
    return {
        "train/ratio_mean": float(ratio.mean()),
        "train/ratio_std": float(ratio.std(correction=0)),
        "train/ratio_min": float(ratio.min()),
        "train/ratio_max": float(ratio.max()),
        "train/kl_old": float((torch.expm1(difference) - difference).mean()),
    }


def repetition(response_ids: Sequence[Sequence[int]], n: int = 4) -> float:
    """Share of a response's n-grams that occurred in it before, mean over responses that have any.

    Exact: an n-gram is numbered by the number of its first n - 1 tokens and its last token, and the
    numbers are made dense after every token, so they neither collide nor outgrow int64.
    """
    lengths = torch.tensor([len(ids) for ids in response_ids], dtype=torch.int64)
    tokens = torch.tensor(list(chain.from_iterable(response_ids)), dtype=torch.int64)
    sequence = torch.arange(len(lengths)).repeat_interleave(lengths)
    place = torch.arange(len(tokens)) - (lengths.cumsum(0) - lengths)[sequence]
    left = lengths[sequence] - place  # tokens from here to the end of the response
    if not bool((left >= n).any()):
        return 0.0
    starts = (left >= n).nonzero().squeeze(-1)
    number = sequence[starts]
    for offset in range(n):
        following = tokens[starts + offset]
        number = number * (int(tokens.max()) + 1) + following
        _, number = number.unique(return_inverse=True)
    total = torch.bincount(sequence[starts], minlength=len(lengths))
    _, first = number.unique(return_inverse=True)
    owner = torch.zeros(int(first.max()) + 1, dtype=torch.int64)
    owner[first] = sequence[starts]  # an n-gram's number belongs to one response
    distinct = torch.bincount(owner, minlength=len(lengths))
    has = total > 0
    return float((1.0 - distinct[has] / total[has]).mean())
