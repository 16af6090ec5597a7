"""A teacher behind HTTP: vLLM, or any OpenAI-compatible server that returns prompt log-probs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from reopold.config import ConfigError, TeacherConfig
from reopold.engines.completions import GENERATE, check_sees, image_parts
from reopold.engines.endpoint import COMPLETIONS, Endpoints, served_name
from reopold.engines.prompt_scores import Row, collect, response_rows
from reopold.engines.servers import Server, start_servers, stop_servers
from reopold.rewards import MissingScore
from reopold.rollouts import Needs, Rollout
from reopold.scoring import Scores
from reopold.stopping import ShouldStop
from reopold.teachers.base import SAMPLED_ONLY

Interface = Literal["prompt_logprobs", "token_ids", "echo"]
#: Where each interface is asked.
PATHS = {"token_ids": GENERATE}


class ServerTeacher:
    """Scores over `/v1/completions`, token ids in.

    A request holds one rollout, and the answer one row a token: memory here is bounded by the
    rollouts of a step, in the server by its own batch (`--max-num-batched-tokens`).
    """

    def __init__(
        self,
        endpoints: Endpoints,
        name: str,
        interface: Interface = "prompt_logprobs",
        servers: Sequence[Server] = (),
    ) -> None:
        self.endpoints, self.name, self.interface = endpoints, name, interface
        self.servers = list(servers)
        self.weight_version = 0
        """Of what is served; a student's changes."""
        # Our own servers on a CPU share its cores with the sampler: ahead would be slower.
        self.concurrent = not servers or torch.cuda.is_available()

    @classmethod
    def connect(
        cls,
        config: TeacherConfig,
        path: str,
        name: str,
        logs: Path,
        *,
        vocab_size: int,
        dtype: str,
        top_k: int,
        should_stop: ShouldStop,
    ) -> ServerTeacher:
        """A teacher at `config.urls`, or on servers of the checkpoint at `path` that we start.

        Raises:
            Unanswered: the servers there do not answer, or do not serve the model that was named.
        """
        servers: list[Server] = []
        if not config.urls:
            servers = start_servers(
                path,
                config,
                name=name,
                logs=logs,
                dtype=dtype,
                top_k=top_k,
                should_stop=should_stop,
            )
        urls = [url.rstrip("/") for url in config.urls] or [server.url for server in servers]
        endpoints = Endpoints(config, urls, "teacher", should_stop)
        teacher = cls(endpoints, config.served_name or name, config.interface, servers)
        try:
            if servers:
                for url in urls:  # the head's padding rows take no probability
                    body = {"method": "reopold_real_vocabulary", "args": [vocab_size]}
                    endpoints.post_to(url, "/collective_rpc", body)
            else:
                teacher.name = served_name(endpoints, config.served_name)
        except BaseException:
            teacher.close()
            raise
        return teacher

    def score(self, rollouts: Sequence[Rollout], needs: Needs = SAMPLED_ONLY) -> Scores:
        """See :class:`reopold.teachers.base.Teacher`."""
        return self.score_tokens(rollouts, needs.top_k)

    def score_tokens(self, rollouts: Sequence[Rollout], top_k: int) -> Scores:
        """Raises MissingScore or :class:`~reopold.engines.endpoint.Unanswered`."""
        seeing = any(rollout.images for rollout in rollouts)
        if seeing:
            self._check_sees()
        requests = [
            self._generation(rollout, top_k) if seeing else self._request(rollout, top_k)
            for rollout in rollouts
        ]
        read = {
            "prompt_logprobs": self._read_prompt_logprobs,
            "token_ids": self._read_token_ids,
            "echo": self._read_echo,
        }[self.interface]

        def parse(place: int, answer: dict[str, Any]) -> list[Row]:
            return read(rollouts[place], answer)

        rows: list[list[Row]] = [[] for _ in rollouts]
        path = GENERATE if seeing else PATHS.get(self.interface, COMPLETIONS)
        for place, found in self.endpoints.map(requests, parse, path=path):
            rows[place] = found
        return collect(rollouts, rows, top_k, who=f"the {self.endpoints.who}'s server")

    def close(self) -> None:
        self.endpoints.close()
        stop_servers(self.servers)
        self.servers = []

    def _request(self, rollout: Rollout, top_k: int) -> dict[str, Any]:
        if self.interface == "token_ids":
            sampling = {
                "max_tokens": 1,
                "temperature": 0.0,
                "prompt_logprob_start": len(rollout.prompt_ids) - 1,
                "prompt_logprob_token_ids": [[token] for token in rollout.response_ids],
            }
            ids = rollout.prompt_ids + rollout.response_ids
            return {"model": self.name, "token_ids": ids, "sampling_params": sampling}
        request: dict[str, Any] = {
            "model": self.name,
            "prompt": rollout.prompt_ids + rollout.response_ids,
            "max_tokens": 1,
            "temperature": 0.0,
        }
        if self.interface == "prompt_logprobs":
            # Token ids come back, so that an answer to another prompt is found out.
            return {**request, "prompt_logprobs": top_k, "return_token_ids": True}
        return {**request, "echo": True, "logprobs": 1}

    def _generation(self, rollout: Rollout, top_k: int) -> dict[str, Any]:
        """With images, which the server gives their room among the ids."""
        return {
            "model": self.name,
            "token_ids": rollout.prompt_ids + rollout.response_ids,
            "content_parts": image_parts(rollout.images, self.weight_version),
            "sampling_params": {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": top_k},
            "return_token_ids": True,
        }

    def _check_sees(self) -> None:
        if self.interface != "prompt_logprobs":
            raise ConfigError(
                f"teacher.interface {self.interface!r} scores no images: use 'prompt_logprobs' of "
                "a vLLM server, or teacher.kind 'hf' or 'vllm'"
            )
        check_sees(self.endpoints)

    def _read_prompt_logprobs(self, rollout: Rollout, answer: dict[str, Any]) -> list[Row]:
        # A completion has them in its choice, /inference/v1/generate in the answer itself.
        choice = {**answer, **_only_choice(answer)}
        rows = choice.get("prompt_logprobs")
        if rows is None:
            raise MissingScore(
                f"the server of {self.name} returned no prompt_logprobs: set teacher.interface to "
                "'echo', or use a vLLM server"
            )
        scored = choice.get("prompt_token_ids") or rollout.prompt_ids + rollout.response_ids
        found = [{token: entry["logprob"] for token, entry in (row or {}).items()} for row in rows]
        return response_rows(rollout, found, scored, who=f"the server of {self.name}")

    def _read_token_ids(self, rollout: Rollout, answer: dict[str, Any]) -> list[Row]:
        """A NumPy array [T, 1], in base64: the log-prob of each token that was asked for."""
        packed = answer.get("prompt_token_id_logprobs")
        if packed is None:
            raise MissingScore(f"the server of {self.name} returned no prompt_token_id_logprobs")
        values = np.load(io.BytesIO(base64.b64decode(packed)), allow_pickle=False)
        if values.shape != (len(rollout.response_ids), 1):
            raise MissingScore(
                f"the server of {self.name} returned scores of shape {values.shape} for "
                f"{len(rollout.response_ids)} tokens"
            )
        pairs = zip(rollout.response_ids, values[:, 0].tolist(), strict=True)
        return [{token: value} for token, value in pairs]

    def _read_echo(self, rollout: Rollout, answer: dict[str, Any]) -> list[Row]:
        """`logprobs.token_logprobs` of the echoed prompt, then of the token that was sampled."""
        logprobs = _only_choice(answer).get("logprobs") or {}
        values = logprobs.get("token_logprobs") or []
        start, end = len(rollout.prompt_ids), len(rollout.prompt_ids) + len(rollout.response_ids)
        if len(values) not in (end, end + 1):
            raise MissingScore(
                f"the server of {self.name} echoed {len(values)} of {end} tokens with log-probs"
            )
        return [
            {} if value is None else {token: float(value)}
            for token, value in zip(rollout.response_ids, values[start:end], strict=True)
        ]


def _only_choice(answer: dict[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices") or []
    if len(choices) != 1:
        raise MissingScore(f"a teacher's server returned {len(choices)} choices instead of one")
    choice: dict[str, Any] = choices[0]
    return choice
