"""Tokens that an environment said count for nothing, whatever their scores are; nor do sequences
whose environment broke, in their group either."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reopold.divergences import TopK
from reopold.objectives import build
from reopold.outcomes import group_advantages, informative
from tests.reopold.cases import NAMES, Case, random_case
from tests.reopold.test_invariance import DRAWN, LENGTHS, close

GARBAGE = [math.nan, math.inf, -math.inf, 0.0, -1e30, 7.5]


def with_observed(case: Case, runs: list[int], garbage: list[float]) -> tuple[Case, Tensor]:
    """The case with `runs[i]` observed tokens before its i-th token, of the same sequence; their
    signals are garbage. Second, the places of the case's own tokens."""
    count = torch.tensor(runs)
    places = torch.arange(len(runs)) + count.cumsum(0)
    own = torch.arange(len(runs)).repeat_interleave(count + 1)
    wide = case.at(own)
    seen_N = torch.ones(len(own), dtype=torch.bool)
    seen_N[places] = False
    values = torch.tensor((garbage * len(own))[: len(own)], dtype=torch.float64)
    fields: dict[str, Any] = {
        field.name: torch.where(seen_N, values, value)
        for field in dataclasses.fields(wide.batch)
        if isinstance(value := getattr(wide.batch, field.name), Tensor)
        and value.is_floating_point()
        and field.name.endswith("_N")
    }
    top = wide.batch.teacher_distribution
    if isinstance(top, TopK):
        noise_N1 = torch.where(seen_N, values, 0.0)[:, None]
        fields["teacher_distribution"] = TopK(top.ids_NK, top.logprobs_NK + noise_N1)
    batch = dataclasses.replace(wide.batch, valid_N=~seen_N, **fields)
    return dataclasses.replace(wide, batch=batch), places


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None)
@given(
    lengths=LENGTHS,
    seed=st.integers(0, 99),
    garbage=st.lists(st.sampled_from(GARBAGE), min_size=1, max_size=5),
    data=st.data(),
)
def test_their_scores_change_neither_credit_nor_gradient(
    name: str, lengths: tuple[int, ...], seed: int, garbage: list[float], data: Any
) -> None:
    case = random_case(seed, lengths, name)
    runs = [data.draw(st.sampled_from([0, 0, 0, 1, 3])) for _ in case.targets_N]
    wide, places = with_observed(case, runs, garbage)
    seen_N = ~wide.batch.valid_N
    credit = wide.credit(name)
    assert not (credit.keep_N & seen_N).any()
    hidden, weight = wide.gradients(name, credit)
    assert torch.equal(hidden[seen_N], torch.zeros_like(hidden[seen_N]))
    assert hidden.isfinite().all() and weight.isfinite().all()
    quiet, _ = with_observed(case, runs, [-1.0])
    assert all(
        torch.equal(a, b)
        for a, b in zip((hidden, weight), quiet.gradients(name, quiet.credit(name)), strict=True)
    )
    if name in DRAWN:
        return  # drawn by position, observed ones included
    narrow = case.credit(name)
    assert torch.equal(credit.keep_N[places], narrow.keep_N)
    assert credit.metrics == pytest.approx(narrow.metrics, rel=1e-12)
    assert close((hidden[places], weight), case.gradients(name, narrow))


@pytest.mark.parametrize("level", ["token", "sequence"])
@given(data=st.data(), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_weights_of_the_sampler_are_those_of_sampled_tokens(
    level: Any, data: Any, seed: int
) -> None:
    case = random_case(seed)
    noise_N = 0.3 * torch.randn(len(case.targets_N), dtype=torch.float64)
    sampler_N = case.batch.student_logprobs_N + noise_N
    case = dataclasses.replace(
        case, batch=dataclasses.replace(case.batch, sampler_logprobs_N=sampler_N)
    )
    runs = [data.draw(st.sampled_from([0, 0, 2])) for _ in case.targets_N]
    wide, places = with_observed(case, runs, [math.nan, 3.0])
    objective = build("opd", sampler_weights=level)
    narrow, found = objective(case.batch, 0), objective(wide.batch, 0)
    assert torch.equal(found.advantages_N[places], narrow.advantages_N)
    assert found.metrics == pytest.approx(narrow.metrics)


def without(case: Case, broken: set[int]) -> tuple[Case, Tensor]:
    """The case with these sequences gone, and the rows of what is left."""
    batch = case.batch
    assert batch.reward_S is not None and batch.group_S is not None
    stays_S = torch.tensor([s not in broken for s in range(len(batch.reward_S))])
    rows = stays_S[batch.sequence_N].nonzero().squeeze(-1)
    less = case.at(rows)
    renumbered = (stays_S.cumsum(0) - 1)[less.batch.sequence_N]
    batch = dataclasses.replace(
        less.batch,
        sequence_N=renumbered,
        reward_S=batch.reward_S[stays_S],
        group_S=batch.group_S[stays_S],
    )
    return dataclasses.replace(less, batch=batch), rows


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DRAWN])
@settings(max_examples=10, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 99), data=st.data())
def test_a_broken_sequence_might_as_well_not_be_there(
    name: str, lengths: tuple[int, ...], seed: int, data: Any
) -> None:
    case = random_case(seed, lengths, name)
    broken = data.draw(st.sets(st.integers(0, len(lengths) - 1), max_size=len(lengths) - 1))
    batch = case.batch
    assert batch.reward_S is not None
    gone_S = torch.tensor([s in broken for s in range(len(lengths))])
    hurt = dataclasses.replace(
        case,
        batch=dataclasses.replace(
            batch,
            valid_N=~gone_S[batch.sequence_N],
            reward_S=batch.reward_S.masked_fill(gone_S, math.nan),
        ),
    )
    less, rows = without(case, broken)
    found, wanted = hurt.credit(name), less.credit(name)
    assert torch.equal(found.keep_N[rows], wanted.keep_N)
    assert found.keep_N.sum() == wanted.keep_N.sum()
    assert torch.allclose(found.advantages_N[rows], wanted.advantages_N, atol=1e-12, rtol=1e-12)
    assert found.metrics == pytest.approx(wanted.metrics, rel=1e-12)
    hidden, weight = hurt.gradients(name, found)
    assert close((hidden[rows], weight), less.gradients(name, wanted))


def test_a_group_of_which_all_broke_is_worth_nothing() -> None:
    reward_S = torch.tensor([1.0, 0.0, math.nan, math.nan, 1.0, math.nan])
    group_S = torch.tensor([0, 0, 1, 1, 2, 2])
    found = group_advantages(reward_S, group_S)
    assert found.tolist() == pytest.approx([0.5 / 0.5001, -0.5 / 0.5001, 0.0, 0.0, 0.0, 0.0])
    assert informative(reward_S, group_S).tolist() == [True, True, False, False, False, False]
