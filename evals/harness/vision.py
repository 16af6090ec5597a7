"""Sampling answers about images: in this process by transformers, or from a server by URL.

A sample is drawn by itself, with its own seed: no batch, no padding, nothing that one question's
images could do to another's answer.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.benchmarks.base import Problem
from evals.grading.thinking import CLOSE, OPEN
from evals.harness.journal import Generation
from evals.harness.sampler import Keep, Request, Sampler, batches, opened_thought, progress
from reopold.config import ConfigError, ServingConfig
from reopold.engines.endpoint import Endpoints, served_name
from reopold.rollouts import SamplingParams
from reopold.stopping import ShouldStop, check

if TYPE_CHECKING:
    from PIL.Image import Image

    from evals.evaluation import Evaluation

PLACEHOLDER = "<image>"
#: Requests whose images are held in memory together.
IMAGES_AT_ONCE = 256
CHAT = "/v1/chat/completions"
#: Pixels of one image; more is refused before it is decoded (a decompression bomb).
MAX_PIXELS = 64_000_000


def vision_sampler(checkpoint: Path, evaluation: Evaluation, label: str) -> Sampler:
    """The sampler that `evaluation.engine` asks for.

    Raises:
        ConfigError: vLLM in this process (serve the model and give its URL), or a checkpoint that
            is no vision-language model.
    """
    settings = evaluation.settings
    if settings.engine == "server":
        return ServedVision(settings.urls, evaluation.should_stop, label)
    if settings.engine == "vllm":
        raise ConfigError(
            "images are sampled by engine hf, or by a vLLM server: start `vllm serve CHECKPOINT` "
            "and give its URL as the engine"
        )
    return LocalVision.load(checkpoint, evaluation, label)


def load_image(path: str) -> Image:
    """An RGB image from a local file; the first frame of an animation.

    Raises:
        ConfigError: it is missing, broken or too large.
    """
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    try:
        image = Pillow.open(path)
        if image.width * image.height > MAX_PIXELS:
            raise ConfigError(f"image {path} has {image.width} x {image.height} pixels: too large")
        return image.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise ConfigError(f"image {path} cannot be read: {error}") from error


def content(problem: Problem) -> list[dict[str, Any]]:
    """The chat with `{"type": "image", "path"}` parts where placeholders stand.

    Raises:
        ConfigError: placeholders and images differ in number.
    """
    images = iter(problem.images)
    chat = []
    asked = sum(message["content"].count(PLACEHOLDER) for message in problem.messages)
    if asked != len(problem.images):
        raise ConfigError(
            f"problem {problem.id} has {asked} image placeholders and {len(problem.images)} images"
        )
    for message in problem.messages:
        parts: list[dict[str, str]] = []
        for place, text in enumerate(message["content"].split(PLACEHOLDER)):
            if place:
                parts.append({"type": "image", "path": next(images)})
            if text.strip():
                parts.append({"type": "text", "text": text})
        chat.append({"role": message["role"], "content": parts})
    return chat


@dataclass
class LocalVision:
    """A model of `AutoModelForImageTextToText` and its processor."""

    model: Any
    processor: Any
    should_stop: ShouldStop
    label: str

    @classmethod
    def load(cls, checkpoint: Path, evaluation: Evaluation, label: str) -> LocalVision:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from evals.harness.engines import torch_device

        try:
            processor = AutoProcessor.from_pretrained(str(checkpoint))
            model: Any = AutoModelForImageTextToText.from_pretrained(
                str(checkpoint), dtype=getattr(torch, evaluation.dtype)
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"checkpoint {checkpoint} cannot answer questions about images: {reason}"
            ) from error
        model = model.to(torch_device(evaluation.device)).eval()
        return cls(model, processor, evaluation.should_stop, label)

    def sample(self, requests: Sequence[Request], params: SamplingParams, keep: Keep) -> None:
        with progress(len(requests), self.label) as bar:
            for request in requests:
                check(self.should_stop)
                keep(request.key, self._answer(request, params))
                bar.update()

    def _answer(self, request: Request, params: SamplingParams) -> Generation:
        import torch

        started = time.perf_counter()
        inputs = self._inputs(request.problem)
        length = inputs["input_ids"].shape[1]
        draw: dict[str, Any] = {"do_sample": False}
        if params.temperature > 0.0:
            draw = {"do_sample": True, "temperature": params.temperature, "top_p": params.top_p}
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(request.seed)
            output = self.model.generate(
                **inputs, **draw, top_k=0, max_new_tokens=params.max_new_tokens
            )
        ids = output[0, length:].tolist()
        ended = ids[-1] in _ids(self.model.generation_config.eos_token_id)
        tokenizer = self.processor.tokenizer
        opened = opened_thought(tokenizer, inputs["input_ids"][0].tolist())
        return Generation(
            text=opened + str(tokenizer.decode(ids, skip_special_tokens=True)),
            ids=ids,
            finish_reason="stop" if ended else "length",
            tokens=len(ids),
            prompt_tokens=length,
            seconds=round(time.perf_counter() - started, 4),
        )

    def _inputs(self, problem: Problem) -> Any:
        chat = content(problem)
        images = [load_image(path) for path in problem.images]
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = self.processor(text=[text], images=images or None, return_tensors="pt")
        return inputs.to(self.model.device)


@dataclass
class ServedVision:
    """An OpenAI-compatible server: images travel inside the request."""

    urls: list[str]
    should_stop: ShouldStop
    label: str

    def sample(self, requests: Sequence[Request], params: SamplingParams, keep: Keep) -> None:
        serving = ServingConfig(kind="server", urls=self.urls)
        endpoints = Endpoints(serving, self.urls, "engine", self.should_stop)
        try:
            model = served_name(endpoints)
            with progress(len(requests), self.label) as bar:
                for batch in batches(requests, IMAGES_AT_ONCE):
                    bodies = [self._body(model, request, params) for request in batch]
                    started = time.perf_counter()
                    for place, answer in endpoints.map(bodies, lambda _, a: a, path=CHAT):
                        keep(batch[place].key, _generation(answer, time.perf_counter() - started))
                        bar.update()
        finally:
            endpoints.close()

    def _body(self, model: str, request: Request, params: SamplingParams) -> dict[str, Any]:
        chat = content(request.problem)
        for message in chat:
            message["content"] = [_wire(part) for part in message["content"]]
        return {
            "model": model,
            "messages": chat,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_tokens": params.max_new_tokens,
            "seed": request.seed,
            "n": 1,
        }


def _wire(part: dict[str, str]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    buffer = io.BytesIO()
    load_image(part["path"]).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def _generation(answer: dict[str, Any], seconds: float) -> Generation:
    choice = answer["choices"][0]
    thought = choice["message"].get("reasoning_content")
    text = choice["message"].get("content") or ""
    if thought:  # a server that parses thoughts; one without an answer was never closed
        text = f"{OPEN}{thought}{CLOSE}{text}" if text else f"{OPEN}{thought}"
    return Generation(
        text=text,
        ids=[],
        finish_reason="stop" if choice["finish_reason"] == "stop" else "length",
        tokens=int(answer["usage"]["completion_tokens"]),
        prompt_tokens=int(answer["usage"]["prompt_tokens"]),
        seconds=round(seconds, 4),
    )


def _ids(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]
