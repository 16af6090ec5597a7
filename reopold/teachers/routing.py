"""Several teachers as one, and scores that are made while the rest is still sampled.

Axes: N response tokens of rollouts in order, then time.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from reopold.divergences import TopK
from reopold.rewards import MissingScore
from reopold.rollouts import Needs, Rollout
from reopold.scoring import Scores
from reopold.teachers.base import SAMPLED_ONLY, Teacher

#: Finished rollouts that are worth a request of their own.
AHEAD = 16


class RoutedTeacher:
    """Each rollout goes to the teacher of its prompt's source; all others to the default."""

    def __init__(self, default: Teacher, by_source: Mapping[str, Teacher]) -> None:
        self.default, self.by_source = default, dict(by_source)
        self.teachers = list({id(t): t for t in (default, *self.by_source.values())}.values())
        self.concurrent = any(teacher.concurrent for teacher in self.teachers)

    def score(self, rollouts: Sequence[Rollout], needs: Needs = SAMPLED_ONLY) -> Scores:
        """See :class:`reopold.teachers.base.Teacher`."""
        pieces = []
        for teacher in self.teachers:
            places = [
                place
                for place, rollout in enumerate(rollouts)
                if self.by_source.get(rollout.source, self.default) is teacher
            ]
            if places:
                pieces.append((places, teacher.score([rollouts[p] for p in places], needs)))
        return assemble(rollouts, pieces)

    def close(self) -> None:
        for teacher in self.teachers:
            teacher.close()


class ScoringAhead:
    """Scores finished rollouts in the background while the engine samples the rest.

    For teachers that run elsewhere. What is left is scored by :meth:`collect`, and a failure of any
    part is raised there.
    """

    def __init__(self, teacher: Teacher, needs: Needs) -> None:
        self.teacher, self.needs = teacher, needs
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="teacher")
        self.waiting: list[tuple[int, Rollout]] = []
        self.asked: list[tuple[list[int], Future[Scores]]] = []

    def add(self, place: int, rollout: Rollout) -> None:
        """Note a finished rollout (an engine's `on_finished`)."""
        self.waiting.append((place, rollout))
        if len(self.waiting) >= AHEAD:
            self._ask()

    def collect(self, rollouts: Sequence[Rollout]) -> Scores:
        """Scores of all rollouts of the step, in their order."""
        try:
            if self.waiting:
                self._ask()
            return assemble(rollouts, [(places, job.result()) for places, job in self.asked])
        finally:
            self.close()

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self) -> None:
        places, rollouts = [p for p, _ in self.waiting], [r for _, r in self.waiting]
        self.asked.append((places, self.pool.submit(self.teacher.score, rollouts, self.needs)))
        self.waiting = []


def assemble(rollouts: Sequence[Rollout], pieces: Sequence[tuple[Sequence[int], Scores]]) -> Scores:
    """One table of scores from those of some rollouts each, by their places.

    Raises:
        MissingScore: a rollout was scored by nobody or twice.
    """
    seen = sorted(itertools.chain.from_iterable(places for places, _ in pieces))
    if seen != list(range(len(rollouts))):
        raise MissingScore(f"{len(set(seen))} of {len(rollouts)} rollouts were scored")
    lengths = torch.tensor([len(r.response_ids) for r in rollouts])
    starts = lengths.cumsum(0) - lengths
    index_N = torch.cat(
        [torch.arange(int(lengths[p])) + starts[p] for places, _ in pieces for p in places]
    )

    def ordered(parts: Sequence[Tensor | None]) -> Tensor | None:
        if any(part is None for part in parts):
            return None
        joined = torch.cat([part for part in parts if part is not None])
        out = torch.empty_like(joined)
        out[index_N.to(joined.device)] = joined
        return out

    scores = [piece for _, piece in pieces]
    logprobs_N = ordered([s.logprobs_N for s in scores])
    assert logprobs_N is not None
    top = [s.distribution if isinstance(s.distribution, TopK) else None for s in scores]
    ids_NK = ordered([None if part is None else part.ids_NK for part in top])
    top_NK = ordered([None if part is None else part.logprobs_NK for part in top])
    return Scores(
        logprobs_N,
        ordered([s.entropy_N for s in scores]),
        None if ids_NK is None or top_NK is None else TopK(ids_NK, top_NK),
    )
