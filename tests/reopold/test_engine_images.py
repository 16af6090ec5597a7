"""What every engine owes its callers of a model that sees, beyond test_engine_contract.py.

The oracle is the trainer's own scoring of the same weights. What the images take among the ids is
each engine's own affair: prompts hold one placeholder id an image.
"""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import load_file
from transformers import PreTrainedModel

from reopold.config import ConfigError, DataConfig, EngineConfig, ModelConfig, RunConfig
from reopold.data.images import Image, find_image, load_image
from reopold.data.tokenizers import load_tokenizer
from reopold.engines.base import Engine, EngineFailure
from reopold.engines.build import build_engine
from reopold.engines.export import export
from reopold.engines.handover import hand_over
from reopold.engines.hf import HFEngine, load_model
from reopold.engines.served import ServedEngine
from reopold.logprobs import Head
from reopold.rollouts import Needs, Rollout, SamplingParams
from reopold.scoring import Scores, output_head, score
from reopold.teachers.local import LocalTeacher
from reopold.vision import Vision
from tests.reopold.fake_vllm import FakeVLLM
from tests.reopold.tiny_vision import noise_image, tiny_llava

SAMPLED = SamplingParams(24)
#: vLLM's kernels against transformers', float32.
TOLERANCE = 1e-4

needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not here: make test-vllm"
    ),
]
KINDS = [
    "hf",
    pytest.param("vllm", marks=needs_vllm),
    pytest.param("server", marks=needs_vllm),
]


@dataclass
class Rig:
    """An engine, and the model that it must agree with."""

    kind: str
    engine: Engine
    model: PreTrainedModel
    tokenizer: Any
    vision: Vision
    pictures: list[Image]
    version: int = 0

    @property
    def head(self) -> Head:
        return output_head(self.model, len(self.tokenizer))

    @property
    def prompts(self) -> list[list[int]]:
        """One image, none, two, and the first prompt again, of another image."""
        image, encode = self.vision.image_token_id, self.tokenizer.encode
        one = [image, *encode("1+1=")]
        return [one, encode("2+2="), [*encode("a"), image, image, *encode("b")], one]

    @property
    def images(self) -> list[list[Image]]:
        first, second, third = self.pictures
        return [[first], [], [second, third], [third]]

    def sample(self, params: SamplingParams = SAMPLED, n: int = 1) -> list[Rollout]:
        return self.engine.generate(
            self.prompts, params, seeds=[10, 20, 30, 10], n=n, images=self.images
        )

    def trainer(self, rollouts: list[Rollout], top_k: int = 0) -> Scores:
        head, vision = self.head, self.vision
        return score(self.model, rollouts, head=head, micro_batch=8, top_k=top_k, vision=vision)

    def gap(self, rollouts: list[Rollout]) -> float:
        sampler_N = torch.tensor([x for r in rollouts for x in r.logprobs])
        return float((self.trainer(rollouts).logprobs_N - sampler_N).abs().max())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    folder = tmp_path_factory.mktemp("pictures")
    files = [noise_image(folder / f"{i}.png", 40 + 8 * i, 30, seed=i) for i in range(3)]
    return [find_image(str(file)) for file in files]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module", params=KINDS)
def rig(
    request: Any,
    checkpoint: Path,
    pictures: list[Image],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Rig]:
    path = str(checkpoint)
    model = load_model(path, dtype="float32", device="cpu")
    tokenizer, vision = load_tokenizer(path), Vision.of(model, path)
    assert vision is not None
    config = RunConfig(
        name="images",
        method="grpo",
        model=ModelConfig(student=path),
        data=DataConfig(train="./prompts.jsonl"),
        engine=EngineConfig(kind=request.param),
    )
    engine = build_engine(
        config,
        model,
        tokenizer,
        tmp_path_factory.mktemp("engine"),
        version=0,
        vision=vision,
        should_stop=lambda: False,
    )
    rig = Rig(request.param, engine, model, tokenizer, vision, pictures)
    if request.param != "hf":
        hand_over(engine, model, rig.head, 0, torch.float32, vision)
    yield rig
    engine.close()


def test_samples_carry_the_trainers_log_probs_and_their_images(rig: Rig) -> None:
    """Some of them have an image token that was sampled, where no image belongs."""
    rollouts = rig.sample(n=6)
    assert [r.prompt_ids for r in rollouts] == [p for p in rig.prompts for _ in range(6)]
    assert [list(r.images) for r in rollouts] == [i for i in rig.images for _ in range(6)]
    assert any(rig.vision.image_token_id in r.response_ids[:-1] for r in rollouts)
    assert rig.gap(rollouts) < TOLERANCE


