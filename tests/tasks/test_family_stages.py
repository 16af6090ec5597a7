"""Runs of several families: refused before work, evaluated on every benchmark, kept until then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evals.results import read_results
from evals.run import evaluate_run
from reopold.config import ConfigError, ModelConfig, RunConfig, TrainConfig
from reopold.engines import hf
from reopold.integrity import seal
from reopold.preflight import checks
from reopold.provenance import check_parents
from reopold.retention import prune
from reopold.run_dir import RunDir
from reopold.studies import plan_run
from reopold.study_config import StudyConfig
from tasks.benchmark import evaluated
from tasks.preflight import check_run, check_study

BENCHMARKS = ["micro_maths", "micro_visual", "micro_tools"]


@pytest.fixture
def config(three: Path, three_families: StudyConfig, tmp_path: Path) -> RunConfig:
    """A run on a copy of the suite, from untrained models."""
    shutil.copytree(three / "micro", tmp_path / "micro")
    models = ModelConfig(
        student=str(tmp_path / "micro" / "student-init"),
        teacher=str(tmp_path / "micro" / "teacher-init"),
    )
    planned = plan_run(three_families, tmp_path, three_families.arm("reopold"), 1)
    return planned.model_copy(update={"model": models})


def change_line(file: Path, **values: Any) -> None:
    first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps({**json.loads(first), **values}), *rest]))


def test_a_mix_is_accepted_and_its_numbers_are_shown(config: RunConfig, tmp_path: Path) -> None:
    check_run(config, tmp_path / "run")
    found = {check.name: check for check in checks(config)}
    assert {name: c.found for name, c in found.items() if c.status != "pass"} == {}
    assert "150 prompts" in found["data"].found
    # 2 steps of 4 prompts in shares 1, 2, 1 of 50 problems each.
    assert "maths 0.04, visual 0.08, tools 0.04" in found["data"].found


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("tools", {"environment": "abacus"}, "line 1: no environment 'abacus'; there are: python"),
        ("visual", {"images": ["images/none.png"]}, "line 1: image .*none.png cannot be read"),
        ("visual", {"images": []}, "line 1: 1 image placeholders"),
        ("maths", {"prompt": "1+1="}, "line 1: 'prompt' must be a list"),
    ],
)
def test_a_fault_in_any_set_is_named(
    config: RunConfig, tmp_path: Path, family: str, values: dict[str, Any], message: str
) -> None:
    change_line(tmp_path / "micro" / f"micro_{family}" / "train.jsonl", **values)
    with pytest.raises(ConfigError, match=message):
        check_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_set_must_be_a_local_file(config: RunConfig, tmp_path: Path) -> None:
    other = config.data.mix[0].model_copy(update={"train": "org/name"})
    data = config.data.model_copy(update={"mix": [other]})
    with pytest.raises(ConfigError, match=r"data\.mix\.0\.train must be a local file"):
        check_run(config.model_copy(update={"data": data}), tmp_path / "run")


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_pictures_are_not_for_a_text_model(
    config: RunConfig, tmp_path: Path, three_families: StudyConfig, role: str
) -> None:
    from reopold.micro.build import suite_tokenizer
    from reopold.micro.models import build_model, save_model

    tokenizer = suite_tokenizer(three_families.micro)
    save_model(build_model(tokenizer, width=16, layers=1, seed=1), tokenizer, tmp_path / "text")
    model = config.model.model_copy(update={role: str(tmp_path / "text")})
    blind = config.model_copy(update={"model": model})
    with pytest.raises(ConfigError, match=r"has images, which .*text does not take"):
        check_run(blind, tmp_path / "run")
    (found,) = [check for check in checks(blind) if check.name == "data"]
    assert found.status == "fail" and "does not take" in found.found


def test_a_study_with_a_weight_of_many_digits_is_refused(
    three_families: StudyConfig, tmp_path: Path
) -> None:
    micro = three_families.micro.model_copy(update={"weights": [1.0, 2.0, 0.123457]})
    with pytest.raises(ConfigError, match="write them in fewer digits"):
        check_study(three_families.model_copy(update={"micro": micro}), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_run_whose_further_prompts_changed_is_not_gone_on_with(
    config: RunConfig, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run").create(config)
    parents = check_parents(run, config)
    assert {"data", "data of visual 1", "data of tools 2"} <= parents.keys()
    run.update_manifest(parents=parents)
    check_parents(run, config)
    change_line(tmp_path / "micro" / "micro_tools" / "train.jsonl", answer="9")
    with pytest.raises(ConfigError, match=r"micro_tools/train\.jsonl has changed since"):
        check_parents(run, config)


@pytest.fixture
def run(config: RunConfig, tmp_path: Path) -> RunDir:
    """A run with three checkpoints that are yet to be evaluated."""
    train = TrainConfig(steps=3, checkpoint_every=1, keep_last=1, keep_best=0)
    made = RunDir(tmp_path / "run").create(config.model_copy(update={"train": train}))
    for step in (1, 2, 3):
        shutil.copytree(config.model.student, made.checkpoint(step))
        seal(made.checkpoint(step), step)
    return made


def test_a_checkpoint_is_evaluated_on_every_benchmark_by_one_engine(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = hf.load_model

    def counted(path: str, **settings: Any) -> Any:
        loaded.append(path)
        return load(path, **settings)

    monkeypatch.setattr(hf, "load_model", counted)
    found = evaluate_run(run, [3])
    assert [each.benchmark for each in found] == BENCHMARKS
    assert loaded == [str(run.checkpoint(3))]
    for name, results in zip(BENCHMARKS, found, strict=True):
        assert (results.n, results.k, results.checkpoint_step) == (10, 2, 3)
        assert read_results(run.evaluation(3, name)) == results
    assert evaluated(run, [3]) and not evaluated(run, [2, 3])
    shutil.rmtree(run.evaluation(3, "micro_tools"))
    assert not evaluated(run, [3]), "one benchmark is missing"


def test_a_checkpoint_stays_until_it_is_evaluated_on_every_benchmark(run: RunDir) -> None:
    config = run.config()
    for name in BENCHMARKS:
        assert run.complete_checkpoints() == [1, 2, 3]
        assert prune(run, config) == []
        for step in (1, 2):
            folder = run.evaluation(step, name)
            folder.mkdir(parents=True)
            digest = json.loads((run.checkpoint(step) / "COMPLETE").read_text())["digest"]
            results = {"checkpoint_digest": digest, "scores": [{"value": 0.5}]}
            (folder / "results.json").write_text(json.dumps(results))
    assert prune(run, config) == [run.checkpoint(1), run.checkpoint(2)]
    assert run.complete_checkpoints() == [3]
