"""Sums and positions over the ranks of a run; in a single process they cost nothing.

The default process group is used as soon as torch.distributed is initialised.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks, as a new tensor."""
    total = tensor.clone()
    if ranks() > 1:
        dist.all_reduce(total)
    return total


def first_index(count: int, device: torch.device | str = "cpu") -> tuple[int, int]:
    """Global index of this rank's first of `count` items, in rank-major order, and the total."""
    if ranks() == 1:
        return 0, count
    counts = torch.zeros(ranks(), dtype=torch.int64, device=device)
    counts[dist.get_rank()] = count
    dist.all_reduce(counts)
    return int(counts[: dist.get_rank()].sum()), int(counts.sum())
