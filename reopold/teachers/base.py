"""The protocol of everything that scores the student's samples with a teacher's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from reopold.rollouts import Needs, Rollout
from reopold.scoring import Scores

#: The log-prob of the sampled token, and the entropy where it can be had.
SAMPLED_ONLY = Needs(teacher=True)


class Teacher(Protocol):
    @property
    def concurrent(self) -> bool:
        """Whether it scores elsewhere, so that sampling may go on meanwhile."""
        ...

    def score(self, rollouts: Sequence[Rollout], needs: Needs = SAMPLED_ONLY) -> Scores:
        """Log-prob of every response token, and of the distribution what is needed.

        Raises:
            MissingScore: a score is missing, cut off or not finite; it never becomes 0.
            EngineFailure: no answer.
        """
        ...

    def close(self) -> None:
        """End what was started for it."""
        ...
