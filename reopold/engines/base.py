"""The protocol of everything that samples: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from reopold.rollouts import Rollout, SamplingParams


class Engine(Protocol):
    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, *, seeds: Sequence[int]
    ) -> list[Rollout]:
        """Sample one response a prompt, in order.

        Args:
            prompts: token ids of each prompt; repeat a prompt to sample it several times (equal
                neighbours share their prefill).
            seeds: one seed a request. A request's randomness depends on its seed alone, not on
                what else is in the batch.
        """
        ...
