"""Training on prompts with images: what is learnt, what is saved, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, Qwen3Config

from reopold.config import (
    ConfigError,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    SamplingConfig,
    SourceTeacher,
    TrainConfig,
)
from reopold.engines.hf import HFEngine
from reopold.rollouts import SamplingParams
from reopold.run_dir import RunDir
from reopold.trainer import Trainer
from tests.reopold.tiny_vision import noise_image, tiny_llava, tiny_qwen3_vl, tiny_tokenizer

MakeRun = Callable[..., RunDir]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of both kinds, and prompts with 0, 1 and 2 images."""
    folder = tmp_path_factory.mktemp("vision-training")
    tiny_llava(folder / "student", seed=0)
    tiny_llava(folder / "teacher", image_size=48, seed=1)
    tiny_qwen3_vl(folder / "qwen", seed=2)
    tokenizer = tiny_tokenizer()
    Qwen3Config(vocab_size=len(tokenizer)).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    for i in range(2):
        noise_image(folder / f"{i}.png", 40 + 40 * i, 40, seed=i)
    asked = [("3+4", []), ("<image>what?", ["0.png"]), ("<image>and<image>", ["1.png", "0.png"])]
    lines = [
        {
            "id": f"p{i}",
            "prompt": [{"role": "user", "content": text}],
            "answer": "7",
            "source": "pictures" if images else "sums",
            **({"images": images} if images else {}),
        }
        for i, (text, images) in enumerate(asked)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def recipe(place: Path, *, student: str = "student", teacher: str = "teacher", **more: Any) -> Any:
    model = {"student": str(place / student), "teacher": str(place / teacher)}
    fields: dict[str, Any] = {
        "name": "pictures",
        "family": "visual",
        "method": "reopold",
        "seed": 3,
        "data": DataConfig(train=str(place / "train.jsonl")),
        "sampling": SamplingConfig(prompts_per_step=3, rollouts_per_prompt=2, max_new_tokens=6),
        "train": TrainConfig(steps=2, micro_batch=3),
        "evaluation": EvaluationConfig(data=str(place / "train.jsonl")),
    }
    model |= more.pop("model", {})
    return RunConfig(**{**fields, **more, "model": ModelConfig(**model)})


def trained(run: RunDir, until: int, point: Path | None = None) -> Trainer:
    trainer = Trainer(run, run.config(), "cpu", point=point)
    trainer.train(until)
    trainer.close()
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def in_tower(name: str) -> bool:
    return "vision_tower." in name or ("visual." in name and "merger" not in name)


@pytest.mark.parametrize(("student", "frozen"), [("student", False), ("qwen", True)])
def test_a_run_learns_from_images_and_resumes_to_the_bit(
    student: str, frozen: bool, place: Path, run_dir: MakeRun
) -> None:
    config = recipe(place, student=student, model={"freeze_vision": frozen})
    whole = run_dir(config, "whole")
    before = weights(Trainer(whole, config, "cpu"))
    after = weights(trained(whole, 2))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("language_model" in name for name in changed)
    assert any("projector" in name or "merger" in name for name in changed)
    assert any(in_tower(name) for name in changed) is not frozen
    metrics = whole.metrics()
    assert len(metrics) == 2 and all(line["rollout/sampler_gap"] < 1e-4 for line in metrics)

    halves = run_dir(config, "halves")
    trained(halves, 1)
    resumed = weights(trained(halves, 2, halves.checkpoint(1)))
    for name, value in after.items():
        assert torch.equal(resumed[name], value), name


def test_a_checkpoint_is_an_ordinary_folder_with_its_processor(
    place: Path, run_dir: MakeRun
) -> None:
    run = run_dir(recipe(place))
    trainer = trained(run, 1)
    checkpoint = run.checkpoint(1)
    source = AutoProcessor.from_pretrained(place / "student")
    saved = AutoProcessor.from_pretrained(checkpoint)
    assert saved.to_dict() == source.to_dict()
    engine = HFEngine.load(checkpoint)
    assert engine.vision is not None and trainer.updater.vision is not None
    prompts = trainer.sampler.next_prompts(0)
    rollouts = trainer.sampler.responses(prompts, 0)
    assert any(rollout.images for rollout in rollouts)
    torch.testing.assert_close(
        engine.score(rollouts).logprobs_N, trainer.updater.score(rollouts).logprobs_N
    )
    asked = [rollouts[-1].prompt_ids]
    made = engine.generate(asked, SamplingParams(4), seeds=[0], images=[rollouts[-1].images])
    assert made[0].prompt_ids == rollouts[-1].prompt_ids and made[0].images == rollouts[-1].images


def test_the_student_as_its_own_teacher_earns_nothing(place: Path, run_dir: MakeRun) -> None:
    config = recipe(place, teacher="student")
    trainer = Trainer(run_dir(config), config, "cpu")
    assert trainer.teacher is not None
    prompts = trainer.sampler.next_prompts(0)
    rollouts = trainer.sampler.responses(prompts, 0)
    reward = trainer.teacher.score(rollouts).logprobs_N - trainer.updater.score(rollouts).logprobs_N
    assert any(rollout.images for rollout in rollouts) and reward.abs().max() < 2e-5


@pytest.mark.parametrize("blind", ["student", "teacher"])
def test_images_for_a_text_model_are_refused(blind: str, place: Path, run_dir: MakeRun) -> None:
    config = recipe(place, **{blind: "text"})
    with pytest.raises(ConfigError, match=r"prompt p1 has images, which .*text does not take"):
        Trainer(run_dir(config), config, "cpu")


def test_a_text_teacher_may_score_the_prompts_without_images(
    place: Path, run_dir: MakeRun, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    tiny: Any = Qwen3Config(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
    )
    AutoModelForCausalLM.from_config(tiny).save_pretrained(tmp_path / "text")
    tiny_tokenizer().save_pretrained(tmp_path / "text")
    text = str(tmp_path / "text")
    config = recipe(place, teachers=[SourceTeacher(sources=["sums"], model=text)])
    assert len(trained(run_dir(config), 1).run.metrics()) == 1
    wrong = recipe(place, teachers=[SourceTeacher(sources=["pictures"], model=text)])
    with pytest.raises(ConfigError, match="prompt p1 has images, which"):
        Trainer(run_dir(wrong, "wrong"), wrong, "cpu")


def test_a_teacher_without_room_for_the_images_is_refused(
    place: Path, run_dir: MakeRun, tmp_path: Path
) -> None:
    tiny_llava(tmp_path / "fine", image_size=256, seed=1)  # 1,024 tokens an image
    config = recipe(place, model={"teacher": str(tmp_path / "fine")})
    with pytest.raises(ConfigError, match=r"prompt p[12]: .*the 512 that the model has"):
        Trainer(run_dir(config), config, "cpu")


def test_a_frozen_tower_needs_one(place: Path, run_dir: MakeRun, suite: Path) -> None:
    model = {"student": str(suite / "student-init"), "teacher": str(suite / "teacher-init")}
    data = DataConfig(train=str(suite / "micro_maths" / "train.jsonl"))
    config = recipe(place, model={**model, "freeze_vision": True}, data=data)
    with pytest.raises(ConfigError, match="freeze_vision"):
        Trainer(run_dir(config), config, "cpu")
