"""The recipes of the paper's experiments: complete, and fitting where they are placed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deployments.paper import EXPERIMENTS, FOLDER, rows, table, targets
from evals.published import published_on
from flows.cli import app
from reopold.config import ConfigError, RunConfig
from reopold.data.prompts import load_prompts
from reopold.estimate import GPUS, Assumptions
from reopold.recipes import load_recipe
from reopold.study_config import StudyConfig
from tasks.offline import preflight_offline, preflight_study_offline
from tasks.plan import plan_study
from tests.conftest import REPO
from tests.reopold.tiny_vision import tiny_qwen25_vl

RECIPES = list(rows())
IDS = [f"{row.experiment}/{row.placement}" for row in RECIPES]


@pytest.mark.parametrize("row", RECIPES, ids=IDS)
def test_a_recipe_passes_offline(row: Any) -> None:
    config = load_recipe(row.recipe, RunConfig)
    checks = preflight_offline(config, row.needs.gpu).checks
    assert [check for check in checks if check.status == "fail"] == []
    # Prompts and BFCL's items, which no hub has, are not in the repository; all else is settled.
    assert {check.name for check in checks if check.status == "warn"} <= {"data", "benchmark"}
    assert config.gpus == int(row.placement.removesuffix("gpu"))
    first = row.recipe.read_text(encoding="utf-8").partition("\n")[0]
    assert ("141 GB" in first) == (row.needs.gpu.name == "h200"), first
    assert load_recipe(row.recipe, RunConfig, ["name=other"]).name == "other"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_study_has_the_counterparts(experiment: str) -> None:
    study = load_recipe(FOLDER / experiment / "study.yaml", StudyConfig)
    assert {"reopold", "opd", "grpo", "dapo"} <= {arm.method for arm in study.arms}
    assert len(study.seeds) >= 3
    gpu = GPUS["h200" if experiment == "visual-7b" else "h100"]
    found = preflight_study_offline(study, gpu)
    assert [check for check in found.checks if check.status == "fail"] == []
    for arm in study.arms:  # nothing but the method differs
        recipe = study.recipe(arm)
        assert recipe.train == study.train and recipe.sampling == study.sampling


def test_the_plan_of_a_study_is_its_runs_estimates(tmp_path: Path) -> None:
    study = load_recipe(FOLDER / "tropd" / "study.yaml", StudyConfig)
    plan = plan_study(study, tmp_path / "tropd")
    runs = [study.recipe(arm) for arm in study.arms for _ in arm.seeds]
    needs = [preflight_offline(run, GPUS["h100"]).needs for run in runs]
    hours = sum(each.gpu_hours for each in needs if each is not None)
    assert plan.device_hours == pytest.approx(hours)
    # Two of the last, one of the best, one under way and one of save_every, 12 bytes a parameter.
    assert plan.disk_bytes == 18 * 5 * 12 * 1_777_088_000
    assert plan.estimated
    unknown = load_recipe(FOLDER / "tropd" / "study.yaml", StudyConfig, ["model.student=acme/llm"])
    assert plan_study(unknown, tmp_path / "tropd").device_hours is None


def test_prompts_that_are_not_here_are_named_with_their_command() -> None:
    with pytest.raises(ConfigError, match=r"reopold prompts deepmath` writes DeepMath-103K"):
        load_prompts("./.reopold/prompts/deepmath/train.jsonl")


def test_every_file_belongs_to_an_experiment() -> None:
    folders = {path.name for path in FOLDER.iterdir()}
    assert folders == set(EXPERIMENTS)
    placed = {row.recipe for row in RECIPES}
    files = {path for path in FOLDER.glob("*/*.yaml") if path.stem not in ("run", "study")}
    assert files == placed


def test_trop_d_s_protocol() -> None:
    config = load_recipe(FOLDER / "tropd" / "8gpu.yaml", RunConfig)
    sampling, objective, optimizer = config.sampling, config.objective, config.optimizer
    assert (sampling.prompts_per_step, sampling.rollouts_per_prompt) == (128, 4)
    assert (sampling.max_new_tokens, sampling.temperature) == (8096, 1.0)
    assert (config.train.steps, optimizer.lr, optimizer.decay) == (200, 5e-6, "constant")
    assert (optimizer.weight_decay, optimizer.grad_clip) == (0.1, 1.0)
    assert (objective.mask, objective.phases, objective.clip) == ("none", "one", True)
    assert [e.benchmark for e in config.evaluations if e.samples == 32] == [
        "aime25",
        "aime24",
        "amc23",
    ]


def test_the_readme_has_the_table_of_today() -> None:
    assert table() in (REPO / "README.md").read_text(encoding="utf-8")
    for experiment in EXPERIMENTS:  # of tool use no number was published
        assert bool(published_on(targets(experiment))) == (experiment != "tools")


def run_of(**sections: Any) -> RunConfig:
    config = load_recipe(FOLDER / "maths-from-7b" / "4gpu.yaml", RunConfig)
    raw = config.model_dump(mode="json")
    for name, section in sections.items():
        raw[name] = {**raw[name], **section} if isinstance(section, dict) else section
    return RunConfig.model_validate(raw)


@pytest.mark.parametrize(
    ("sections", "name", "message"),
    [
        ({"model": {"teacher": "Qwen/Qwen2.5-7B-Instruct"}}, "tokenizers", "those of qwen2.5"),
        ({"model": {"teacher": "acme/llm-9b"}}, "models", "reopold/shapes.yaml"),
        ({"engine": {"memory_fraction": 0.05}}, "memory", "memory_fraction 0.05 of a GPU"),
        ({"engine": {"gpus": [0, 1]}}, "GPU 0", "of 78 GiB"),
        ({"train": {"micro_batch": 64}}, "GPU 0", "activations"),
        ({"sampling": {"max_new_tokens": 9100}}, "length", "engine.max_length has 9,216"),
        ({"sampling": {"max_new_tokens": 140_000}}, "length", "R1-Distill-Qwen-1.5B has 131,072"),
        ({"evaluation": {"benchmark": "aime29"}}, "benchmark", "aime29"),
        ({"family": "visual"}, "images", "takes no images"),
        ({"method": "grpo", "data": {"reward": "final_answer"}}, "reward", "set data.reward"),
    ],
)
def test_what_would_go_wrong_is_said(sections: dict[str, Any], name: str, message: str) -> None:
    checks = preflight_offline(run_of(**sections), GPUS["h100"]).checks
    failed = [check for check in checks if check.status == "fail"]
    assert name in {check.name for check in failed}, failed
    assert any(message in f"{check.found} {check.mend}" for check in failed), failed


def test_a_teacher_of_other_prompts_need_not_see(tmp_path: Path) -> None:
    local = tiny_qwen25_vl(tmp_path / "teacher")
    config = load_recipe(FOLDER / "visual-3b" / "4gpu.yaml", RunConfig)
    text = [{"model": "Qwen/Qwen2.5-7B-Instruct", "sources": ["deepmath"]}]
    raw = config.model_dump(mode="json") | {"teachers": text}
    several = preflight_offline(RunConfig.model_validate(raw), GPUS["h200"]).checks
    raw = config.model_dump(mode="json")
    raw["model"]["teacher"] = str(local)
    given = preflight_offline(RunConfig.model_validate(raw), GPUS["h200"]).checks
    for checks in (several, given):
        assert not [c for c in checks if c.status == "fail" and c.name in ("images", "tokenizers")]
    raw["model"]["teacher"] = "Qwen/Qwen2.5-7B-Instruct"
    blind = preflight_offline(RunConfig.model_validate(raw), GPUS["h200"]).checks
    assert [c.name for c in blind if c.status == "fail"] == ["images"]


def test_prompts_that_are_here_are_read(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    line = {"id": "a", "prompt": [{"role": "user", "content": "1+1"}], "answer": ""}
    file.write_text((json.dumps(line) + "\n") * 2, encoding="utf-8")
    checks = preflight_offline(run_of(data={"train": str(file)}), GPUS["h100"]).checks
    said = " ".join(check.found for check in checks)
    assert "2 ids occur twice" in said or "1 ids occur twice" in said
    assert "2 of 2 prompts have an empty answer" in said


def test_shorter_responses_take_less_time() -> None:
    config = run_of()
    full, half = (
        preflight_offline(config, GPUS["h100"], Assumptions(response_share=share)).needs
        for share in (0.6, 0.3)
    )
    assert full is not None and half is not None
    assert half.hours < 0.6 * full.hours


def test_a_study_of_the_embedded_suite_says_where_to_look() -> None:
    study = load_recipe(REPO / "deployments" / "recipes" / "quickstart.yaml", StudyConfig)
    with pytest.raises(ConfigError, match="--dry-run"):
        preflight_study_offline(study, GPUS["h100"])


def test_the_command(state_home: Path) -> None:
    def asked(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["preflight", *arguments, "--offline"])

    file = str(FOLDER / "visual-7b" / "8gpu.yaml")
    full = asked(file)
    assert full.exit_code == 1 and "GPU 0" in str(full.output)
    rich = asked(file, "--gpu", "h200", "--price", "2", "--json")
    assert rich.exit_code == 0
    checks = {check["name"]: check for check in json.loads(rich.output)}
    assert "at $2 an hour" in checks["cost"]["found"]
    study = asked(str(FOLDER / "tropd" / "study.yaml"), "--json")
    (whole,) = [c for c in json.loads(study.output) if c["name"] == "study"]
    assert whole["found"].startswith("18 runs:")
    assert not state_home.exists() or not list(state_home.iterdir())  # it wrote nothing
