"""Studies of one and of several families: their suite, and the runs that they plan."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from reopold.config import ConfigError, RunConfig
from reopold.data.prompts import load_mix, render_prompt
from reopold.environments import Budget
from reopold.micro.build import build_suite, suite_tokenizer
from reopold.recipes import load_recipe, parse
from reopold.studies import plan_run, plan_supervised
from reopold.study_config import MicroConfig, StudyConfig
from tests.conftest import REPO

SMALL = {
    "train_problems": 50,
    "test_problems": 10,
    "validation_problems": 10,
    "teacher_width": 32,
    "student_width": 16,
}
#: Of the suite before it had families.
MATHS_LINES = {
    "sft-student": "3445e6f462722022",
    "sft-teacher": "b8a563b7ba37e106",
    "test": "a3817a47de53c7e0",
    "train": "22c370c909b50e72",
    "validation": "ce669129ffbe327e",
}
MATHS_IDS = ["<pad>", "<eos>", "<|user|>", "<|assistant|>", *"0123456789+-*=;#", "<unk>"]
#: Absolute sums of the untrained weights, teacher and student.
MATHS_WEIGHTS = {"teacher": 1544.8666947022277, "student": 567.6003065099594}


def test_the_maths_suite_is_what_it_was(tmp_path: Path) -> None:
    config = MicroConfig.model_validate(SMALL)
    build_suite(tmp_path / "micro", config)
    for name, digest in MATHS_LINES.items():
        content = (tmp_path / "micro" / "micro_maths" / f"{name}.jsonl").read_bytes()
        assert hashlib.sha256(content).hexdigest().startswith(digest), name
    vocabulary = suite_tokenizer(config).get_vocab()
    assert sorted(vocabulary, key=lambda token: vocabulary[token]) == MATHS_IDS
    for role, total in MATHS_WEIGHTS.items():
        weights = load_file(tmp_path / "micro" / f"{role}-init" / "model.safetensors")
        found = sum(float(abs(w.astype("float64")).sum()) for w in weights.values())
        assert found == pytest.approx(total, rel=1e-9), role


def test_one_tokenizer_reads_every_text_of_its_families(
    three: Path, three_families: StudyConfig
) -> None:
    config = three_families
    tokenizer = suite_tokenizer(config.micro)
    assert tokenizer.get_vocab() == _saved_vocabulary(three / "micro" / "student-init")
    assert tokenizer.get_vocab() == _saved_vocabulary(three / "micro" / "teacher-init")
    plan = plan_supervised(config, three, "student")
    prompts = load_mix(plan.data, plan.family, 1, completions=True).prompts
    assert {prompt.family for prompt in prompts} == {"maths", "visual", "tools"}
    for prompt in prompts:
        ids = render_prompt(tokenizer, prompt, Budget(4, 1.0))  # refuses what is unknown
        assert ids.count(tokenizer.get_vocab()["<image>"]) == len(prompt.images)
        for message in prompt.completion:
            said = tokenizer(message["content"], add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in said
            assert tokenizer.decode(said) == message["content"]
    assert {prompt.environment for prompt in prompts} == {"", "calculator"}


def _saved_vocabulary(folder: Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(folder).get_vocab()
    return vocabulary


def test_models_see_if_a_family_has_pictures(three: Path, tmp_path: Path) -> None:
    assert _model_type(three / "micro" / "student-init") == "llava"
    config = MicroConfig.model_validate({**SMALL, "families": ["tools", "maths"]})
    build_suite(tmp_path / "micro", config)
    assert _model_type(tmp_path / "micro" / "student-init") == "qwen3"
    assert {path.name for path in (tmp_path / "micro").iterdir()} == {
        *("micro_maths", "micro_tools", "student-init", "teacher-init", "micro.json")
    }


def _model_type(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["model_type"])


def test_a_study_of_three_families_plans_a_mix_and_three_evaluations(
    tmp_path: Path, three_families: StudyConfig
) -> None:
    config = three_families
    for plan, file in (
        (plan_supervised(config, tmp_path, "teacher"), "sft-teacher"),
        (plan_run(config, tmp_path, config.arm("reopold"), 1), "train"),
    ):
        sets = [(plan.family, plan.data.train), *((s.family, s.train) for s in plan.data.mix)]
        assert sets == [
            (family, str(tmp_path / "micro" / f"micro_{family}" / f"{file}.jsonl"))
            for family in ("maths", "visual", "tools")
        ]
        assert plan.data.shares == (1, 2, 1)
        assert [each.benchmark for each in plan.evaluations] == [
            *("micro_maths", "micro_visual", "micro_tools")
        ]
        assert {each.data for each in plan.evaluations} == {str(tmp_path / "micro")}
        assert all(not each.also for each in plan.evaluations)
    micro = config.micro.model_copy(update={"weights": []})
    equal = plan_run(config.model_copy(update={"micro": micro}), tmp_path, config.arm("reopold"), 1)
    assert equal.data.shares == (1, 1, 1)


def test_a_study_of_one_family_plans_no_mix(tmp_path: Path) -> None:
    config = load_recipe(REPO / "deployments" / "recipes" / "quickstart.yaml", StudyConfig)
    plan = plan_run(config, tmp_path, config.arm("opd"), 31)
    assert (plan.family, plan.data.mix, plan.evaluation.also) == ("maths", [], [])
    assert [each.benchmark for each in plan.evaluations] == ["micro_maths"]


@pytest.mark.parametrize(
    ("family", "families", "weights"),
    [
        ("", ["maths"], []),
        ("-visual", ["visual"], []),
        ("-tools", ["tools"], []),
        ("-all", ["maths", "visual", "tools"], [1.0, 4.0, 1.0]),
    ],
)
def test_each_quickstart_has_its_family_and_a_folder(
    family: str, families: list[str], weights: list[float]
) -> None:
    path = REPO / "deployments" / "recipes" / f"quickstart{family}.yaml"
    found = load_recipe(path, StudyConfig)
    assert (found.name, found.micro.families) == (path.stem, families)
    assert found.micro.weights == weights
    assert found.methods == ["reopold", "opd", "grpo"] and found.baseline == "grpo"


FAMILIES = {"families": ["maths", "visual", "tools"]}
EVALUATION = {"benchmark": "micro_maths", "also": ["micro_visual", "micro_tools"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro": {"families": ["visual"]}}, r"set evaluation.benchmark=micro_visual"),
        ({"evaluation": {}}, r"evaluation.also=\[micro_visual, micro_tools\]"),
        ({"micro": {"families": ["maths", "code"]}}, r"'micro.families.1'"),
        ({"micro": {"families": ["tools", "tools"]}}, "families must each be listed once"),
        ({"micro": {"families": []}}, "'micro.families'"),
        ({"micro": {**FAMILIES, "weights": [1, 2]}}, "one for each of the 3 families"),
        ({"micro": {**FAMILIES, "weights": [1, 2, 0]}}, "'micro.weights.2'"),
        (
            {"scaling": {"samples": 8}, "evaluation": {**EVALUATION, "temperature": 0}},
            "they would all be the same",
        ),
        ({"evaluation": {"also": ["micro_tools", "micro_tools"]}}, "names micro_tools twice"),
        ({"evaluation": {"also": ["micro_maths"]}}, "names micro_maths twice"),
    ],
)
def test_senseless_studies_are_refused(changes: dict[str, Any], message: str) -> None:
    good = {"name": "x", "methods": ["opd"], "seeds": [1], "micro": FAMILIES}
    good["evaluation"] = EVALUATION
    parse(good, StudyConfig, "three.yaml")
    with pytest.raises(ConfigError, match=message):
        parse({**good, **changes}, StudyConfig, "three.yaml")


def test_a_family_is_chosen_by_overrides(tmp_path: Path) -> None:
    path = REPO / "deployments" / "recipes" / "quickstart.yaml"
    sets = ["micro.families=[tools]", "evaluation.benchmark=micro_tools"]
    assert load_recipe(path, StudyConfig, sets).micro.benchmarks == ["micro_tools"]


def test_every_path_of_a_recipe_is_changed() -> None:
    raw = {
        "name": "x",
        "method": "grpo",
        "model": {"student": "~/s"},
        "data": {"train": "~/a", "mix": [{"train": "~/b", "family": "tools", "weight": 2}]},
    }
    config = RunConfig.model_validate(raw).with_paths(lambda path: path.replace("~", "/home"))
    assert [config.data.train, *(s.train for s in config.data.mix)] == ["/home/a", "/home/b"]
    assert config.data.shares == (1, 2)
