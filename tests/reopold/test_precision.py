"""Layers in bfloat16, and layers that are computed again: what changes and what must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from reopold.config import ConfigError, RunConfig, TrainConfig
from reopold.data.images import find_image
from reopold.engines.hf import HFEngine
from reopold.precision import layer_passes, prepare
from reopold.rollouts import Rollout
from reopold.run_dir import RunDir
from reopold.scoring import micro_batches, output_head, score, token_hidden
from reopold.train import main
from reopold.trainer import Trainer
from tests.reopold.tiny_vision import noise_image, tiny_qwen25_vl

Recipe = Callable[..., RunConfig]
MakeRun = Callable[..., RunDir]

FULL = TrainConfig()
AGAIN = TrainConfig(recompute_layers=True)
HALF = TrainConfig(precision="bfloat16")
BOTH = TrainConfig(precision="bfloat16", recompute_layers=True)


@pytest.fixture
def student(recipe: Recipe, run_dir: MakeRun) -> Trainer:
    config = recipe(method="opd")
    return Trainer(run_dir(config), config, "cpu")


def rollouts_of(trainer: Trainer) -> list[Rollout]:
    return trainer.sampler.responses(trainer.sampler.next_prompts(0), 0)


def backward(trainer: Trainer, config: TrainConfig) -> tuple[list[Tensor], int]:
    """Gradients of a sum of squares, and the bytes that the forward pass kept for them."""
    prepare(trainer.model, config, "the student")
    (batch,) = micro_batches(rollouts_of(trainer)[:4], 4, "cpu")
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    trainer.model.zero_grad()
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        layer_passes(trainer.model, config),
    ):
        hidden_ND = token_hidden(trainer.model, batch)
    weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    hidden_ND.float().square().sum().backward()
    gradients = [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]
    return gradients, sum(size for place, size in kept.items() if place not in weights)


def test_layers_computed_again_give_the_same_bits_from_less_memory(student: Trainer) -> None:
    whole, held = backward(student, FULL)
    again, kept = backward(student, AGAIN)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert kept < 0.4 * held
    assert not any(module.training for module in student.model.modules())


def test_the_same_with_images(tmp_path: Path) -> None:
    folder = tiny_qwen25_vl(tmp_path / "model")
    engine = HFEngine.load(folder)
    vision = engine.vision
    assert vision is not None
    image = find_image(str(noise_image(tmp_path / "a.png", 56, 56, 3)))
    rollout = Rollout(
        [10, vision.image_token_id, 12], [13, 11, 14], [0.0] * 3, "stop", images=(image,)
    )
    (batch,) = micro_batches([rollout], 1, "cpu", vision)
    found = []
    for config in (FULL, AGAIN):
        prepare(engine.model, config, "it")
        engine.model.zero_grad()
        with layer_passes(engine.model, config):
            hidden_ND = token_hidden(engine.model, batch)
        hidden_ND.square().sum().backward()
        found.append([p.grad.clone() for p in engine.model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_sampling_from_the_shared_model_is_as_before(student: Trainer) -> None:
    before = rollouts_of(student)
    prepare(student.model, AGAIN, "the student")
    with pytest.raises(ZeroDivisionError), layer_passes(student.model, AGAIN):
        _ = 1 / 0
    assert rollouts_of(student) == before


def test_bfloat16_is_of_the_layers_alone(student: Trainer) -> None:
    rollouts = rollouts_of(student)
    head = output_head(student.model, len(student.tokenizer))
    seen: list[torch.dtype] = []
    layer: Any = next(m for m in student.model.modules() if type(m).__name__.endswith("MLP"))
    layer.down_proj.register_forward_hook(lambda *call: seen.append(call[-1].dtype))

    def scores(config: TrainConfig) -> Tensor:
        def within() -> Any:
            return layer_passes(student.model, config)

        return score(student.model, rollouts, head=head, micro_batch=8, within=within).logprobs_N

    full_N, half_N = scores(FULL), scores(HALF)
    assert (seen[0], seen[-1]) == (torch.float32, torch.bfloat16)
    assert half_N.dtype == torch.float32
    difference_N = (full_N - half_N).abs()
    assert 0.0 < float(difference_N.mean()) < 0.02
    # The log-prob itself is no bfloat16 number: those near -3 are 2^-6 apart.
    assert not torch.equal(half_N, half_N.bfloat16().float())
    gradients, _ = backward(student, BOTH)
    whole, _ = backward(student, FULL)
    assert {g.dtype for g in gradients} == {torch.float32}
    for ours, theirs in zip(gradients, whole, strict=True):
        assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > 0.99


def test_a_run_in_bfloat16_resumes_to_the_same_bits(recipe: Recipe, run_dir: MakeRun) -> None:
    train: dict[str, Any] = {
        "steps": 4,
        "checkpoint_every": 2,
        "precision": "bfloat16",
        "recompute_layers": True,
    }
    config = recipe(train=TrainConfig(**train))
    once, twice = run_dir(config), run_dir(config, "again")
    assert main([str(once.path)]) == main([str(twice.path), "--until", "2"]) == 0
    assert main([str(twice.path)]) == 0
    digests = [
        run.checkpoint(4).joinpath("model.safetensors").read_bytes() for run in (once, twice)
    ]
    assert digests[0] == digests[1]
    (line,) = (line for line in once.metrics() if line["step"] == 3)
    assert line["rollout/sampler_gap"] < 0.05


def test_activations_are_kept_or_computed_again_not_both() -> None:
    with pytest.raises(ValidationError, match="choose one"):
        RunConfig.model_validate(
            {
                "name": "r",
                "method": "grpo",
                "model": {"student": "./s"},
                "data": {"train": "./d"},
                "train": {"keep_activations": True, "recompute_layers": True},
            }
        )


def test_models_that_cannot_are_refused(student: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(student.model), "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match="recompute_layers"):
        prepare(student.model, AGAIN, "the student")