def test_a_sample_depends_on_its_seed_and_its_own_images(rig: Rig) -> None:
    """The same ids with another image are another prompt, whatever is cached of the first."""
    together = rig.sample(n=3)
    assert [r.response_ids for r in together[:3]] != [r.response_ids for r in together[9:]]
    for i, (prompt, images) in enumerate(zip(rig.prompts, rig.images, strict=True)):
        seed = [10, 20, 30, 10][i] + 1
        (alone,) = rig.engine.generate([prompt], SAMPLED, seeds=[seed], images=[images])
        assert alone.response_ids == together[3 * i + 1].response_ids


def test_scores_of_responses_to_images_are_the_trainers(rig: Rig) -> None:
    rollouts = rig.sample(n=2)
    ours, theirs = rig.trainer(rollouts, top_k=1), rig.engine.score(rollouts, top_k=1)
    assert (ours.logprobs_N - theirs.logprobs_N).abs().max() < TOLERANCE
    top, other = ours.distribution, theirs.distribution
    assert torch.equal(top.ids_NK, other.ids_NK)  # type: ignore[union-attr]


def test_placeholders_and_images_must_be_as_many(rig: Rig) -> None:
    first, wrong = rig.prompts[0], [[], [rig.pictures[0]] * 2]
    for images in wrong:
        with pytest.raises(ConfigError, match=f"1 image tokens for {len(images)} images"):
            rig.engine.generate([first], SAMPLED, seeds=[1], images=[images])
        with pytest.raises(ConfigError, match=f"1 image tokens for {len(images)} images"):
            rig.engine.score([Rollout(first, [9], [], "length", images=tuple(images))])
    assert rig.gap(rig.sample()) < TOLERANCE  # nothing is left of the refused requests


def test_more_images_than_the_model_has_room_for(rig: Rig) -> None:
    many = 40  # of 16 tokens each, where the model has 512 positions
    prompt = [rig.vision.image_token_id] * many + rig.prompts[1]
    with pytest.raises((ConfigError, EngineFailure), match=r"512"):
        rig.engine.generate([prompt], SAMPLED, seeds=[1], images=[[rig.pictures[0]] * many])


def test_a_stop_string_ends_an_answer_about_an_image(rig: Rig) -> None:
    plain = rig.sample(n=4)
    stopped = rig.sample(SamplingParams(24, stop_strings=("1", "<|us")), n=4)
    assert {r.finish_reason for r in stopped} == {"stop", "length"}
    for before, after in zip(plain, stopped, strict=True):
        ids = after.response_ids
        assert ids == before.response_ids[: len(ids)]
        if ids[-1] != rig.tokenizer.eos_token_id:
            text = rig.tokenizer.decode(ids)
            assert (after.finish_reason == "stop") == ("1" in text or "<|us" in text)


def test_updates_of_the_tower_and_of_all_reach_the_samples(rig: Rig) -> None:
    """What is cached of an image would be a feature of the old tower."""
    generator = torch.Generator().manual_seed(3)
    before = rig.sample(n=2)
    for inside in ("vision_tower.", "", ""):
        with torch.no_grad():
            for name, weight in rig.model.named_parameters():
                if inside in name:
                    noise = torch.randn(weight.shape, generator=generator)
                    weight.add_(0.3 * weight.abs().mean() * noise)
        rig.version += 1
        if rig.kind == "hf":
            rig.engine.update_weights(rig.model, rig.version)
        else:
            gap = hand_over(rig.engine, rig.model, rig.head, rig.version, torch.float32, rig.vision)
            assert gap < TOLERANCE
        assert rig.gap(before[:2]) > 10 * TOLERANCE  # the old samples are off
        before = rig.sample(n=2)
        assert rig.gap(before) < TOLERANCE
        assert {r.weight_version for r in before} == {rig.version}


@pytest.mark.vllm
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not here")
def test_a_vllm_teacher_of_another_resolution_scores_as_a_local_one(
    checkpoint: Path, pictures: list[Image], tmp_path: Path
) -> None:
    from reopold.teachers.vllm import VLLMTeacher

    path = str(tiny_llava(tmp_path / "teacher", image_size=48, seed=1))
    model, tokenizer = load_model(path, dtype="float32", device="cpu"), load_tokenizer(path)
    local = LocalTeacher(model, len(tokenizer), 4, vision=Vision.of(model, path))
    student = HFEngine.load(checkpoint)
    prompts = [[5, *tokenizer.encode("1+1=")], tokenizer.encode("2+2="), [5, 5]]
    images = [pictures[:1], [], pictures[1:]]
    rollouts = student.generate(prompts, SAMPLED, seeds=[1, 2, 3], n=4, images=images)
    # An image token that was sampled stands for itself in a teacher that nobody hands weights to.
    rollouts = [r for r in rollouts if 5 not in r.response_ids]
    served = VLLMTeacher(
        path,
        eos=tokenizer.eos_token_id,
        vocab_size=len(tokenizer),
        dtype="float32",
        memory_fraction=0.4,
        max_length=0,
        top_k=3,
    )
    needs = Needs(teacher=True, top_k=3)
    try:
        ours, theirs = local.score(rollouts, needs), served.score(rollouts, needs)
    finally:
        served.close()
    assert {len(r.images) for r in rollouts} == {0, 1, 2}
    assert (ours.logprobs_N - theirs.logprobs_N).abs().max() < TOLERANCE


