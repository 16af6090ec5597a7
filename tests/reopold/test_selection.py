"""Exact selection against a sort, across processes, and beyond what a quantile takes."""

from __future__ import annotations

import math
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

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


def test_more_tokens_than_a_quantile_takes_in_bounded_memory() -> None:
    """Above 2^24 tokens, where torch.quantile refuses; beside the result only blocks are held."""
    count = 2**24 + 1000
    values = torch.rand(count, generator=torch.Generator().manual_seed(1))
    values[::3] = 0.5  # a third of them tie
    valid = torch.ones(count, dtype=torch.bool)
    top_fraction(values[:1000], valid[:1000], 0.2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    keep = top_fraction(values, valid, 0.5)
    seconds = time.perf_counter() - started
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert int(keep.sum()) == -(-count // 2)
    assert values[keep].min() == 0.5
    ties = (values == 0.5).nonzero().flatten()
    kept_ties = keep[ties]
    assert not kept_ties[int(kept_ties.sum()) :].any()  # the first ones, by position
    assert growth < 60, f"{growth:.0f} MB for a result of 17 MB ({seconds:.1f} s)"


def _rank(rank: int, folder: str, values: list[list[float]], valid: list[list[bool]]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    keep = top_fraction(
        torch.tensor(values[rank], dtype=torch.float32),
        torch.tensor(valid[rank], dtype=torch.bool),
        0.4,
    )
    chance = random_scores(len(values[rank]), seed=5, step=6, device="cpu")
    try:
        broken = torch.tensor([math.nan] if rank == 1 else [], dtype=torch.float32)
        top_fraction(broken, torch.ones(len(broken), dtype=torch.bool), 0.5)
        refused = False
    except MissingScore:
        refused = True
    torch.save((keep, chance, refused), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("sizes", [(17, 40), (0, 9), (23, 0), (1, 1)])
def test_two_processes_select_as_one(tmp_path: Path, sizes: tuple[int, int]) -> None:
    """Shards in rank order are the whole; a threshold of one rank alone would keep others."""
    generator = np.random.default_rng(sum(sizes))
    values = [generator.choice([0.0, 1.0, 2.0, 3.0], size=n).tolist() for n in sizes]
    values[1] = [v + 1.0 for v in values[1]]
    valid = [(generator.random(n) < 0.8).tolist() for n in sizes]
    torch.multiprocessing.spawn(  # type: ignore[no-untyped-call]
        _rank, args=(str(tmp_path), values, valid), nprocs=2
    )
    shards = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    whole: Tensor = torch.tensor(values[0] + values[1])
    keep = top_fraction(whole, torch.tensor(valid[0] + valid[1], dtype=torch.bool), 0.4)
    assert torch.equal(torch.cat([shards[0][0], shards[1][0]]), keep)
    chance = random_scores(len(whole), seed=5, step=6, device="cpu")
    assert torch.equal(torch.cat([shards[0][1], shards[1][1]]), chance)
    assert shards[0][2] and shards[1][2]  # a NaN on one rank stops both


def test_random_scores_are_uniform_and_keyed() -> None:
    scores = random_scores(100_000, seed=1, step=2, device="cpu")
    assert scores.dtype == torch.float64 and scores.min() >= 0.0 and scores.max() < 1.0
    assert abs(float(scores.mean()) - 0.5) < 0.01
    assert not torch.equal(scores, random_scores(100_000, seed=1, step=3, device="cpu"))
    assert not torch.equal(scores, random_scores(100_000, seed=2, step=2, device="cpu"))
