"""Sampling over HTTP from vLLM: token ids in, token ids and their log-probs out.

Text goes to `/v1/completions`, which every vLLM has. Images need `/inference/v1/generate` (0.32 or
later, started with `--enable-scale-out`): it takes ids and images together, and gives the images
their room itself.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import httpx

from reopold.config import ConfigError
from reopold.data.images import Image, load_image
from reopold.engines.base import EngineFailure, OnFinished, check_limits
from reopold.engines.endpoint import COMPLETIONS, Endpoints
from reopold.engines.stops import StopStrings, response_end
from reopold.rollouts import Rollout, SamplingParams
from reopold.vision import check_placeholders

GENERATE = "/inference/v1/generate"
#: Stop strings that every server takes (OpenAI's limit; vLLM refuses more than some).
SAID_STRINGS = 4


@dataclass(frozen=True)
class Completions:
    """The model `name` behind some endpoints."""

    endpoints: Endpoints
    name: str
    tokenizer: Any
    image_token_id: int | None = None
    """Of a model that takes images."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        seeds: Sequence[int],
        n: int,
        limits: Sequence[int] | None,
        images: Sequence[Sequence[Image]] | None,
        on_finished: OnFinished | None,
        weight_version: int,
        together: int = 1,
    ) -> list[Rollout]:
        """See :meth:`reopold.engines.base.Engine.generate`.

        Args:
            together: samples of a prompt that are asked for in one request, a divisor of n. vLLM
                draws sample i of a request with `seed + i`; it refuses several greedy ones.
        """
        most = check_limits(prompts, params, limits)
        shown = images or [()] * len(prompts)
        requests = [
            self._request(prompt, seen, params, seed + i, together, limit, weight_version)
            for prompt, seen, seed, limit in zip(prompts, shown, seeds, most, strict=True)
            for i in range(0, n, together)
        ]
        seeing = any(shown)

        def parse(place: int, answer: dict[str, Any]) -> list[Rollout]:
            return requests[place].rollouts(answer)

        done: dict[int, Rollout] = {}
        bodies = [request.generation() if seeing else request.completion() for request in requests]
        path = GENERATE if seeing else COMPLETIONS
        for place, rollouts in self.endpoints.map(bodies, parse, path=path):
            for i, rollout in enumerate(rollouts):
                done[place * together + i] = rollout
                if on_finished is not None:
                    on_finished(place * together + i, rollout)
        return [done[index] for index in range(len(prompts) * n)]

    def sample_from(
        self, url: str, prompt: Sequence[int], params: SamplingParams, *, seed: int, timeout: float
    ) -> Rollout:
        """One sample of one replica, in one attempt.

        Raises:
            EngineFailure: it did not answer in `timeout` seconds, or not with token ids.
        """
        request = self._request(prompt, (), params, seed, 1, params.max_new_tokens, 0)
        answer = self.endpoints.ask(url, COMPLETIONS, request.completion(), timeout)
        return request.rollouts(answer)[0]

    def _request(
        self,
        prompt: Sequence[int],
        images: Sequence[Image],
        params: SamplingParams,
        seed: int,
        n: int,
        limit: int,
        weight_version: int,
    ) -> _Request:
        check_placeholders(prompt, images, self.image_token_id)
        return _Request(
            self.name,
            list(prompt),
            tuple(images),
            params,
            seed,
            n,
            limit,
            # Our EOS and what we were asked for: a generation config may list further ids.
            (self.tokenizer.eos_token_id, *params.stop_ids),
            StopStrings(self.tokenizer, params.stop_strings),
            weight_version,
        )


