"""Rollouts with images: what is scored is what one forward pass of one sequence gives.

The oracle is the model's own forward of a single sequence, neither padded nor batched, with the
positions that the model itself works out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from reopold.config import ConfigError
from reopold.data.images import Image, find_image, load_image
from reopold.data.tokenizers import render
from reopold.engines.draws import choose
from reopold.engines.hf import HFEngine
from reopold.rollouts import Rollout, SamplingParams
from reopold.scoring import micro_batches, output_head, token_hidden
from reopold.scoring import score as score_rollouts
from reopold.vision import Vision
from tests.reopold.tiny_vision import (
    noise_image,
    tiny_llava,
    tiny_qwen2_vl,
    tiny_qwen3_vl,
    tiny_qwen25_vl,
)

MAKERS: dict[str, Callable[..., Path]] = {
    "llava": tiny_llava,
    "qwen2-vl": tiny_qwen2_vl,
    "qwen2.5-vl": tiny_qwen25_vl,
    "qwen3-vl": tiny_qwen3_vl,
}
#: Another resolution of the same tower: other room for an image.
FINER: dict[str, dict[str, int]] = {
    "llava": {"image_size": 48},
    "qwen2-vl": {"max_pixels": 28 * 28 * 2},
    "qwen2.5-vl": {"max_pixels": 28 * 28 * 2},
    "qwen3-vl": {"max_pixels": 32 * 32 * 2},
}
LENGTH = 10


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    folder = tmp_path_factory.mktemp("pictures")
    sizes = [(32, 32), (64, 48), (100, 60)]
    files = [noise_image(folder / f"{i}.png", *size, seed=i) for i, size in enumerate(sizes)]
    return [find_image(str(file)) for file in files]


@pytest.fixture(scope="module", params=list(MAKERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engine(kind: str, tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    return HFEngine.load(MAKERS[kind](tmp_path_factory.mktemp("vision") / kind))


@pytest.fixture(scope="module")
def teacher(kind: str, tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    """Other weights, and other room for an image."""
    folder = tmp_path_factory.mktemp("vision") / f"{kind}-teacher"
    return HFEngine.load(MAKERS[kind](folder, seed=1, **FINER[kind]))


def chats(pictures: Sequence[Image]) -> list[tuple[str, tuple[Image, ...]]]:
    """0, 1, 3 and 1 images."""
    return [
        ("what is 3+4?", ()),
        ("<image>what?", (pictures[0],)),
        ("a <image> b <image> c<image> sum?", tuple(pictures)),
        ("say what is here <image> and not anywhere else", (pictures[1],)),
    ]


def prompts(engine: HFEngine, asked: Sequence[tuple[str, tuple[Image, ...]]]) -> list[list[int]]:
    return [
        render(engine.tokenizer, [{"role": "user", "content": text}], images=len(images))
        for text, images in asked
    ]


def sample(engine: HFEngine, pictures: Sequence[Image], temperature: float = 1.0) -> list[Rollout]:
    asked = chats(pictures)
    return engine.generate(
        prompts(engine, asked),
        SamplingParams(LENGTH, temperature),
        seeds=range(100, 100 + len(asked)),
        images=[images for _, images in asked],
    )


def forward_inputs(engine: HFEngine, rollout: Rollout) -> tuple[list[int], dict[str, Any]]:
    """Expanded prompt ids and pixels by the image processor alone."""
    vision = engine.vision
    assert vision is not None
    processor = getattr(vision.processor, "image_processor", vision.processor)
    looks = [
        processor(images=[load_image(image.path)], return_tensors="pt") for image in rollout.images
    ]
    tower: Any = engine.model.config.vision_config
    counts = [
        int(look["image_grid_thw"].prod()) // processor.merge_size**2
        if "image_grid_thw" in look
        else (tower.image_size // tower.patch_size) ** 2
        for look in looks
    ]
    ids: list[int] = []
    for token in rollout.prompt_ids:
        ids += [token] * (counts.pop(0) if token == vision.image_token_id else 1)
    keys = list(looks[0]) if looks else []
    return ids, {key: torch.cat([look[key] for look in looks]) for key in keys}


def alone(engine: HFEngine, rollout: Rollout) -> torch.Tensor:
    """Log-probs of a response from one forward pass of its own."""
    vision = engine.vision
    assert vision is not None
    prompt, inputs = forward_inputs(engine, rollout)
    ids = torch.tensor([prompt + vision.harmless(rollout.response_ids)])
    model: Any = engine.model
    if hasattr(model.base_model, "rope_deltas"):
        model.base_model.rope_deltas = None
        inputs["mm_token_type_ids"] = (ids == vision.image_token_id).int()
    with torch.no_grad():
        logits = model(input_ids=ids, **inputs).logits[0].double()
    logprobs = logits[:, : len(engine.tokenizer)].log_softmax(-1)
    where = torch.arange(len(rollout.response_ids)) + len(prompt) - 1
    return logprobs[where, torch.tensor(rollout.response_ids)]


def test_scores_are_those_of_one_sequence_alone(engine: HFEngine, pictures: list[Image]) -> None:
    rollouts = sample(engine, pictures)
    scores = engine.score(rollouts).logprobs_N.double()
    torch.testing.assert_close(
        scores, torch.cat([alone(engine, r) for r in rollouts]), atol=2e-5, rtol=1e-5
    )
    sampled = torch.tensor([x for r in rollouts for x in r.logprobs], dtype=torch.float64)
    torch.testing.assert_close(scores, sampled, atol=2e-5, rtol=1e-5)


def test_a_teacher_of_another_resolution_scores_the_same_tokens(
    engine: HFEngine, teacher: HFEngine, pictures: list[Image]
) -> None:
    rollouts = sample(engine, pictures)
    assert engine.vision and teacher.vision
    of_three = rollouts[2]
    ours = engine.vision.expand(of_three.prompt_ids, of_three.images)
    theirs = teacher.vision.expand(of_three.prompt_ids, of_three.images)
    assert len(ours) != len(theirs)
    scores = teacher.score(rollouts).logprobs_N.double()
    torch.testing.assert_close(
        scores, torch.cat([alone(teacher, r) for r in rollouts]), atol=2e-5, rtol=1e-5
    )


def test_the_student_as_its_own_teacher_earns_nothing(
    engine: HFEngine, pictures: list[Image]
) -> None:
    rollouts = sample(engine, pictures)
    head = output_head(engine.model, len(engine.tokenizer))
    both = [
        score_rollouts(
            engine.model, rollouts, head=head, micro_batch=size, vision=engine.vision
        ).logprobs_N
        for size in (1, 4)
    ]
    torch.testing.assert_close(*both, atol=2e-5, rtol=0)


def test_order_of_images_matters_and_order_of_rows_does_not(
    engine: HFEngine, pictures: list[Image]
) -> None:
    rollouts = sample(engine, pictures)
    swapped = dataclasses.replace(rollouts[2], images=tuple(reversed(rollouts[2].images)))
    before, after = engine.score([rollouts[2]]), engine.score([swapped])
    assert (before.logprobs_N - after.logprobs_N).abs().max() > 1e-3
    forth = engine.score(rollouts).logprobs_N
    back = engine.score(rollouts[::-1]).logprobs_N
    parts = back.split([len(r.response_ids) for r in rollouts[::-1]])
    torch.testing.assert_close(torch.cat(parts[::-1]), forth, atol=2e-5, rtol=0)


def test_greedy_sampling_is_the_models_own(engine: HFEngine, pictures: list[Image]) -> None:
    vision, model = engine.vision, engine.model
    assert vision is not None
    compared = 0
    for rollout in sample(engine, pictures, temperature=0.0):
        if vision.image_token_id in rollout.response_ids:
            continue  # transformers takes it for an image without pixels
        prompt, inputs = forward_inputs(engine, rollout)
        ids = torch.tensor([prompt])
        if hasattr(model.base_model, "rope_deltas"):
            inputs["mm_token_type_ids"] = (ids == vision.image_token_id).int()
        generate: Any = model.generate
        made = generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=LENGTH,
            **inputs,
        )
        assert made[0, len(prompt) :].tolist() == rollout.response_ids
        compared += 1
    assert compared >= 2


def test_gradients_do_not_depend_on_the_micro_batch(
    engine: HFEngine, pictures: list[Image]
) -> None:
    rollouts = sample(engine, pictures)

    def gradients(size: int) -> dict[str, torch.Tensor]:
        engine.model.zero_grad()
        for batch in micro_batches(rollouts, size, "cpu", engine.vision):
            token_hidden(engine.model, batch).square().sum().backward()
        return {
            name: p.grad.clone()
            for name, p in engine.model.named_parameters()
            if p.grad is not None
        }

    whole, split = gradients(4), gradients(1)
    tower = [name for name in whole if "visual" in name or "vision_tower" in name]
    assert tower and whole.keys() == split.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, rtol=1e-3, atol=1e-3)
    engine.model.zero_grad()


def test_a_sampled_image_token_asks_for_no_image(engine: HFEngine, pictures: list[Image]) -> None:
    vision = engine.vision
    assert vision is not None
    first = sample(engine, pictures)[1]
    ids = [*first.response_ids[:3], vision.image_token_id, *first.response_ids[3:6]]
    odd = dataclasses.replace(first, response_ids=ids, logprobs=[0.0] * len(ids))
    scores = engine.score([odd]).logprobs_N.double()
    torch.testing.assert_close(scores, alone(engine, odd), atol=2e-5, rtol=1e-5)


def test_one_text_with_two_images_is_two_prompts(
    engine: HFEngine, pictures: list[Image], tmp_path: Path
) -> None:
    other = find_image(str(noise_image(tmp_path / "other.png", 32, 32, seed=9)))
    asked = [("<image>what?", (pictures[0],)), ("<image>what?", (other,))]
    rollouts = engine.generate(
        prompts(engine, asked),
        SamplingParams(LENGTH),
        seeds=[5, 5],
        images=[images for _, images in asked],
    )
    assert [rollout.images for rollout in rollouts] == [images for _, images in asked]
    scores = engine.score(rollouts).logprobs_N
    torch.testing.assert_close(
        scores, torch.tensor([x for r in rollouts for x in r.logprobs]), atol=2e-5, rtol=1e-5
    )


def test_an_image_token_that_was_drawn_is_fed_back_as_it_is_scored(
    engine: HFEngine, pictures: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.vision is not None
    token, steps = engine.vision.image_token_id, iter(range(LENGTH))

    def drawn(logits_BV: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        ids_B, logprobs_B = choose(logits_BV, *args, **kwargs)
        if next(steps) != 2:
            return ids_B, logprobs_B
        return torch.full_like(ids_B, token), logits_BV.log_softmax(-1)[:, token]

    monkeypatch.setattr("reopold.engines.hf.choose", drawn)
    prompt = prompts(engine, chats(pictures)[1:2])
    (rollout,) = engine.generate(prompt, SamplingParams(LENGTH), seeds=[7], images=[(pictures[0],)])
    assert rollout.response_ids[2] == token and len(rollout.response_ids) > 4
    scores = engine.score([rollout]).logprobs_N
    torch.testing.assert_close(scores, torch.tensor(rollout.logprobs), atol=2e-5, rtol=1e-5)


def test_nothing_is_left_in_the_model_by_an_earlier_call(
    engine: HFEngine, pictures: list[Image]
) -> None:
    """Qwen-VL keeps the offset of the positions of the last prompt that it has seen."""
    rollouts = sample(engine, pictures)
    core: Any = engine.model.base_model
    core.rope_deltas = torch.full((4, 1), 77)
    again = sample(engine, pictures)
    core.rope_deltas = torch.full((4, 1), 77)
    scores = engine.score(rollouts).logprobs_N
    core.rope_deltas = None
    assert [r.response_ids for r in again] == [r.response_ids for r in rollouts]
    assert [r.logprobs for r in again] == [r.logprobs for r in rollouts]
    assert torch.equal(scores, engine.score(rollouts).logprobs_N)


def test_half_precision_passes_the_check_of_the_head(
    kind: str, pictures: list[Image], tmp_path: Path
) -> None:
    engine = HFEngine.load(MAKERS[kind](tmp_path / kind), dtype="bfloat16")
    rollouts = sample(engine, pictures)
    scores = engine.score(rollouts).logprobs_N
    sampled = torch.tensor([x for r in rollouts for x in r.logprobs])
    assert scores.dtype == torch.float32
    assert (scores - sampled).abs().mean() < 0.05


def test_the_cache_of_images_is_bounded(
    engine: HFEngine, pictures: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = Vision.of(engine.model, str(engine.vision.source if engine.vision else ""))
    assert vision is not None
    token = vision.image_token_id
    vision.expand([token] * 3, pictures)
    assert list(vision.seen) == [image.digest for image in pictures]
    assert vision.held == sum(look.bytes for look in vision.seen.values())
    monkeypatch.setattr("reopold.vision.CACHE_BYTES", 1)
    ids = vision.expand([token], pictures[:1])  # of an image that is there
    assert list(vision.seen) == [image.digest for image in (*pictures[1:], pictures[0])]
    vision.seen.popitem()
    vision.held = sum(look.bytes for look in vision.seen.values())
    assert vision.expand([token], pictures[:1]) == ids
    assert list(vision.seen) == [pictures[0].digest]
    assert vision.held == vision.seen[pictures[0].digest].bytes


def test_equal_files_are_processed_once(
    engine: HFEngine, pictures: list[Image], tmp_path: Path
) -> None:
    vision = engine.vision
    assert vision is not None
    copy = tmp_path / "elsewhere.png"
    copy.write_bytes(Path(pictures[0].path).read_bytes())
    vision.expand([vision.image_token_id], [pictures[0]])
    held = dict(vision.seen)
    vision.expand([vision.image_token_id], [find_image(str(copy))])
    assert vision.seen.keys() == held.keys()


def test_placeholders_and_images_must_agree(engine: HFEngine, pictures: list[Image]) -> None:
    vision = engine.vision
    assert vision is not None
    with pytest.raises(ConfigError, match="2 image tokens for 1 images"):
        vision.expand([vision.image_token_id] * 2, pictures[:1])
    with pytest.raises(ConfigError, match="0 image tokens for 1 images"):
        engine.generate([[10, 11]], SamplingParams(2), seeds=[0], images=[(pictures[0],)])
    many = 600
    with pytest.raises(ConfigError, match="512 that"):
        vision.expand([vision.image_token_id] * many, [pictures[0]] * many)
