"""Sampling over vLLM's `/v1/completions`: token ids in, token ids and their log-probs out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reopold.engines.base import EngineFailure, OnFinished, check_limits
from reopold.engines.endpoint import COMPLETIONS, Endpoints
from reopold.rollouts import Rollout, SamplingParams


@dataclass(frozen=True)
class Completions:
    """The model `name` behind some endpoints."""

    endpoints: Endpoints
    name: str
    eos: int

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        seeds: Sequence[int],
        n: int,
        limits: Sequence[int] | None,
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
        requests = [
            self._request(prompt, params, seed + i, together, limit)
            for prompt, seed, limit in zip(prompts, seeds, most, strict=True)
            for i in range(0, n, together)
        ]

        def parse(place: int, answer: dict[str, Any]) -> list[Rollout]:
            return _rollouts(requests[place], answer, weight_version)

        done: dict[int, Rollout] = {}
        for place, rollouts in self.endpoints.map(requests, parse):
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
        request = self._request(prompt, params, seed, 1, params.max_new_tokens)
        answer = self.endpoints.ask(url, COMPLETIONS, request, timeout)
        return _rollouts(request, answer, 0)[0]

    def _request(
        self, prompt: Sequence[int], params: SamplingParams, seed: int, n: int, limit: int
    ) -> dict[str, Any]:
        return {
            "model": self.name,
            "prompt": list(prompt),
            "n": n,
            "seed": seed,
            "temperature": params.temperature,
            "top_p": params.top_p,
            # Said although they are neutral: a server may take others from the model's
            # generation_config.json (Qwen3's has top_k 20).
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "max_tokens": limit,
            "min_tokens": params.min_new_tokens,
            "logprobs": 0,  # the sampled token's own
            # Our EOS and what we were asked for: a generation config may list further ids.
            "stop_token_ids": [self.eos, *params.stop_ids],
            "ignore_eos": True,
            "return_token_ids": True,
        }


def _rollouts(
    request: dict[str, Any], answer: dict[str, Any], weight_version: int
) -> list[Rollout]:
    choices = sorted(answer.get("choices") or [], key=lambda choice: choice["index"])
    if len(choices) != request["n"]:
        raise EngineFailure(f"a server returned {len(choices)} of {request['n']} samples")
    return [_rollout(request, choice, weight_version) for choice in choices]


def _rollout(request: dict[str, Any], choice: dict[str, Any], weight_version: int) -> Rollout:
    """Raises EngineFailure: no token ids, or a response that ended where nobody asked it to."""
    ids = choice.get("token_ids")
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
    if not ids or logprobs is None or len(ids) != len(logprobs):
        raise EngineFailure(
            f"a server returned {len(ids or [])} token ids and {len(logprobs or [])} log-probs "
            "of them: it must be a vLLM that knows return_token_ids"
        )
    limit, stopped = request["max_tokens"], ids[-1] in request["stop_token_ids"]
    if len(ids) > limit:
        raise EngineFailure(f"a server returned {len(ids)} tokens where {limit} were asked for")
    if not stopped and len(ids) < limit:
        raise EngineFailure(_cut_off(ids, limit, choice.get("finish_reason")))
    return Rollout(
        prompt_ids=request["prompt"],
        response_ids=ids,
        logprobs=[float(value) for value in logprobs],
        finish_reason="stop" if stopped else "length",
        weight_version=weight_version,
    )


def _cut_off(ids: Sequence[int], limit: int, reason: str | None) -> str:
    if reason == "stop":
        return (
            f"a server ended a response at id {ids[-1]}, which nobody asked for: start it with "
            "--generation-config vllm"
        )
    return (
        f"a server cut a response off after {len(ids)} of {limit} tokens ({reason}): raise its "
        "--max-model-len"
    )
