"""Questions about images: a tiny real Llava here, an OpenAI-compatible server by URL."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evals.benchmarks.base import Problem
from evals.harness.journal import Generation, SampleKey
from evals.harness.sampler import Request
from evals.harness.vision import LocalVision, ServedVision, content, load_image
from reopold.config import ConfigError
from reopold.rollouts import SamplingParams
from reopold.stopping import never

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def local(tokenizer_of_images: Any) -> LocalVision:
    """Random weights of a real architecture: answers are noise, but noise that sees."""
    import torch
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = tokenizer_of_images
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.5,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.eos_token_id
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    return LocalVision(model, processor, never, "sampling")


@pytest.fixture(scope="module")
def tokenizer_of_images() -> Any:
    from reopold.micro.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return tokenizer


@pytest.fixture
def image(tmp_path: Path) -> str:
    file = tmp_path / "red.png"
    Image.new("RGB", (40, 30), (250, 5, 5)).save(file)
    return str(file)


def problem(*images: str, text: str | None = None) -> Problem:
    text = "<image>" * len(images) + "1+1=" if text is None else text
    return Problem("q", [{"role": "user", "content": text}], {}, "2", images=list(images))


def answers(sampler: Any, *asked: tuple[Problem, int], **params: Any) -> list[Generation]:
    kept: dict[SampleKey, Generation] = {}
    requests = [Request(SampleKey("q", i), each, seed) for i, (each, seed) in enumerate(asked)]
    settings = SamplingParams(**{"max_new_tokens": 12, "temperature": 1.0} | params)
    sampler.sample(requests, settings, kept.__setitem__)
    return [kept[request.key] for request in requests]


def test_a_sample_depends_on_its_seed_and_its_images_alone(
    local: LocalVision, image: str, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 30), (5, 5, 250)).save(blue := str(tmp_path / "blue.png"))
    red = problem(image)
    first, other, again = answers(local, (red, 1), (red, 2), (red, 1))
    assert first.ids == again.ids != other.ids
    assert answers(local, (red, 1))[0].ids == first.ids  # alone as in company
    assert answers(local, (problem(blue), 1))[0].ids != first.ids
    two, swapped = answers(local, (problem(image, blue), 1), (problem(blue, image), 1))
    assert two.ids != swapped.ids
    assert answers(local, (problem(), 1))[0].ids != first.ids


def test_greedy_is_the_model_s_own(local: LocalVision, image: str) -> None:
    import torch

    inputs = local.processor(
        text=["<|user|><image>1+1=<|assistant|>"], images=[load_image(image)], return_tensors="pt"
    )
    with torch.inference_mode():
        wanted = local.model.generate(**inputs, do_sample=False, max_new_tokens=12)
    ids = wanted[0, inputs["input_ids"].shape[1] :].tolist()
    (given,) = answers(local, (problem(image), 7), temperature=0.0)
    assert given.ids == ids and given.tokens == len(ids)


def test_bad_images_are_named(tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torn.png").write_bytes(Path(image).read_bytes()[:60])
    for name in ("absent.png", "torn.png"):
        with pytest.raises(ConfigError, match=f"{name} cannot be read"):
            load_image(str(tmp_path / name))
    monkeypatch.setattr("evals.harness.vision.MAX_PIXELS", 1000)
    with pytest.raises(ConfigError, match="40 x 30 pixels: too large"):
        load_image(image)
    for wrong in (problem(image, text="1+1="), problem(text="<image>1")):
        with pytest.raises(ConfigError, match="placeholders"):
            content(wrong)


class Server(BaseHTTPRequestHandler):
    asked: list[dict[str, Any]]

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "vlm"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        message: dict[str, Any] = {"content": f"#{body['seed']}"}
        if body["seed"] == 9:
            message = {"content": None, "reasoning_content": "hm"}
        choice = {"message": message, "finish_reason": "length" if body["seed"] == 9 else "stop"}
        self._answer({"choices": [choice], "usage": {"completion_tokens": 3, "prompt_tokens": 7}})

    def _answer(self, answer: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_a_server_is_sent_the_image_and_every_seed(server: str, image: str) -> None:
    served = ServedVision([server], never, "sampling")
    asked = [(problem(image), seed) for seed in (5, 6, 9)]
    found = answers(served, *asked, top_p=0.9)
    assert [each.text for each in found] == ["#5", "#6", "<think>hm"]
    assert [each.finish_reason for each in found] == ["stop", "stop", "length"]
    assert sorted(body["seed"] for body in Server.asked) == [5, 6, 9]
    for body in Server.asked:
        part = body["messages"][0]["content"][0]
        assert part["image_url"]["url"].startswith("data:image/png;base64,")
        assert (body["top_p"], body["max_tokens"], body["model"]) == (0.9, 12, "vlm")
