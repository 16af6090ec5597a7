"""Sampling from vLLM servers over HTTP: one, or several replicas of the same student."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import PreTrainedModel

from reopold.config import EngineConfig
from reopold.data.images import Image
from reopold.engines.base import EngineFailure, OnFinished, check_logprobs
from reopold.engines.completions import Completions, check_sees
from reopold.engines.endpoint import Endpoints, served_name
from reopold.engines.export import export
from reopold.engines.handover import Handover
from reopold.engines.servers import Server, start_servers, stop_servers
from reopold.rollouts import Rollout, SamplingParams
from reopold.scoring import Scores
from reopold.stopping import ShouldStop, never
from reopold.teachers.server import ServerTeacher
from reopold.vision import Vision, check_placeholders

#: Name that servers which we start give their model.
SERVED_NAME = "policy"


class ServerEngine:
    """A student on vLLM servers. Weights travel as a checkpoint on a disk that both can read.

    Args:
        folder: where the checkpoints for serving are written; on several hosts a shared disk.
        vision: of the model; None for a text model.

    Raises:
        ConfigError: the model takes images, and a server there cannot be sent them.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: PreTrainedModel,
        tokenizer: Any,
        folder: Path,
        *,
        version: int = 0,
        dtype: str = "float32",
        logprob_temperature: float = 1.0,
        vision: Vision | None = None,
        should_stop: ShouldStop = never,
    ) -> None:
        self.folder, self.tokenizer, self.vision = folder, tokenizer, vision
        self.image_token_id = vision.image_token_id if vision else None
        self.vocab_size, self.dtype = len(tokenizer), getattr(torch, dtype)
        self.logprob_temperature = logprob_temperature
        self.servers: list[Server] = []
        self._version = version
        first = self._export(model, version)
        if not config.urls:
            self.servers = start_servers(
                first,
                config,
                name=SERVED_NAME,
                logs=folder,
                dtype=dtype,
                logprob_temperature=logprob_temperature,
                should_stop=should_stop,
            )
        urls = [url.rstrip("/") for url in config.urls] or [server.url for server in self.servers]
        self.endpoints = Endpoints(config, urls, "engine", should_stop)
        try:
            self.scorer = ServerTeacher(self.endpoints, served_name(self.endpoints))
            if vision is not None:
                check_sees(self.endpoints)
            for url in urls:
                self._rpc(url, "reopold_real_vocabulary", self.vocab_size)
            self.update_weights(model, version)
        except BaseException:
            self.close()
            raise

    @property
    def weight_version(self) -> int:
        return self._version

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        seeds: Sequence[int],
        n: int = 1,
        limits: Sequence[int] | None = None,
        images: Sequence[Sequence[Image]] | None = None,
        on_finished: OnFinished | None = None,
    ) -> list[Rollout]:
        """See :class:`reopold.engines.base.Engine`."""
        check_logprobs(params, self.logprob_temperature)
        completions = Completions(
            self.endpoints, self.scorer.name, self.tokenizer, self.image_token_id
        )
        return completions.sample(
            prompts,
            params,
            seeds=seeds,
            n=n,
            limits=limits,
            images=images,
            on_finished=on_finished,
            weight_version=self._version,
            together=n if params.temperature > 0.0 else 1,
        )

    def score(self, rollouts: Sequence[Rollout], *, top_k: int = 0) -> Scores:
        for rollout in rollouts:
            check_placeholders(rollout.prompt_ids, rollout.images, self.image_token_id)
        return self.scorer.score_tokens(rollouts, top_k)

    def update_weights(self, model: PreTrainedModel, version: int) -> int:
        """Every living replica takes the same checkpoint; one that cannot is left out for good."""
        folder = self._export(model, version)
        handover = Handover(model, self.vocab_size, self.dtype)
        for url in self.endpoints.living():
            try:
                states = self._rpc(url, "reopold_load", str(folder.resolve()), version)
                self.endpoints.post_to(url, "/reset_prefix_cache", {})
            except httpx.HTTPError as error:
                self.endpoints.dead.add(url)
                reason = f"the engine's server {url} took no new weights: {error}"
                if len(self.endpoints.dead) == len(self.endpoints.urls):
                    raise EngineFailure(f"{reason}; no replica is left") from error
                print(f"warning: {reason}; going on without it", flush=True)
                continue
            handover.check(states, version)
        self._version = self.scorer.weight_version = version
        return self._version

    def sleep(self) -> None:
        self._everywhere("/sleep?level=1")

    def wake(self) -> None:
        self._everywhere("/wake_up")

    def close(self) -> None:
        if hasattr(self, "endpoints"):
            self.endpoints.close()
        stop_servers(self.servers)
        self.servers = []

    def _export(self, model: PreTrainedModel, version: int) -> Path:
        """This version's checkpoint for serving; older ones are removed once it is whole."""
        folder = self.folder / f"weights-{version:06d}"
        export(
            model,
            self.tokenizer,
            folder,
            version=version,
            vocab_size=self.vocab_size,
            dtype=self.dtype,
            processor=self.vision.source if self.vision else "",
        )
        for other in self.folder.glob("weights-*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        return folder

    def _rpc(self, url: str, method: str, *arguments: Any) -> list[dict[str, Any]]:
        body = {"method": method, "args": list(arguments)}
        answer = self.endpoints.post_to(url, "/collective_rpc", body)
        states: list[dict[str, Any]] = answer.get("results", [])
        return states

    def _everywhere(self, path: str) -> None:
        """Housekeeping that a server without a GPU refuses, and need not do."""
        if not torch.cuda.is_available():
            return
        for url in self.endpoints.living():
            self.endpoints.post_to(url, path, {})