def test_images_go_to_a_server_with_the_ids(checkpoint: Path, tmp_path: Path) -> None:
    """Sent as the trainer reads them, and known to the server by what is in them."""
    Pillow.new("RGBA", (9, 6), (250, 5, 90, 30)).save(tmp_path / "transparent.png")
    picture = find_image(str(tmp_path / "transparent.png"))
    server = FakeVLLM(load_tokenizer(str(checkpoint)))
    prompts, images, params = [[5, 9], [9, 10]], [[picture], []], SamplingParams(12)
    try:
        engine = ServedEngine(server.url, server.tokenizer)
        rollouts = engine.generate(prompts, params, seeds=[10, 20], n=2, images=images)
        assert [list(r.images) for r in rollouts] == [[picture], [picture], [], []]
        assert [r.prompt_ids for r in rollouts] == [[5, 9], [5, 9], [9, 10], [9, 10]]
        assert rollouts[0].logprobs == [-0.5 - t for t in range(len(rollouts[0].response_ids))]
        bodies = sorted(server.pictures, key=lambda body: int(body["sampling_params"]["seed"]))
        assert [body["token_ids"] for body in bodies] == [r.prompt_ids for r in rollouts]
        assert [body["sampling_params"]["seed"] for body in bodies] == [10, 11, 20, 21]
        assert bodies[2]["content_parts"] == []
        (part,) = bodies[0]["content_parts"]
        assert part["type"] == "image_url" and part["uuid"] == f"0-{picture.digest}"
        sent = Pillow.open(io.BytesIO(base64.b64decode(part["url"].split(",")[1])))
        assert sent.mode == "RGB" and sent.tobytes() == load_image(picture.path).tobytes()
        assert server.asked == []  # nothing of it to /v1/completions
        server.sees = False
        with pytest.raises(ConfigError, match=r"no images beside token ids.*--enable-scale-out"):
            engine.generate(prompts, params, seeds=[10, 20], images=images)
        engine.generate([[9]], params, seeds=[1])  # text does without
    finally:
        server.stop()


def test_an_export_has_what_serving_needs(checkpoint: Path, tmp_path: Path) -> None:
    """Names of the checkpoint, an apart head, real ids, the processor."""
    path = str(tiny_llava(tmp_path / "tied", tie=True))
    model, tokenizer = load_model(path, dtype="float32", device="cpu"), load_tokenizer(path)
    size = len(tokenizer) - 3
    folder = export(
        model,
        tokenizer,
        tmp_path / "served",
        version=7,
        vocab_size=size,
        dtype=torch.float32,
        processor=path,
    )
    served, trained = load_file(folder / "model.safetensors"), model.state_dict()
    names = set(load_file(Path(path) / "model.safetensors"))
    (head,) = set(served) - names
    assert names < set(served) and "lm_head" in head
    embedding = trained["model.language_model.embed_tokens.weight"]
    assert torch.equal(served[head], embedding[:size])
    (name,) = (name for name in served if "embed_tokens" in name)
    image = model.config.image_token_id
    assert torch.equal(served[name][image], embedding[0])  # sampled, it is no image
    others = [i for i in range(size) if i != image]
    assert torch.equal(served[name][others], embedding[others])
    again = load_model(str(folder), dtype="float32", device="cpu")
    assert Vision.of(again, str(folder)) is not None
    assert not again.config.tie_word_embeddings and again.config.text_config.vocab_size == size


class Blind(HFEngine):
    """An engine whose tower keeps the weights that it was started with."""

    def update_weights(self, model: PreTrainedModel, version: int) -> int:
        weights = {k: v for k, v in model.state_dict().items() if "vision_tower" not in k}
        self.model.load_state_dict(weights, strict=False)
        self.weight_version = version
        return version


def test_a_tower_that_an_update_does_not_reach_is_found_out(checkpoint: Path) -> None:
    engine, path = Blind.load(checkpoint), str(checkpoint)
    model = load_model(path, dtype="float32", device="cpu")
    vision, head = Vision.of(model, path), output_head(model, len(engine.tokenizer))
    assert hand_over(engine, model, head, 1, torch.float32, vision) < 1e-6
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "vision_tower" in name:
                weight.mul_(1.5)
    with pytest.raises(EngineFailure, match="fixed prompt"):
        hand_over(engine, model, head, 2, torch.float32, vision)
