"""Sampling whose times can be compared between models: wall-clock of a batch, shared out evenly."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evals.evaluation import Evaluation
from evals.harness.engines import Engines
from evals.harness.journal import Generation, SampleKey
from evals.harness.sampler import Keep, Request, Sampler, batches
from reopold.rollouts import SamplingParams

#: Samples that warm a checkpoint up, and are not kept.
WARM_UP = 64


@dataclass
class TimedSampler:
    """Draws batch by batch; a sample's seconds are its share of the batch's wall-clock."""

    sampler: Sampler
    batch_size: int

    def sample(self, requests: Sequence[Request], params: SamplingParams, keep: Keep) -> None:
        self.sampler.sample(requests[:WARM_UP], params, _forget)
        for batch in batches(requests, self.batch_size):
            drawn: list[tuple[SampleKey, Generation]] = []
            started = time.perf_counter()
            self.sampler.sample(batch, params, lambda *each, drawn=drawn: drawn.append(each))
            share = (time.perf_counter() - started) / len(batch)
            for key, generation in drawn:
                keep(key, replace(generation, seconds=round(share, 7)))


def _forget(key: SampleKey, generation: Generation) -> None:
    """A warm-up leaves nothing."""


class TimedEngines(Engines):
    def sampler(self, checkpoint: Path, evaluation: Evaluation) -> Sampler:
        sampler = super().sampler(checkpoint, evaluation)
        return TimedSampler(sampler, evaluation.settings.batch_size)
