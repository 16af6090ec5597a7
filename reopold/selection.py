"""The top fraction of all tokens of an optimiser step, exactly, whatever their number.

Axes: N response tokens of this rank, flattened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from reopold.distributed import all_sum, first_index
from reopold.rewards import MissingScore

#: Tokens that are looked at together: what bounds the memory beside input and result.
BLOCK = 1 << 18
#: Bits of a key that one histogram tells apart.
DIGIT_BITS = 16


def top_fraction(values_N: Tensor, valid_N: Tensor, fraction: float) -> Tensor:
    """Mask of the `ceil(fraction * valid)` largest values among the valid tokens of all ranks.

    A radix select: each value becomes an integer of the same order, and a histogram per 16 bits,
    summed over the ranks, finds the threshold to the last bit. Ties at the threshold go by position
    (rank, then index), so the count is exact. A threshold local to a micro-batch or a GPU keeps
    other tokens (ms-swift PR 5270), pads inside a quantile shift it (trl #3709), and torch.quantile
    refuses more than 2^24 elements.

    Args:
        values_N: any float dtype, the same on all ranks; infinities are values like others, and
            those at invalid positions do not matter.
        valid_N: bool, the tokens to choose among; a rank may have none.
        fraction: in (0, 1], the same on all ranks.

    Returns:
        bool [N]; all False where no rank has a valid token.

    Raises:
        ValueError: the fraction is out of range.
        MissingScore: a valid value is NaN, on any rank.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"the fraction must lie in (0, 1], got {fraction}")
    _refuse_nan(values_N, valid_N)
    # As written in the recipe: 0.07 is 7/100, not the float above it, so 7 of 100 and not 8.
    total = int(all_sum(valid_N.count_nonzero()))
    wanted = math.ceil(Fraction(repr(float(fraction))) * total)
    if wanted == 0:
        return torch.zeros_like(valid_N)
    threshold, ties = _threshold(values_N, valid_N, wanted)
    keep_N = torch.zeros_like(valid_N)
    tied_here = 0
    for rows, keys_B in _keys(values_N):
        keep_N[rows] = valid_N[rows] & (keys_B > threshold)
        tied_here += int((valid_N[rows] & (keys_B == threshold)).sum())
    before, _ = first_index(tied_here, values_N.device)
    left = min(max(ties - before, 0), tied_here)
    for rows, keys_B in _keys(values_N):
        if left == 0:
            break
        tied = (valid_N[rows] & (keys_B == threshold)).nonzero().squeeze(-1)[:left]
        keep_N[rows.start + tied] = True
        left -= len(tied)
    return keep_N


def random_scores(count: int, *, seed: int, step: int, device: torch.device | str) -> Tensor:
    """A uniform number for each of this rank's tokens, float64 in [0, 1).

    They depend on seed, step and the token's position among all ranks' tokens, not on how those
    are split over the ranks.
    """
    first, _ = first_index(count, device)
    stream = np.random.Philox(key=[seed, step])
    stream.advance(first // 4)  # a counter gives four numbers
    numbers = np.random.Generator(stream).random(first % 4 + count)[first % 4 :]
    return torch.from_numpy(numbers).to(device)


def _threshold(values_N: Tensor, valid_N: Tensor, wanted: int) -> tuple[int, int]:
    """The key of the `wanted`-th largest value, and how many tokens with that key are wanted."""
    bits = 64 if values_N.dtype == torch.float64 else 32
    known, prefix = 0, 0  # the highest `known` bits of the threshold are `prefix`
    while known < bits:
        shift = bits - known - DIGIT_BITS
        counts = torch.zeros(1 << DIGIT_BITS, dtype=torch.int64, device=values_N.device)
        for rows, keys_B in _keys(values_N):
            mine_B = valid_N[rows]
            if known:
                mine_B = mine_B & ((keys_B >> (shift + DIGIT_BITS)) == prefix)
            digits_B = (keys_B[mine_B] >> shift) & ((1 << DIGIT_BITS) - 1)
            if not known:  # the first digit carries the sign
                digits_B = digits_B ^ (1 << (DIGIT_BITS - 1))
            counts += torch.bincount(digits_B, minlength=1 << DIGIT_BITS)
        from_top = all_sum(counts).flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, wanted))
        wanted -= int(from_top[place - 1]) if place else 0
        digit = (1 << DIGIT_BITS) - 1 - place
        if not known:
            digit -= 1 << (DIGIT_BITS - 1)
        prefix = (prefix << DIGIT_BITS) + digit
        known += DIGIT_BITS
    return prefix, wanted


def _keys(values_N: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Block after block, int64 keys in the order of the values: the bits of a float, with those
    below the sign turned over where it is negative. -0.0 equals 0.0."""
    for start in range(0, len(values_N), BLOCK):
        rows = slice(start, min(start + BLOCK, len(values_N)))
        block = values_N[rows]
        wide = block.dtype == torch.float64
        block = (block if wide else block.float()) + 0.0  # -0.0 + 0.0 is 0.0
        bits = block.view(torch.int64 if wide else torch.int32).long()
        largest = torch.iinfo(torch.int64 if wide else torch.int32).max
        yield rows, torch.where(bits < 0, bits ^ largest, bits)


def _refuse_nan(values_N: Tensor, valid_N: Tensor) -> None:
    broken, first = 0, -1
    for start in range(0, len(values_N), BLOCK):
        rows = slice(start, start + BLOCK)
        places = (values_N[rows].isnan() & valid_N[rows]).nonzero()
        if len(places) and first < 0:
            first = start + int(places[0, 0])
        broken += len(places)
    everywhere = int(all_sum(torch.tensor(broken, device=values_N.device)))
    if everywhere:  # on every rank alike: none is left waiting for the others
        where = f"; the first here is token {first}" if first >= 0 else ""
        raise MissingScore(f"{everywhere} values to select by are NaN{where}")
