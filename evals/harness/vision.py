"""Answers about images from a server that takes them inside a chat, whoever made it."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evals.harness.journal import Generation
from evals.harness.sampler import Keep, Request, batches, progress
from reopold.answers.thinking import CLOSE, OPEN
from reopold.config import ConfigError, ServingConfig
from reopold.data.images import Image, chat_parts, load_image
from reopold.engines.endpoint import Endpoints, served_name
from reopold.rollouts import SamplingParams
from reopold.stopping import ShouldStop

#: Requests whose images are held in memory together.
IMAGES_AT_ONCE = 256
CHAT = "/v1/chat/completions"


@dataclass
class ServedVision:
    """An OpenAI-compatible server: images travel inside the request."""

    urls: list[str]
    should_stop: ShouldStop
    label: str

    def sample(self, requests: Sequence[Request], params: SamplingParams, keep: Keep) -> None:
        # All of them first: a prompt that cannot be sent ends it before any work is done.
        asked = [(request, chat(request)) for request in requests]
        serving = ServingConfig(kind="server", urls=self.urls)
        endpoints = Endpoints(serving, self.urls, "engine", self.should_stop)
        try:
            model = served_name(endpoints)
            with progress(len(requests), self.label) as bar:
                for batch in batches(asked, IMAGES_AT_ONCE):
                    bodies = [_body(model, *each, params) for each in batch]
                    started = time.perf_counter()
                    for place, answer in endpoints.map(bodies, lambda _, a: a, path=CHAT):
                        seconds = time.perf_counter() - started
                        keep(batch[place][0].key, _generation(answer, seconds))
                        bar.update()
        finally:
            endpoints.close()


def chat(request: Request) -> list[dict[str, Any]]:
    """The question's chat in parts (see :func:`reopold.data.images.chat_parts`).

    Raises:
        ConfigError: it has not one placeholder an image.
    """
    try:
        return chat_parts(request.problem.messages, len(request.images))
    except ConfigError as error:
        raise ConfigError(f"problem {request.problem.id}: {error}") from error


def _body(
    model: str, request: Request, messages: Sequence[dict[str, Any]], params: SamplingParams
) -> dict[str, Any]:
    images = iter(request.images)
    return {
        "model": model,
        "messages": [
            {**message, "content": _content(message["content"], images)} for message in messages
        ],
        "temperature": params.temperature,
        "top_p": params.top_p,
        "max_tokens": params.max_new_tokens,
        "seed": request.seed,
        "n": 1,
    }


def _content(parts: str | Sequence[dict[str, str]], images: Iterator[Image]) -> Any:
    """A message's content as it is sent, with the next images where their parts stand."""
    if isinstance(parts, str):
        return parts
    return [_url(next(images)) if part["type"] == "image" else part for part in parts]


def _url(image: Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    load_image(image.path).save(buffer, format="PNG")
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
