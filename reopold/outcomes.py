"""What a sequence's outcome is worth: group advantages, length penalty, share of the step.

Axes: N response tokens, S sequences, G groups (the samples of one prompt).
"""

from __future__ import annotations

import torch
from torch import Tensor

from reopold.distributed import all_sum
from reopold.rollouts import TokenBatch

#: Added to a group's standard deviation (DeepSeekMath's code, TRL).
EPSILON = 1e-4


def outcomes(batch: TokenBatch, method: str) -> tuple[Tensor, Tensor]:
    """Outcome reward and group of every sequence.

    Raises:
        ValueError: the batch has none.
    """
    if batch.reward_S is None or batch.group_S is None:
        raise ValueError(f"{method} needs an outcome reward and a group for every sequence")
    return batch.reward_S, batch.group_S


def group_advantages(
    reward_S: Tensor, group_S: Tensor, epsilon: float = EPSILON, *, scaled: bool = True
) -> Tensor:
    """`(r - mean) / (std + epsilon)` within each group, with the population std.

    Not scaled: `r - mean` (Dr. GRPO, arXiv 2503.20783: the std favours easy and hard prompts).
    A sequence whose reward is NaN is no part of its group; its advantage is 0.
    """
    _, group_S = group_S.unique(return_inverse=True)
    known_S = ~reward_S.isnan()
    count_G = torch.bincount(group_S, known_S.double()).to(reward_S.dtype).clamp(min=1.0)
    mean_G = (
        torch.zeros_like(count_G).index_add_(0, group_S, reward_S.where(known_S, 0.0)) / count_G
    )
    centred_S = (reward_S - mean_G[group_S]).where(known_S, 0.0)
    if not scaled:
        return centred_S
    variance_G = torch.zeros_like(count_G).index_add_(0, group_S, centred_S.square()) / count_G
    return centred_S / (variance_G.sqrt()[group_S] + epsilon)


def informative(reward_S: Tensor, group_S: Tensor) -> Tensor:
    """bool [S]: the sequences of groups whose samples do not all score the same (DAPO Eq. 11);
    those with a reward of NaN do not count."""
    _, group_S = group_S.unique(return_inverse=True)
    groups = int(group_S.max()) + 1 if len(group_S) else 0
    known_S = ~reward_S.isnan()

    def extreme(worst: float, reduce: str) -> Tensor:
        start_G = reward_S.new_full((groups,), worst)
        return start_G.scatter_reduce(0, group_S, reward_S.where(known_S, worst), reduce)

    return (extreme(-torch.inf, "amax") > extreme(torch.inf, "amin"))[group_S]


def lengths(batch: TokenBatch, sequences: int, dtype: torch.dtype) -> Tensor:
    """Valid tokens of each sequence, [S]."""
    length_S = torch.zeros(sequences, dtype=dtype, device=batch.valid_N.device)
    length_S.index_add_(0, batch.sequence_N, batch.valid_N.to(dtype))
    return length_S


def overlong_penalty(length_S: Tensor, max_length: int, buffer: int) -> Tensor:
    """0 up to `max_length - buffer` tokens, from there linearly down to -1 at `max_length`.

    DAPO's soft overlong punishment (arXiv 2503.14476, Eq. 13).
    """
    over_S = (length_S - (max_length - buffer)).clamp(min=0, max=buffer)
    return -over_S / buffer if buffer else torch.zeros_like(length_S)


def sequence_share(batch: TokenBatch, length_S: Tensor) -> Tensor:
    """[S]: factor that makes `sum over tokens / kept tokens` a mean over sequences of
    `sum over tokens / length`; kept tokens and sequences are those of all ranks, without sequences
    whose reward is NaN."""
    assert batch.reward_S is not None
    kept: Tensor = all_sum(batch.valid_N.sum()).to(length_S.dtype)
    count: Tensor = all_sum((~batch.reward_S.isnan()).sum()).to(length_S.dtype)
    return kept / (length_S.clamp(min=1.0) * count.clamp(min=1.0))