@dataclass(frozen=True)
class _Request:
    """Some samples of a prompt, and how a server is asked for them."""

    model: str
    prompt: list[int]
    images: tuple[Image, ...]
    params: SamplingParams
    seed: int
    n: int
    limit: int
    stops: tuple[int, ...]
    strings: StopStrings
    weight_version: int

    def completion(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": self.prompt,
            "return_token_ids": True,
            **self._sampling(),
        }

    def generation(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "token_ids": self.prompt,
            "content_parts": image_parts(self.images, self.weight_version),
            "sampling_params": self._sampling(),
        }

    def _sampling(self) -> dict[str, Any]:
        sampling = {
            "n": self.n,
            "seed": self.seed,
            "temperature": self.params.temperature,
            "top_p": self.params.top_p,
            # Said although they are neutral: a server may take others from the model's
            # generation_config.json (Qwen3's has top_k 20).
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "max_tokens": self.limit,
            "min_tokens": self.params.min_new_tokens,
            "logprobs": 0,  # the sampled token's own
            "stop_token_ids": list(self.stops),
            "ignore_eos": True,
        }
        if self.params.stop_strings:  # saves tokens; where a response ends is found out here
            sampling |= {
                "stop": list(self.params.stop_strings[:SAID_STRINGS]),
                "include_stop_str_in_output": True,
                "skip_special_tokens": False,
            }
        return sampling

    def rollouts(self, answer: dict[str, Any]) -> list[Rollout]:
        choices = sorted(answer.get("choices") or [], key=lambda choice: choice["index"])
        if len(choices) != self.n:
            raise EngineFailure(f"a server returned {len(choices)} of {self.n} samples")
        return [self._rollout(choice) for choice in choices]

    def _rollout(self, choice: dict[str, Any]) -> Rollout:
        """Raises EngineFailure: no token ids, or a response that ended where nobody asked it to."""
        ids, logprobs = choice.get("token_ids"), _logprobs(choice)
        if not ids or len(ids) != len(logprobs):
            raise EngineFailure(
                f"a server returned {len(ids or [])} token ids and {len(logprobs)} log-probs "
                "of them: it must be a vLLM that knows return_token_ids"
            )
        if len(ids) > self.limit:
            raise EngineFailure(
                f"a server returned {len(ids)} tokens where {self.limit} were asked for"
            )
        end, reason = response_end(ids, self.stops, self.limit, self.strings)
        if end > len(ids):
            raise EngineFailure(_cut_off(ids, self.limit, choice))
        return Rollout(
            prompt_ids=self.prompt,
            response_ids=ids[:end],
            logprobs=[float(value) for value in logprobs[:end]],
            finish_reason=reason,
            weight_version=self.weight_version,
            images=self.images,
        )


def _logprobs(choice: dict[str, Any]) -> list[float]:
    """Of every token; `/v1/completions` and `/inference/v1/generate` write them differently."""
    found = choice.get("logprobs") or {}
    content = found.get("content")
    if content is not None:
        return [entry["logprob"] for entry in content]
    return found.get("token_logprobs") or []


def image_parts(images: Sequence[Image], weight_version: int) -> list[dict[str, str]]:
    """Images as :data:`GENERATE` takes them.

    What vLLM keeps of an image is only good for the weights that made it: so it is kept under the
    weights' version and the image's digest.
    """
    return [
        {"type": "image_url", "url": _data_url(image), "uuid": f"{weight_version}-{image.digest}"}
        for image in images
    ]


@lru_cache(maxsize=64)
def _data_url(image: Image) -> str:
    """The picture as :func:`load_image` reads it: a server would treat an alpha channel or a
    rotation in its own way."""
    buffer = io.BytesIO()
    load_image(image.path).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def check_sees(endpoints: Endpoints) -> None:
    """Whether token ids and images can be sent together.

    Raises:
        ConfigError: a server has no such endpoint.
    """
    for url in endpoints.living():
        try:
            endpoints.post_to(url, GENERATE, {})
        except httpx.HTTPStatusError as error:
            if error.response.status_code in (403, 404, 405):
                raise ConfigError(
                    f"{url} takes no images beside token ids ({GENERATE}): start vLLM, 0.32 or "
                    "later, with --enable-scale-out, or use kind 'hf' or 'vllm'"
                ) from error
        except (httpx.HTTPError, ValueError):
            pass  # whether it lives is found out by the requests, which are tried again


def _cut_off(ids: Sequence[int], limit: int, choice: dict[str, Any]) -> str:
    reason, stop = choice.get("finish_reason"), choice.get("stop_reason")
    if reason == "stop" and isinstance(stop, str):
        return f"a server ended a response at {stop!r}, which its last id, {ids[-1]}, does not end"
    if reason == "stop":
        return (
            f"a server ended a response at id {ids[-1]}, which nobody asked for: start it with "
            "--generation-config vllm"
        )
    return (
        f"a server cut a response off after {len(ids)} of {limit} tokens ({reason}): raise its "
        "--max-model-len"
    )
