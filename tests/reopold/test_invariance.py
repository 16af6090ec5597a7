"""The gradient knows nothing of how a step was cut, padded, ordered or spread, to 1e-10."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reopold.distributed import all_sum
from reopold.objectives import build
from reopold.rollouts import Credit
from tests.reopold.cases import NAMES, Case, random_case

#: Masks that are drawn by position follow it: reordering tokens draws others.
DRAWN = {"random mask", "trust_region"}
LENGTHS = st.lists(st.integers(1, 5), min_size=4, max_size=8).map(lambda x: tuple(x[: len(x) & ~1]))


def close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    return all(torch.allclose(a, b, atol=1e-10) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(lengths=LENGTHS, seed=st.integers(0, 99), data=st.data())
def test_micro_batches_and_chunks(
    name: str, lengths: tuple[int, ...], seed: int, data: Any
) -> None:
    case = random_case(seed, lengths, name)
    credit = case.credit(name)
    whole = case.gradients(name, credit)
    part_N = torch.tensor([data.draw(st.integers(0, 2)) for _ in case.targets_N])
    hidden, weight = torch.zeros_like(whole[0]), torch.zeros_like(whole[1])
    for part in range(3):
        rows = (part_N == part).nonzero().squeeze(-1)
        chunk = data.draw(st.sampled_from([1, 2, 5, None]))
        found = case.gradients(
            name, credit, rows=rows, normaliser=credit.keep_N.sum(), chunk_tokens=chunk
        )
        hidden, weight = hidden + found[0], weight + found[1]
    assert close((hidden, weight), whole)


def padded(case: Case, length: int, places: Tensor) -> Case:
    """The case's tokens at `places` of `length` rows; the rest is invalid and holds rubbish."""
    rows = torch.zeros(length, dtype=torch.long)
    rows[places] = torch.arange(len(places))
    wide = case.at(rows)
    pad_N = torch.ones(length, dtype=torch.bool)
    pad_N[places] = False
    rubbish = {
        field.name: getattr(wide.batch, field.name).masked_fill(pad_N, math.nan)
        for field in dataclasses.fields(wide.batch)
        if isinstance(value := getattr(wide.batch, field.name), Tensor)
        and value.is_floating_point()
        and field.name.endswith("_N")
    }
    return dataclasses.replace(
        wide, batch=dataclasses.replace(wide.batch, valid_N=~pad_N, **rubbish)
    )


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DRAWN])
@pytest.mark.parametrize("side", ["left", "right", "both"])
@settings(max_examples=10)
@given(lengths=LENGTHS, seed=st.integers(0, 99), amount=st.integers(1, 9))
def test_padding(name: str, side: str, lengths: tuple[int, ...], seed: int, amount: int) -> None:
    """Padding on any side, holding NaN, changes neither gradient nor mask."""
    case = random_case(seed, lengths, name)
    n = len(case.targets_N)
    # Each sequence gets its own padding: that is what a padded batch of ragged responses is.
    before = amount if side in ("left", "both") else 0
    after = amount if side in ("right", "both") else 0
    places = torch.arange(n) + case.batch.sequence_N * (before + after) + before
    wide = padded(case, n + len(lengths) * (before + after), places)
    credit = case.credit(name)
    wide_credit = wide.credit(name)
    assert torch.equal(wide_credit.keep_N[places], credit.keep_N)
    assert wide_credit.keep_N.sum() == credit.keep_N.sum()
    hidden, weight = wide.gradients(name, wide_credit)
    assert close((hidden[places], weight), case.gradients(name, credit))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DRAWN])
@settings(max_examples=10)
@given(lengths=LENGTHS, seed=st.integers(0, 99), data=st.data())
def test_order_of_the_sequences(name: str, lengths: tuple[int, ...], seed: int, data: Any) -> None:
    case = random_case(seed, lengths, name)
    order = data.draw(st.permutations(range(len(lengths))))
    rows = torch.cat([(case.batch.sequence_N == s).nonzero().squeeze(-1) for s in order])
    other = case.at(rows)
    hidden, weight = case.gradients(name, case.credit(name))
    assert close(other.gradients(name, other.credit(name)), (hidden[rows], weight))


