"""Draws from next-token distributions: temperature, nucleus, and a stream of numbers a row.

Axes: B rows, V vocabulary, K banned ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def choose(
    logits_BV: Tensor,
    uniforms_B: Tensor,
    temperature: float,
    logprob_temperature: float = 1.0,
    *,
    top_p: float = 1.0,
    banned_K: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution at the row's uniform number.

    Args:
        logits_BV: raw logits, at least float32.
        uniforms_B: float64 in [0, 1).
        temperature: of the draw; 0 takes the most likely token.
        top_p: probability that the nucleus must reach; the draw is from it.
        banned_K: ids that are not drawn.

    Returns:
        ids_B and their log-probs at `logprob_temperature` in the full distribution, whatever the
        draw's temperature, nucleus and banned ids were.
    """
    logprobs_BV = torch.log_softmax(logits_BV / logprob_temperature, dim=-1)
    if banned_K is not None:
        logits_BV = logits_BV.index_fill(-1, banned_K, -math.inf)
    if temperature == 0.0:
        ids_B = logits_BV.argmax(-1)
    else:
        # float64: a float32 cumulative sum over 152k ids is coarser than the tail it walks.
        probs_BV = torch.softmax(logits_BV.double() / temperature, dim=-1)
        if top_p < 1.0:
            probs_BV = nucleus(probs_BV, top_p)
        cumulative_BV = probs_BV.cumsum(-1)
        threshold_B1 = (uniforms_B * cumulative_BV[:, -1])[:, None]
        ids_B = torch.searchsorted(cumulative_BV, threshold_B1, right=True).squeeze(-1)
        ids_B = ids_B.clamp(max=logits_BV.shape[-1] - 1)
    return ids_B, logprobs_BV.gather(-1, ids_B[:, None]).squeeze(-1)


def nucleus(probs_BV: Tensor, top_p: float) -> Tensor:
    """Probabilities with 0 outside the smallest set of likeliest tokens that reaches top_p.

    At least one token is left. Of equally likely tokens the lower id comes first.
    """
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    likelier_BV = torch.nn.functional.pad(sorted_BV.cumsum(-1)[:, :-1], (1, 0))
    kept_BV = sorted_BV.masked_fill(likelier_BV >= top_p, 0.0)
    return torch.zeros_like(probs_BV).scatter(-1, order_BV, kept_BV)


def uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """float64 [len(seeds), count]: each row from its own counter-based stream, on any device."""
    rows = [np.random.Generator(np.random.Philox(seed)).random(count) for seed in seeds]
    return torch.from_numpy(np.stack(rows))
