"""Diagnostics against brute force and cases done by hand."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reopold.diagnostics import (
    EPS,
    LOG_RATIO_LIMIT,
    REWARD_EDGES,
    ratio_diagnostics,
    repetition,
    reward_diagnostics,
)


@settings(max_examples=60)
@given(data=st.data())
def test_reward_diagnostics_by_brute_force(data: Any) -> None:
    fewest = data.draw(st.sampled_from([0, 25]))  # half of the examples fill the tenths
    rewards = data.draw(st.lists(st.floats(-20, 8, width=32), min_size=fewest, max_size=60))
    entropy = [data.draw(st.sampled_from([0.0, 0.1, 0.5, 2.0])) for _ in rewards]
    valid = [data.draw(st.sampled_from([True, True, True, False])) for _ in rewards]
    found = reward_diagnostics(
        torch.tensor(rewards, dtype=torch.float32),
        torch.tensor(entropy),
        torch.tensor(valid, dtype=torch.bool),
        floor=-1.5,
    )
    mine = [(e, i, r) for i, (r, e, v) in enumerate(zip(rewards, entropy, valid, strict=True)) if v]
    counts = [0] * (len(REWARD_EDGES) + 1)
    for _, _, reward in mine:
        counts[sum(reward >= edge for edge in REWARD_EDGES)] += 1
    assert found["reward_counts"] == counts and found["floor"] == -1.5
    small = sum(abs(r) < np.float32(EPS) for *_, r in mine) / len(mine) if mine else 0.0
    assert found["small_fraction"] == pytest.approx(small)
    json.dumps(found, allow_nan=False)
    if len(mine) < 10:
        assert found["abs_reward_by_entropy"] == found["abs_share_by_entropy"] == []
        return
    ordered = [abs(r) for *_, r in sorted(mine)]
    size, extra = divmod(len(ordered), 10)
    ends = [0]
    for part in range(10):
        ends.append(ends[-1] + size + (part < extra))
    parts = [ordered[a:b] for a, b in pairwise(ends)]
    assert found["abs_reward_by_entropy"] == pytest.approx([sum(p) / len(p) for p in parts])
    total = sum(ordered)
    shares = [sum(p) / total if total else 0.0 for p in parts]
    assert found["abs_share_by_entropy"] == pytest.approx(shares)


def test_tenths_by_entropy_by_hand() -> None:
    """20 tokens, the most uncertain first: |R| of token i is i, entropy falls with i."""
    size = torch.arange(20.0)
    rewards = size * torch.tensor([1.0, -1.0]).repeat(10)
    valid = torch.ones(20, dtype=torch.bool)
    found = reward_diagnostics(rewards, -size, valid, floor=None)
    assert found["abs_reward_by_entropy"] == [18.5 - 2 * part for part in range(10)]
    shares = [(37 - 4 * part) / 190 for part in range(10)]
    assert found["abs_share_by_entropy"] == pytest.approx(shares)
    tied = reward_diagnostics(rewards, torch.zeros(20), valid, floor=None)  # ties by position
    assert tied["abs_reward_by_entropy"] == [0.5 + 2 * part for part in range(10)]
    silent = reward_diagnostics(torch.zeros(20), size, valid, floor=None)
    assert silent["abs_share_by_entropy"] == silent["abs_reward_by_entropy"] == [0.0] * 10
    assert silent["small_fraction"] == 1.0


def test_what_counts_as_small_and_where_the_bins_lie() -> None:
    assert EPS == 0.01
    rewards = torch.tensor([0.009, -0.009, 0.011, -3.0])
    found = reward_diagnostics(rewards, rewards, torch.ones(4, dtype=torch.bool), floor=None)
    assert found["small_fraction"] == 0.5
    assert (REWARD_EDGES[0], REWARD_EDGES[1], REWARD_EDGES[-1]) == (-12.0, -11.75, 4.0)


def test_the_histogram_has_a_bin_on_either_side() -> None:
    rewards = torch.tensor([-100.0, -12.0, -0.1, 0.0, 0.3, 4.0])
    found = reward_diagnostics(rewards, rewards, torch.ones(6, dtype=torch.bool), floor=None)
    filled = [i for i, count in enumerate(found["reward_counts"]) if count]
    assert filled == [0, 1, 48, 49, 50, 65] and found["floor"] is None


def test_ratios_of_kept_tokens() -> None:
    new = torch.tensor([-1.0, -2.0, math.nan])
    old = torch.tensor([-1.0, -2.0 - math.log(2), -1.0])
    found = ratio_diagnostics(new, old, torch.tensor([True, True, False]))
    assert found["train/ratio_mean"] == pytest.approx(1.5, rel=1e-6)
    assert found["train/ratio_std"] == pytest.approx(0.5, rel=1e-6)
    assert found["train/ratio_min"] == 1.0 and found["train/ratio_max"] == pytest.approx(2.0)
    assert found["train/kl_old"] == pytest.approx((1 - math.log(2)) / 2, rel=1e-6)
    wild = ratio_diagnostics(
        torch.tensor([0.0, -math.inf]), torch.tensor([-math.inf, 0.0]), torch.ones(2).bool()
    )
    json.dumps(wild, allow_nan=False)
    assert wild["train/ratio_max"] == pytest.approx(math.exp(LOG_RATIO_LIMIT))
    none = ratio_diagnostics(new, old, torch.zeros(3, dtype=torch.bool))
    assert none["train/ratio_mean"] == none["train/ratio_min"] == none["train/ratio_max"] == 1.0
    assert none["train/ratio_std"] == none["train/kl_old"] == 0.0


@settings(max_examples=100)
@given(
    responses=st.lists(st.lists(st.integers(0, 3), max_size=14), max_size=6), n=st.integers(1, 4)
)
def test_repetition_by_brute_force(responses: list[list[int]], n: int) -> None:
    shares = []
    for ids in responses:
        grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
        if grams:
            shares.append(1 - len(set(grams)) / len(grams))
    expected = sum(shares) / len(shares) if shares else 0.0
    assert repetition(responses, n) == pytest.approx(expected)


def test_repetition_by_hand() -> None:
    assert repetition([[1, 2, 3, 4]]) == 0.0
    assert repetition([[7] * 8]) == pytest.approx(4 / 5)  # five 4-grams, one of them new
    assert repetition([[1, 2, 3], []]) == 0.0
    # Another response's n-grams do not count; base 2^16 would wrap around after four tokens.
    assert repetition([[65_535, 1, 2, 3]] * 2) == 0.0
    assert repetition([[10_000_000, 151_000, 5, 6]] * 2) == 0.0
    assert repetition([]) == repetition([[]]) == 0.0