@pytest.mark.parametrize("step", [0, 9])
def test_a_vanishing_floor_and_all_tokens_are_plain_distillation(step: int) -> None:
    case = random_case(1)
    relaxed = build("reopold", lam=1e-12, beta=1.0, switch_step=5)(case.batch, step)
    plain = build("opd")(case.batch, step)
    assert close(case.gradients("opd", relaxed), case.gradients("opd", plain))


@pytest.mark.parametrize(
    "name",
    ["exploration", "refinement", "odds", "opd", "iw_opd", "trust_region", "gkd forward top",
     "gkd reverse top", "gkd js top"],
)  # fmt: skip
def test_a_teacher_that_is_the_student_gives_no_reward_and_no_gradient(name: str) -> None:
    case = random_case(2, method=name, drift=0.0)
    logprobs = torch.log_softmax(case.hidden_ND @ case.weight_VD.T, -1)
    values, ids = logprobs.topk(3, -1)
    batch = dataclasses.replace(
        case.batch,
        teacher_logprobs_N=case.batch.student_logprobs_N,
        teacher_distribution=dataclasses.replace(
            case.batch.teacher_distribution,  # type: ignore[type-var]
            ids_NK=ids,
            logprobs_NK=values,
        ),
    )
    case = dataclasses.replace(case, batch=batch)
    credit = case.credit(name)
    assert not credit.advantages_N.any()
    for gradient in case.gradients(name, credit):
        assert gradient.abs().max() < 1e-12


def shard(case: Case, ranks: tuple[int, ...], rank: int) -> Case:
    """The sequences of a rank (rank-major order is the order of the whole)."""
    first, last = sum(ranks[:rank]), sum(ranks[: rank + 1])
    ids = case.batch.sequence_N
    mine = case.at(((ids >= first) & (ids < last)).nonzero().squeeze(-1))
    assert case.batch.reward_S is not None and case.batch.group_S is not None
    batch = dataclasses.replace(
        mine.batch,
        sequence_N=mine.batch.sequence_N - first,
        reward_S=case.batch.reward_S[first:last],
        group_S=case.batch.group_S[first:last],
    )
    return dataclasses.replace(mine, batch=batch)


def on_rank(rank: int, folder: str, ranks: tuple[int, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found: dict[str, tuple[Tensor, Tensor, int]] = {}
    for name in NAMES:
        mine = shard(whole_case(name), ranks, rank)
        credit: Credit = mine.credit(name)
        kept = all_sum(credit.keep_N.sum())
        hidden, weight = mine.gradients(name, credit, normaliser=kept)
        found[name] = hidden, all_sum(weight), int(credit.keep_N.sum())
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def whole_case(name: str) -> Case:
    """Entropies of the first four sequences are all below those of the rest: a threshold of one
    rank alone would keep tokens of the first that the whole does not."""
    case = random_case(7, (3, 5, 2, 4, 6, 1, 3, 2), name)
    entropy = case.batch.entropy_N + 3.0 * (case.batch.sequence_N >= 4)
    return dataclasses.replace(case, batch=dataclasses.replace(case.batch, entropy_N=entropy))


@pytest.mark.parametrize("ranks", [(4, 4), (2, 6)])
def test_two_processes_are_one(tmp_path: Path, ranks: tuple[int, ...]) -> None:
    torch.multiprocessing.spawn(  # type: ignore[no-untyped-call]
        on_rank, args=(str(tmp_path), ranks), nprocs=2
    )
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name in NAMES:
        case = whole_case(name)
        hidden, weight = case.gradients(name, case.credit(name))
        assert close((torch.cat([first[name][0], second[name][0]]),), (hidden,)), name
        assert close((first[name][1],), (weight,)), name
        assert torch.equal(first[name][1], second[name][1])
    assert first["refinement"][2] == 0 and second["refinement"][2] > 0
