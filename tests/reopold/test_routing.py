"""Several teachers as one, and scores made while the rest is still sampled."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reopold.divergences import TopK
from reopold.rewards import MissingScore
from reopold.rollouts import Needs, Rollout
from reopold.scoring import Scores
from reopold.teachers.base import SAMPLED_ONLY
from reopold.teachers.routing import RoutedTeacher, ScoringAhead, assemble


def rollouts_of(lengths: Sequence[int], sources: Sequence[str] | None = None) -> list[Rollout]:
    named = sources or [""] * len(lengths)
    return [
        Rollout([1], [100 * i + t for t in range(length)], [], "stop", source=source)
        for i, (length, source) in enumerate(zip(lengths, named, strict=True))
    ]


def scores_of(rollouts: Sequence[Rollout], shift: float = 0.0, full: bool = True) -> Scores:
    """Scores that name their token, so that a wrong place shows."""
    ids = torch.tensor([t for r in rollouts for t in r.response_ids], dtype=torch.float32)
    top = TopK(torch.stack([ids, ids + 1], -1).long(), torch.stack([-ids, -ids - 1], -1))
    return Scores(shift - ids, ids / 7 if full else None, top if full else None)


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    full=st.booleans(),
)
def test_pieces_in_any_order_make_the_whole(lengths: list[int], seed: int, full: bool) -> None:
    rollouts, shuffled = rollouts_of(lengths), list(range(len(lengths)))
    random.Random(seed).shuffle(shuffled)
    cut = seed % (len(shuffled) + 1)
    parts = [part for part in (shuffled[:cut], shuffled[cut:]) if part]
    pieces = [(part, scores_of([rollouts[p] for p in part], full=full)) for part in parts]
    found, whole = assemble(rollouts, pieces), scores_of(rollouts, full=full)
    assert torch.equal(found.logprobs_N, whole.logprobs_N)
    if not full:
        assert found.entropy_N is None and found.distribution is None
        return
    assert found.entropy_N is not None and whole.entropy_N is not None
    assert torch.equal(found.entropy_N, whole.entropy_N)
    assert isinstance(found.distribution, TopK) and isinstance(whole.distribution, TopK)
    assert torch.equal(found.distribution.ids_NK, whole.distribution.ids_NK)
    assert torch.equal(found.distribution.logprobs_NK, whole.distribution.logprobs_NK)


def test_a_rollout_scored_by_nobody_or_twice_is_an_error() -> None:
    rollouts = rollouts_of([2, 3])
    with pytest.raises(MissingScore, match="1 of 2"):
        assemble(rollouts, [([0], scores_of(rollouts[:1]))])
    with pytest.raises(MissingScore):
        assemble(rollouts, [([0, 1], scores_of(rollouts)), ([1], scores_of(rollouts[1:]))])


class Recorder:
    """A teacher that notes what it was asked."""

    def __init__(self, shift: float = 0.0, concurrent: bool = False) -> None:
        self.shift, self.concurrent, self.closed = shift, concurrent, False
        self.asked: list[list[Rollout]] = []
        self.started = threading.Event()

    def score(self, rollouts: Sequence[Rollout], needs: Needs = SAMPLED_ONLY) -> Scores:
        self.asked.append(list(rollouts))
        self.started.set()
        return scores_of(rollouts, self.shift)

    def close(self) -> None:
        self.closed = True


def test_each_source_goes_to_its_teacher() -> None:
    rollouts = rollouts_of([2, 0, 3, 1], ["maths", "", "code", "maths"])
    default, maths = Recorder(), Recorder(shift=0.5, concurrent=True)
    routed = RoutedTeacher(default, {"maths": maths, "algebra": maths})
    found = routed.score(rollouts)
    assert [r.source for r in maths.asked[0]] == ["maths", "maths"]
    assert [r.source for r in default.asked[0]] == ["", "code"]
    plain = scores_of(rollouts).logprobs_N
    shift = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0, 0.5])
    assert torch.equal(found.logprobs_N, plain + shift)
    assert routed.concurrent and len(routed.teachers) == 2
    routed.close()
    assert default.closed and maths.closed


def test_scores_made_ahead_are_those_made_at_once() -> None:
    rollouts = rollouts_of([i % 4 for i in range(40)])
    teacher = Recorder(concurrent=True)
    ahead = ScoringAhead(teacher, SAMPLED_ONLY)
    order = list(range(40))
    random.Random(3).shuffle(order)
    for n, place in enumerate(order):
        ahead.add(place, rollouts[place])
        if n == 20:
            assert teacher.started.wait(5)  # before the rest is there
    assert torch.equal(ahead.collect(rollouts).logprobs_N, scores_of(rollouts).logprobs_N)
    assert len(teacher.asked) == 3


def test_a_teachers_failure_in_the_background_is_raised() -> None:
    class Failing(Recorder):
        def score(self, rollouts: Sequence[Rollout], needs: Needs = SAMPLED_ONLY) -> Any:
            raise MissingScore("token 3 has no score")

    ahead = ScoringAhead(Failing(), SAMPLED_ONLY)
    rollouts = rollouts_of([1] * 20)
    for place, rollout in enumerate(rollouts):
        ahead.add(place, rollout)
    with pytest.raises(MissingScore, match="token 3"):
        ahead.collect(rollouts)
