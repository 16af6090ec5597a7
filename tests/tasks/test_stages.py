"""Stages and their cache keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from reopold.config import ConfigError, ObjectiveConfig, RunConfig, TrainConfig
from reopold.run_dir import RunDir
from tasks.cache import VERSIONS, compute_key
from tasks.stages import Done, spans

Recipe = Callable[..., RunConfig]


def test_a_phase_is_a_stage_and_checkpoints_belong_to_one(recipe: Recipe) -> None:
    found = spans(recipe("reopold"))
    assert [(s.label, s.until, s.checkpoints) for s in found] == [
        ("exploration", 3, (2, 3)),
        ("refinement", 6, (4, 6)),
    ]
    assert [(s.label, s.until) for s in spans(recipe("opd"))] == [("opd", 6)]


def test_a_checkpoint_that_will_never_be_is_waited_for_by_nobody(
    recipe: Recipe, run_dir: Callable[..., RunDir]
) -> None:
    """A run of four steps that was made longer: its switch moved to a step that is passed."""
    config = recipe("reopold")
    run = run_dir(config)
    for step in (2, 4):
        run.checkpoint(step).mkdir(parents=True)
        (run.checkpoint(step) / "COMPLETE").write_text("{}")
    assert run.missed_checkpoints(config) == {3}
    (whole,) = spans(config, run.missed_checkpoints(config))
    assert whole.until == 6 and whole.checkpoints == (2, 4, 6)
    with pytest.raises(ConfigError, match="has made 4 steps already"):
        run.create(recipe("reopold", train=TrainConfig(steps=3)), ["train"])


@pytest.mark.parametrize(("fraction", "label"), [(0.0, "refinement"), (1.0, "exploration")])
def test_a_switch_at_either_end_leaves_one_stage(
    fraction: float, label: str, recipe: Recipe
) -> None:
    config = recipe("reopold", objective=ObjectiveConfig(switch_fraction=fraction))
    assert [(s.label, s.until) for s in spans(config)] == [(label, 6)]


def test_the_key_tells_apart_whatever_decides_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    base: dict[str, Any] = {
        "digest": "a",
        "until": 3,
        "parents": [Done(name="student", path="p", digest="d1")],
    }
    key = compute_key("train", base)
    assert key == compute_key("train", dict(reversed(base.items())))
    others = [
        ("evaluate", base),
        ("train", {**base, "digest": "b"}),
        ("train", {**base, "until": 6}),
        ("train", {**base, "parents": [Done(name="student", path="p", digest="d2")]}),
    ]
    assert key not in [compute_key(stage, inputs) for stage, inputs in others]
    monkeypatch.setitem(VERSIONS, "train", "2")
    assert compute_key("train", base) != key
