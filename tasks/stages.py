"""What Prefect tasks pass to each other: paths and small models."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from reopold.config import ConfigError, RunConfig
from reopold.provenance import check_parents
from reopold.run_dir import RunDir


class Done(BaseModel):
    """A finished stage: the key of whatever is built on it."""

    model_config = ConfigDict(frozen=True)

    name: str
    path: str
    digest: str
    """Of the checkpoint (or other artifact) that the stage left: part of the next stage's key."""


@dataclass(frozen=True)
class Span:
    """A stretch of steps that one training task covers, and the checkpoints it leaves."""

    label: str
    until: int
    checkpoints: tuple[int, ...]


def spans(config: RunConfig, missed: Collection[int] = ()) -> list[Span]:
    """The training tasks of a run: one a phase, so that the flow graph reads as the experiment.

    Args:
        missed: checkpoints that will never be (:meth:`RunDir.missed_checkpoints`).
    """
    ends = [config.train.steps]
    if config.switches and config.switch_step not in missed:
        ends.insert(0, config.switch_step)
    starts = [0, *ends[:-1]]
    return [
        Span(
            config.phase(start),
            end,
            tuple(k for k in config.checkpoint_steps() if start < k <= end and k not in missed),
        )
        for start, end in zip(starts, ends, strict=True)
    ]


def span_done(run: RunDir, span_until: int) -> bool:
    """Whether disk holds the span, made from the models and prompts of today.

    Truth is on disk, whatever a cache believes. A run whose last checkpoint is complete but whose
    manifest does not say finished lost its trainer in between: it has to be started once more.
    """
    if span_until not in run.passed_checkpoints():
        return False
    config = run.config()
    if span_until == config.train.steps and run.manifest()["status"] != "finished":
        return False
    try:
        check_parents(run, config)
    except ConfigError:
        return False
    return True
