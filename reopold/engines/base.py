"""The protocol of everything that samples: token ids in, token ids out.

Every engine passes one suite of contract tests (tests/reopold/test_engine_contract.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from reopold.rollouts import Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from reopold.scoring import Scores

#: Called with a rollout's place in the answer, as soon as it is finished.
OnFinished = Callable[[int, Rollout], None]

#: Seeds lie below this, so that `seed + i` still fits an int64.
SEED_LIMIT = 2**62


class EngineFailure(RuntimeError):
    """An engine died, answered nonsense, or does not hold the weights it should."""


class Engine(Protocol):
    @property
    def weight_version(self) -> int:
        """Completed optimiser steps of the weights that it holds, as the engine itself says."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        seeds: Sequence[int],
        n: int = 1,
        on_finished: OnFinished | None = None,
    ) -> list[Rollout]:
        """Sample n responses a prompt; those of a prompt lie together, prompts in order.

        Args:
            prompts: token ids of each request.
            seeds: one a request, below :data:`SEED_LIMIT`. Sample i of a request is drawn with
                `seed + i` and with nothing else: neither the rest of the batch nor n matters.
            on_finished: told of every rollout as it is finished, in whatever order they finish.

        Raises:
            EngineFailure: no answer, or not the one that was asked for.
            StopRequested: a stop was asked for meanwhile; what was under way is given up.
        """
        ...

    def score(self, rollouts: Sequence[Rollout], *, top_k: int = 0) -> Scores:
        """Log-prob of every response token, and of the top_k likeliest ids at each position.

        Raises:
            EngineFailure: no answer; MissingScore: a score is missing or not finite.
        """
        ...

    def update_weights(self, model: PreTrainedModel, version: int) -> int:
        """Take over the weights of `model` and forget every cached prefix.

        Returns:
            The version as read back from wherever the weights now lie.

        Raises:
            EngineFailure: the engine does not hold the weights that it was given.
        """
        ...

    def sleep(self) -> None:
        """Give accelerator memory back until :meth:`wake`, where the engine can."""
        ...

    def wake(self) -> None: ...

    def close(self) -> None:
        """End every process and free all memory; a second call does nothing."""
        ...
