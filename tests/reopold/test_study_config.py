"""What a study file expands to, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reopold.config import ConfigError, RunConfig
from reopold.recipes import load_recipe
from reopold.studies import plan_run, plan_runs, plan_supervised, supervised_roles
from reopold.study_config import StudyConfig, sweep_keys
from tasks.plan import plan_study
from tasks.preflight import check_study, claim_study

STUDIES = Path(__file__).parents[2] / "deployments" / "recipes" / "studies"


def study(**sections: Any) -> StudyConfig:
    base = {"name": "s", "methods": ["reopold", "opd", "grpo"], "seeds": [1, 2]}
    return StudyConfig.model_validate(base | sections)


def test_a_sweep_crosses_its_keys_and_trains_equal_arms_once() -> None:
    sweep = {
        "name": "grid",
        "over": ["objective.clip=[true, false]", "objective.mask=[entropy, random]"],
        "seeds": [2, 3],
    }
    config = study(sweeps=[sweep])
    points = config.points(config.sweeps[0])
    assert [point.values for point in points] == [
        (True, "entropy"), (True, "random"), (False, "entropy"), (False, "random"),
    ]  # fmt: skip
    # The first is reopold as it comes: trained once, with the seeds of both.
    assert [point.arm for point in points] == [
        "reopold", "grid-true-random", "grid-false-entropy", "grid-false-random",
    ]  # fmt: skip
    assert config.arm("reopold").seeds == (1, 2, 3)
    assert config.arm("grid-true-random").seeds == (2, 3)
    assert sweep_keys(config.sweeps[0]) == ["objective.clip", "objective.mask"]
    assert [arm.name for arm in config.compared] == ["reopold", "opd", "grpo"]
    names = [run.name for run in plan_runs(config, Path("s"))]
    assert len(names) == len(set(names)) == 3 + 2 + 2 + 3 * 2


def test_an_arm_changes_its_settings_and_nothing_else() -> None:
    variant = {"name": "random_mask", "method": "reopold", "set": ["objective.mask=random"]}
    config = study(variants=[variant])
    own = plan_run(config, Path("s"), config.arm("reopold"), 1)
    other = plan_run(config, Path("s"), config.arm("random_mask"), 1)
    assert other.objective.mask == "random" and other.name == "random_mask-s1"
    same = other.model_copy(update={"name": own.name, "objective": own.objective})
    assert same == own


def test_worked_solutions_are_as_many_as_the_others_samples() -> None:
    config = study(methods=["sft", "grpo"])
    sft = plan_run(config, Path("s"), config.arm("sft"), 1)
    grpo = plan_run(config, Path("s"), config.arm("grpo"), 1)
    assert sft.samples_per_step == grpo.samples_per_step
    assert sft.data.train.endswith("sft-teacher.jsonl") and not sft.model.teacher


def test_teachers_of_other_sizes() -> None:
    config = study(
        micro={"teachers": [{"name": "small", "width": 32, "steps": 7}]},
        variants=[{"name": "from_small", "method": "opd", "teacher": "small"}],
    )
    assert supervised_roles(config) == ["teacher", "teacher-small", "student"]
    assert plan_supervised(config, Path("s"), "teacher-small").train.steps == 7
    run = plan_run(config, Path("s"), config.arm("from_small"), 1)
    assert run.model.teacher == "./s/runs/teacher-small/checkpoints/step-000007"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"baseline": "best"}, "baseline 'best' is no arm"),
        ({"methods": ["opd", "opd"]}, "methods must each be listed once"),
        ({"variants": [{"name": "opd", "method": "opd"}]}, "two arms are called opd"),
        ({"variants": [{"name": "teacher", "method": "opd"}]}, "no arm can be called teacher"),
        ({"variants": [{"name": "x", "method": "opd", "teacher": "y"}]}, "no teacher 'y'"),
        ({"variants": [{"name": "x", "method": "opd", "set": ["objective.lamb=1"]}]}, "'lam'"),
        ({"sweeps": [{"name": "x", "over": ["objective.lam=0.3"]}]}, r"key=\[value, value\]"),
        ({"sweeps": [{"name": "student", "over": ["seed=[1]"]}]}, "no sweep can be called"),
        (
            {"sweeps": [{"name": "x", "set": ["objective.floor=odds"],
                         "over": ["objective.lam=[0.5]"]}]},
            "needs lam < 0.5",
        ),
        ({"model": {"student": "org/model", "teacher": "org/teacher"}}, "data.train is missing"),
    ],
)  # fmt: skip
def test_refusals_name_what_is_wrong(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(**sections)


def test_a_base_gives_what_the_file_has_not(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "name: one\nmethod: grpo\nseed: 3\nmodel: {student: ./s, teacher: ./t}\n"
        "data: {train: ./d}\ntrain: {steps: 7, micro_batch: 2}\n"
    )
    (tmp_path / "study.yaml").write_text(
        "base: run.yaml\nname: two\nmethods: [opd]\nseeds: [1]\nbaseline: opd\ntrain: {steps: 9}\n"
    )
    found = load_recipe(tmp_path / "study.yaml", StudyConfig)
    assert (found.name, found.train.steps, found.train.micro_batch) == ("two", 9, 2)
    assert found.model.student == "./s" and not found.embedded
    (tmp_path / "loop.yaml").write_text("base: loop.yaml\n")
    with pytest.raises(ConfigError, match="based on itself"):
        load_recipe(tmp_path / "loop.yaml", RunConfig)
    (tmp_path / "lost.yaml").write_text("base: nowhere.yaml\n")
    with pytest.raises(ConfigError, match="the base of"):
        load_recipe(tmp_path / "lost.yaml", RunConfig)


def test_a_study_is_extended_and_not_changed(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    claim_study(study(), folder)
    more = study(seeds=[1, 2, 3], methods=["reopold", "opd", "grpo", "dapo"])
    check_study(more, folder)
    claim_study(more, folder)
    assert "dapo" in (folder / "study.json").read_text()
    other = study(train={"steps": 7})
    with pytest.raises(ConfigError, match=r"train\.steps"):
        check_study(other, folder)
    config = study(variants=[{"name": "x", "method": "opd"}])
    from reopold.run_dir import RunDir

    RunDir(folder / "runs" / "x-s1").create(plan_run(config, folder, config.arm("x"), 1))
    changed = study(variants=[{"name": "x", "method": "grpo"}])
    with pytest.raises(ConfigError, match="x-s1 belongs to another config"):
        check_study(changed, folder)


def test_the_plan_counts_what_is_left(tmp_path: Path) -> None:
    config = study(train={"steps": 10})
    plan = plan_study(config, tmp_path)
    assert plan.runs == 2 + 6
    assert {row.arm: row.samples for row in plan.rows}["opd"] == 2 * 10 * 128
    assert (plan.device_hours or 0) > 0 and plan.disk_bytes > 0
    assert not list(tmp_path.iterdir())


def test_the_ablation_has_every_figure_of_the_paper() -> None:
    config = load_recipe(STUDIES / "ablation.yaml", StudyConfig)
    assert {sweep.name: len(config.points(sweep)) for sweep in config.sweeps} == {
        "grid": 16, "lam_mixture": 5, "lam_odds": 4, "beta": 4, "switch": 5, "temperature": 4,
    }  # fmt: skip
    names = [run.name for run in plan_runs(config, Path("s"))]
    assert len(set(names)) == len(names)
