"""Stages and their cache keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from reopold.config import ObjectiveConfig, RunConfig
from tasks.cache import VERSIONS, compute_key
from tasks.stages import Done, evaluated_steps, spans

Recipe = Callable[..., RunConfig]


def test_a_phase_is_a_stage_and_checkpoints_belong_to_one(recipe: Recipe) -> None:
    found = spans(recipe("reopold"))
    assert [(s.label, s.until, s.checkpoints) for s in found] == [
        ("exploration", 3, (2, 3)),
        ("refinement", 6, (4, 6)),
    ]
    assert [(s.label, s.until) for s in spans(recipe("opd"))] == [("opd", 6)]


@pytest.mark.parametrize(("fraction", "label"), [(0.0, "refinement"), (1.0, "exploration")])
def test_a_switch_at_either_end_leaves_one_stage(
    fraction: float, label: str, recipe: Recipe
) -> None:
    config = recipe("reopold", objective=ObjectiveConfig(switch_fraction=fraction))
    assert [(s.label, s.until) for s in spans(config)] == [(label, 6)]


def test_only_the_last_checkpoint_of_a_supervised_model_is_evaluated(recipe: Recipe) -> None:
    sft, opd = recipe("sft"), recipe("opd")
    assert evaluated_steps(sft, spans(sft)[0]) == [6]
    assert evaluated_steps(opd, spans(opd)[0]) == [2, 4, 6]


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
