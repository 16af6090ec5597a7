"""Recipes: what is refused and how it is said, what is derived, and what names a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reopold.config import (
    ConfigError,
    ModelConfig,
    ObjectiveConfig,
    RunConfig,
    TrainConfig,
    is_local,
)
from reopold.recipes import load_recipe, parse
from reopold.studies import plan_runs, plan_supervised
from reopold.study_config import StudyConfig
from tests.conftest import REPO

MINIMAL: dict[str, Any] = {
    "name": "x",
    "method": "opd",
    "model": {"student": "./s", "teacher": "./t"},
    "data": {"train": "./p.jsonl"},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trian": {}}, "unknown key 'trian': did you mean 'train'?"),
        ({"train": {"step": 5}}, "unknown key 'train.step': did you mean 'steps'?"),
        ({"sampling": {"top_p": 0.9}}, "unknown key 'sampling.top_p'"),
        ({"train": {"steps": 0}}, "'train.steps'"),
        ({"train": {"steps": "many"}}, "'train.steps'"),
        ({"method": "ppo"}, "'method'"),
        ({"objective": {"lam": 1.0}}, "'objective.lam'"),
        ({"objective": {"lam": 0.5, "floor": "odds"}}, "needs lam < 0.5"),
        ({"model": {"student": "./s"}}, "method 'opd' needs model.teacher"),
        ({"model": None}, "'model'"),
        ({"name": "../x"}, "'name'"),
        ({"seed": -1}, "'seed'"),
        ({"method": "grpo", "sampling": {"rollouts_per_prompt": 1}}, "at least 2"),
        ({"method": "grpo", "data": {"train": "./p", "reward": "none"}}, "learns from the outcome"),
        ({"method": "dapo", "sampling": {"rollouts_per_prompt": 1}}, "at least 2"),
        (
            {"objective": {"outcome_weight": 1.0}, "data": {"train": "./p", "reward": "none"}},
            "objective.outcome_weight learns from the outcome",
        ),
        ({"method": "gkd", "model": {"student": "./s"}}, "method 'gkd' needs model.teacher"),
        ({"objective": {"support": "sampled"}}, "K1 as a direct loss"),
        ({"objective": {"mask": "entropi"}}, "'objective.mask'"),
        ({"objective": {"switch_step": 101}}, "beyond the last of 100 steps"),
        ({"method": "dapo", "objective": {"overlong_buffer": 49}}, "must not exceed"),
        ({"method": "dapo", "objective": {"ratio_clip_high": 0.1}}, "must not be below"),
        ({"train": {"updates_per_step": 33}}, "at most prompts_per_step (32)"),
    ],
)
def test_faults_are_named_where_they_are(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({**MINIMAL, **change}, RunConfig, "recipe.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("recipe.yaml: ")


def test_every_fault_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({**MINIMAL, "seed": "a", "trian": 1}, RunConfig, "r")
    assert "seed" in str(caught.value) and "trian" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "not valid YAML"), ("- 1", "must hold a mapping"), (None, "no recipe at")],
)
def test_unreadable_recipes(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "r.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path, RunConfig)


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    config = load_recipe(path, RunConfig, ["train.steps=7", "optimizer.lr=1e-5", "name=y"])
    assert (config.train.steps, config.optimizer.lr, config.name) == (7, 1e-5, "y")
    for bad, message in [("train.steps", "key=value"), ("name.x=1", "not a section")]:
        with pytest.raises(ConfigError, match=message):
            load_recipe(path, RunConfig, [bad])


RECIPES = sorted((REPO / "deployments" / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_parses(path: Path) -> None:
    kind = StudyConfig if "methods" in yaml.safe_load(path.read_text()) else RunConfig
    load_recipe(path, kind)


def test_digest_changes_with_every_field_and_with_nothing_else(
    recipe: Callable[..., RunConfig],
) -> None:
    base = recipe()
    assert base.canonical_json() == recipe().canonical_json()
    for change in ({"seed": 4}, {"train": TrainConfig(steps=7)}, {"name": "z"}):
        assert recipe(**change).canonical_json() != base.canonical_json()


@given(
    steps=st.integers(1, 200),
    every=st.integers(1, 250),
    fraction=st.floats(0, 1),
)
def test_checkpoints_end_the_run_and_mark_the_switch(
    steps: int, every: int, fraction: float
) -> None:
    config = RunConfig(
        name="x",
        method="reopold",
        model=ModelConfig(student="./s", teacher="./t"),
        data={"train": "./p"},  # type: ignore[arg-type]
        objective=ObjectiveConfig(switch_fraction=fraction),
        train=TrainConfig(steps=steps, checkpoint_every=every),
    )
    points = config.checkpoint_steps()
    assert points == sorted(set(points)) and points[-1] == steps and points[0] >= 1
    if 0 < config.switch_step < steps:
        assert config.switch_step in points
        assert config.phase(config.switch_step - 1) == "exploration"
        assert config.phase(config.switch_step) == "refinement"


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("./a", True),
        ("../a", True),
        ("/a", True),
        ("~/a", True),
        ("Qwen/Qwen3-0.6B", False),
        ("", False),
    ],
)
def test_local_paths_are_told_from_hub_ids(path: str, local: bool) -> None:
    assert is_local(path) is local


def test_a_study_expands_to_runs_that_differ_in_method_and_seed_alone(tmp_path: Path) -> None:
    study = load_recipe(REPO / "deployments" / "recipes" / "quickstart.yaml", StudyConfig)
    plans = plan_runs(study, tmp_path)
    assert len({plan.name for plan in plans}) == len(study.methods) * len(study.seeds)
    for section in ("sampling", "optimizer", "train", "evaluation"):
        assert len({getattr(plan, section).model_dump_json() for plan in plans}) == 1
    assert len({plan.model.student for plan in plans}) == 1
    student = plan_supervised(study, tmp_path, "student")
    assert plans[0].model.student.endswith(
        f"runs/student/checkpoints/step-{student.train.steps:06d}"
    )
