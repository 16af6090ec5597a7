"""Exact selection against a sort, across processes, and beyond what a quantile takes."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from reopold.distributed import all_sum, first_index
from reopold.rewards import MissingScore
from reopold.selection import random_scores, top_fraction

VALUES = st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0, 1e-30, math.inf, -math.inf, 3.0, 1e30])


def by_sorting(values: list[float], valid: list[bool], wanted: int) -> list[int]:
    """Indices of the `wanted` largest, ties by position."""
    candidates = [i for i, ok in enumerate(valid) if ok]
    return sorted(sorted(candidates, key=lambda i: (-values[i], i))[:wanted])


@settings(max_examples=150)
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_exact_with_ties_broken_by_position(data: Any, dtype: torch.dtype) -> None:
    drawn = data.draw(st.lists(VALUES | st.floats(-4, 4), min_size=0, max_size=60))
    values = torch.tensor(drawn, dtype=dtype)
    valid = [data.draw(st.booleans()) for _ in drawn]
    percent = data.draw(st.integers(1, 100))
    keep = top_fraction(values, torch.tensor(valid, dtype=torch.bool), percent / 100)
    wanted = -(-percent * sum(valid) // 100)
    found = [i for i, kept in enumerate(keep.tolist()) if kept]
    assert found == by_sorting(values.tolist(), valid, wanted)


def test_low_precision_and_long_tails() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5000, generator=generator).exp().bfloat16()
    keep = top_fraction(values, torch.ones(5000, dtype=torch.bool), 0.2)
    expected = by_sorting(values.tolist(), [True] * 5000, 1000)
    assert keep.nonzero().flatten().tolist() == expected


def test_negative_zero_ties_with_zero() -> None:
    values = torch.tensor([-0.0, 0.0, -0.0, -1.0])
    valid = torch.ones(4, dtype=torch.bool)
    assert top_fraction(values, valid, 0.25).tolist() == [True, False, False, False]
    assert top_fraction(values.double(), valid, 0.5).tolist() == [True, True, False, False]


def test_the_fraction_is_the_number_that_was_written() -> None:
    """0.07 * 100 is 7.000000000000001 in floats: 7 tokens, not 8."""
    assert 0.07 * 100 > 7
    assert top_fraction(torch.arange(100.0), torch.ones(100).bool(), 0.07).sum() == 7
    assert top_fraction(torch.arange(5.0), torch.ones(5).bool(), 1e-9).tolist() == [False] * 4 + [
        True
    ]


def test_values_at_invalid_positions_do_not_matter_and_nan_stops() -> None:
    values = torch.tensor([math.nan, 1.0, 2.0, math.inf])
    valid = torch.tensor([False, True, True, False])
    assert top_fraction(values, valid, 0.5).tolist() == [False, False, True, False]
    assert not top_fraction(values, torch.zeros(4, dtype=torch.bool), 0.5).any()
    with pytest.raises(MissingScore, match=r"1 values .* token 0"):
        top_fraction(values, ~torch.zeros(4, dtype=torch.bool), 0.5)
    for fraction in (0.0, 1.01, math.nan):
        with pytest.raises(ValueError, match="fraction"):
            top_fraction(values, valid, fraction)


def many_tokens() -> tuple[Tensor, Tensor]:
    """More than 2^24, a third of them tied at the median."""
    count = 2**24 + 1000
    values = torch.rand(count, generator=torch.Generator().manual_seed(1))
    values[::3] = 0.5
    return values, torch.ones(count, dtype=torch.bool)


def test_more_tokens_than_a_quantile_takes() -> None:
    values, valid = many_tokens()
    keep = top_fraction(values, valid, 0.5)
    assert int(keep.sum()) == -(-len(values) // 2)
    assert values[keep].min() == 0.5
    ties = (values == 0.5).nonzero().flatten()
    kept_ties = keep[ties]
    assert not kept_ties[int(kept_ties.sum()) :].any()  # the first ones, by position


def _memory(_: int, folder: str) -> None:
    def megabytes(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

    torch.set_num_threads(1)
    values, valid = many_tokens()
    top_fraction(values[:1000], valid[:1000], 0.2)
    before = megabytes("VmRSS")
    top_fraction(values, valid, 0.5)
    torch.save(megabytes("VmHWM") - before, f"{folder}/growth.pt")


def test_memory_beside_the_result_is_bounded(tmp_path: Path) -> None:
    """In a process of its own: a peak that another test left behind would hide this one.
    (The peak of getrusage will not do: a child inherits its parent's.)"""
    spawn(_memory, args=(str(tmp_path),), nprocs=1)
    growth = torch.load(tmp_path / "growth.pt")
    assert 10 < growth < 60, f"{growth:.0f} MB for a result of 17 MB"


Shards = list[tuple[list[float], list[bool]]]


def _rank(rank: int, folder: str, cases: list[Shards]) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    found = []
    for shards in cases:
        values, valid = shards[rank]
        keep = top_fraction(torch.tensor(values), torch.tensor(valid, dtype=torch.bool), 0.4)
        chance = random_scores(len(values), seed=5, step=6, device="cpu")
        mine = torch.tensor([len(values)])
        total = int(all_sum(mine))
        found.append((keep, chance, first_index(len(values)), total, int(mine)))
    broken = torch.tensor([math.nan] if rank == 1 else [], dtype=torch.float32)
    try:
        top_fraction(broken, torch.ones(len(broken), dtype=torch.bool), 0.5)
        refused = ""
    except MissingScore as error:
        refused = str(error)
    torch.save((found, refused), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def shards_of(sizes: tuple[int, int], valid_share: tuple[float, float]) -> Shards:
    """Many ties, and larger values on rank 1, where a threshold of one rank alone would differ."""
    generator = np.random.default_rng(sum(sizes))
    values = [generator.choice([0.0, 1.0, 2.0, 3.0], size=n) + r for r, n in enumerate(sizes)]
    valid = [generator.random(n) < share for n, share in zip(sizes, valid_share, strict=True)]
    return [(v.tolist(), ok.tolist()) for v, ok in zip(values, valid, strict=True)]


def test_two_processes_select_as_one(tmp_path: Path) -> None:
    """Shards in rank order are the whole: ragged, empty, without a valid token."""
    cases = [
        shards_of(sizes, share)
        for sizes, share in [
            ((17, 40), (0.8, 0.8)),
            ((0, 9), (0.8, 0.8)),
            ((23, 0), (0.8, 0.8)),
            ((1, 1), (1.0, 1.0)),
            ((30, 6), (0.0, 0.9)),
            ((5, 7), (0.0, 0.0)),
        ]
    ]
    spawn(_rank, args=(str(tmp_path), cases), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for case, (first, second) in enumerate(cases):
        values, valid = first[0] + second[0], first[1] + second[1]
        keep = torch.cat([found[rank][0][case][0] for rank in (0, 1)])
        wanted = -(-2 * sum(valid) // 5)
        assert keep.nonzero().flatten().tolist() == by_sorting(values, valid, wanted), case
        chance = torch.cat([found[rank][0][case][1] for rank in (0, 1)])
        assert torch.equal(chance, random_scores(len(values), seed=5, step=6, device="cpu"))
        for rank, start in enumerate((0, len(first[0]))):
            here = len(cases[case][rank][0])  # all_sum gives a new tensor: `mine` is as it was
            assert found[rank][0][case][2:] == ((start, len(values)), len(values), here)
    assert all("1 values" in refused for _, refused in found)  # NaN on one rank stops both
    assert "token 0" in found[1][1]


def test_in_one_process_sums_and_positions_are_its_own() -> None:
    mine = torch.tensor([2, 3])
    total = all_sum(mine)
    assert total.tolist() == [2, 3] and total.data_ptr() != mine.data_ptr()
    assert first_index(7) == (0, 7)


def test_random_scores_are_uniform_and_keyed() -> None:
    scores = random_scores(100_000, seed=1, step=2, device="cpu")
    stream = np.random.Generator(np.random.Philox(key=[1, 2]))
    assert scores.tolist() == stream.random(100_000).tolist()
    assert scores.dtype == torch.float64 and scores.min() >= 0.0 and scores.max() < 1.0
    assert abs(float(scores.mean()) - 0.5) < 0.01
    assert not torch.equal(scores, random_scores(100_000, seed=1, step=3, device="cpu"))
    assert not torch.equal(scores, random_scores(100_000, seed=2, step=2, device="cpu"))
