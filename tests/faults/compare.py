"""Whether two runs of one recipe have ended with the same bits."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file

from reopold.integrity import faults
from reopold.run_dir import STEP_EVENTS, Record, RunDir, read_lines

#: Metric names and fields that measure the machine, not the run.
MEASURED = ("perf/", "time", "seconds")


def logged(lines: list[Record]) -> list[Record]:
    return [{k: v for k, v in line.items() if not k.startswith(MEASURED)} for line in lines]


def step_events(run: RunDir) -> list[Record]:
    """Events that belong to steps, in the order of the steps.

    Checkpoints are written behind the training, and a stop makes one more.
    """
    scheduled = run.config().checkpoint_steps()
    found = [
        event
        for event in logged(run.events())
        if event["kind"] in STEP_EVENTS
        and (event["kind"] != "checkpoint" or event["step"] in scheduled)
    ]
    return sorted(found, key=lambda event: (event["step"], event["kind"]))


def assert_same(run: RunDir, other: RunDir) -> None:
    """Every checkpoint (weights, optimiser, RNGs, counters), every log line, every rollout."""
    assert logged(run.metrics()) == logged(other.metrics())
    assert read_lines(run.diagnostics_file) == read_lines(other.diagnostics_file)
    assert step_events(run) == step_events(other)
    assert run.complete_checkpoints() == other.complete_checkpoints()
    assert [p.name for p in run.resume_points()] == [p.name for p in other.resume_points()]
    assert not list(run.checkpoints.glob(".step-*"))
    for step in run.complete_checkpoints():
        mine, theirs = run.checkpoint(step), other.checkpoint(step)
        assert not faults(mine), faults(mine)
        _same_tensors(
            load_file(mine / "model.safetensors"), load_file(theirs / "model.safetensors")
        )
        _same_tensors(
            load_file(mine / "trainer/state.safetensors"),
            load_file(theirs / "trainer/state.safetensors"),
        )
        for file in ("trainer/state.json", "trainer/config.json", "config.json"):
            assert (mine / file).read_text() == (theirs / file).read_text(), file
        for file in (run.rollouts_file(step), other.rollouts_file(step)):
            assert file.read_bytes() == other.rollouts_file(step).read_bytes()


def _same_tensors(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
