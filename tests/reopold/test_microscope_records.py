"""What the microscope records: the models' own log-probs, on prompts that training never met."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reopold.config import (
    ConfigError,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
)
from reopold.microscope import about, record
from reopold.run_dir import Record, RunDir, read_lines
from reopold.study_config import MicroscopeConfig
from tests.faults.zygote import Zygote

STEPS, WIDTH = 4, 6
#: Fewer prompts than a training step has: the first of the stream were all trained on.
SETTINGS = MicroscopeConfig(prompts=4, rollouts=2, alternatives=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, suite: Path, zygote: Zygote) -> RunDir:
    """A finished run of 4 steps that have changed the student, each step's rollouts kept."""
    config = RunConfig(
        name="reopold-s3",
        method="reopold",
        seed=3,
        model=ModelConfig(student=str(suite / "student-init"), teacher=str(suite / "teacher-init")),
        data=DataConfig(train=str(suite / "micro_maths" / "train.jsonl")),
        sampling=SamplingConfig(prompts_per_step=WIDTH, rollouts_per_prompt=2, max_new_tokens=8),
        objective=ObjectiveConfig(lam=0.2, switch_step=2),
        optimizer=OptimizerConfig(lr=1e-2),
        train=TrainConfig(steps=STEPS, checkpoint_every=1, micro_batch=4, keep_rollouts=2 * WIDTH),
    )
    folder = tmp_path_factory.mktemp("microscope")
    run = RunDir(folder / "runs" / config.name).create(config)
    assert zygote.run("reopold.train", str(run.path), log=folder / "log") == 0
    return run


@pytest.fixture(scope="module")
def out(run: RunDir) -> Path:
    folder = run.path.parent / "out"
    record(run, SETTINGS, folder)
    return folder


def records(out: Path, when: str) -> list[Record]:
    return read_lines(out / f"{when}.jsonl")


class Oracle:
    """Plain forward passes of transformers, in float64, one sequence at a time."""

    def __init__(self, run: RunDir, suite: Path) -> None:
        places = {
            "before": suite / "student-init",
            "after": run.checkpoint(STEPS),
            "teacher": suite / "teacher-init",
        }
        self.models = {
            name: AutoModelForCausalLM.from_pretrained(place, dtype=torch.float64).eval()
            for name, place in places.items()
        }
        self.tokenizer = AutoTokenizer.from_pretrained(suite / "student-init")
        ids = range(len(self.tokenizer))
        self.id_of = {self.tokenizer.decode([each]): each for each in ids}
        assert len(self.id_of) == len(ids)  # a token's text tells which token it is

    def logprobs_TV(self, model: str, found: Record) -> torch.Tensor:
        """Of every token that could have followed, at each token of the response."""
        messages = [{"role": "user", "content": found["prompt"]}]
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        prompt = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        response = self.ids(found)
        with torch.no_grad():
            logits = self.models[model](torch.tensor([prompt + response])).logits[0]
        return logits[len(prompt) - 1 : -1, : len(self.tokenizer)].log_softmax(-1)

    def ids(self, found: Record) -> list[int]:
        return [self.id_of[token["text"]] for token in found["tokens"]]


@pytest.fixture(scope="module")
def oracle(run: RunDir, suite: Path) -> Oracle:
    return Oracle(run, suite)


def column(found: Record, name: str) -> torch.Tensor:
    return torch.tensor([token[name] for token in found["tokens"]], dtype=torch.float64)


@pytest.mark.parametrize("when", ["before", "after"])
def test_rewards_are_teacher_minus_student(out: Path, oracle: Oracle, when: str) -> None:
    for found in records(out, when):
        ids = torch.tensor(oracle.ids(found))[:, None]
        teacher_TV = oracle.logprobs_TV("teacher", found)
        student_TV = oracle.logprobs_TV(when, found)
        rewards = column(found, "teacher_logprob") - column(found, "student_logprob")
        wanted = (teacher_TV.gather(1, ids) - student_TV.gather(1, ids)).squeeze(1)
        assert torch.allclose(rewards, wanted, atol=2e-5)
        entropy = -(student_TV.exp() * student_TV).sum(-1)
        assert torch.allclose(column(found, "entropy"), entropy, atol=2e-5)


def test_training_moved_the_student_that_is_read_after(out: Path, oracle: Oracle) -> None:
    """Else the two halves of the test above would be one."""
    found = records(out, "after")[0]
    there = oracle.logprobs_TV("after", found) - oracle.logprobs_TV("before", found)
    assert there.abs().max() > 0.1


def test_alternatives_are_what_the_teacher_finds_likeliest(out: Path, oracle: Oracle) -> None:
    for found in [*records(out, "before"), *records(out, "after")]:
        top = oracle.logprobs_TV("teacher", found).topk(SETTINGS.alternatives)
        for token, ids, logprobs in zip(
            found["tokens"], top.indices.tolist(), top.values.tolist(), strict=True
        ):
            assert [oracle.id_of[text] for text, _ in token["alternatives"]] == ids
            assert [each for _, each in token["alternatives"]] == pytest.approx(logprobs, abs=2e-5)


def test_before_and_after_answer_the_same_prompts(run: RunDir, out: Path) -> None:
    before, after = (
        [each["question_id"] for each in records(out, when)] for when in ("before", "after")
    )
    assert before == after
    assert len(before) == 8 and len(set(before)) == 4  # two rollouts a prompt
    kept = sorted((run.path / "rollouts").glob("step-*.jsonl"))
    met = {each["question_id"] for file in kept for each in read_lines(file)}
    assert len(kept) == STEPS and len(met) == STEPS * WIDTH
    assert not met & set(before)


def test_floor_and_mask_are_those_of_the_phase(out: Path) -> None:
    """Exploration drops what lies below the floor, refinement all but the highest entropies."""
    floor = math.log(0.2) / 0.8
    before, after = records(out, "before"), records(out, "after")
    assert [each["floor"] for each in before + after] == pytest.approx([floor] * 16)
    for found in before:
        rewards = column(found, "teacher_logprob") - column(found, "student_logprob")
        assert (column(found, "kept") == (rewards >= floor)).all()
    kept = torch.cat([column(each, "kept") for each in after]) > 0
    entropy = torch.cat([column(each, "entropy") for each in after])
    assert kept.any() and not kept.all()
    assert entropy[kept].min() >= entropy[~kept].max()


def test_recording_again_gives_the_same_bytes(run: RunDir, out: Path, tmp_path: Path) -> None:
    record(run, SETTINGS, tmp_path)
    for name in ("before.jsonl", "after.jsonl", "about.json"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()
    assert json.loads((out / "about.json").read_text()) == about(run, SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "grpo"}, "method 'grpo' has no teacher to read with"),
        ({}, "has no checkpoint of step 4: finish the run first"),
    ],
)
def test_what_cannot_be_read_is_refused(
    run: RunDir, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config = run.config()
    if change:
        model = config.model.model_copy(update={"teacher": ""})
        config = config.model_copy(update={**change, "model": model})
    other = RunDir(tmp_path / "run").create(config)
    with pytest.raises(ConfigError, match=message):
        record(other, SETTINGS, tmp_path / "out")
    assert not (tmp_path / "out").exists()
