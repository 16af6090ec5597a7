"""A checkpoint that somebody else serves: sampling from a running vLLM server by its address.

Nothing here starts, changes or ends the server. It may serve another model than the checkpoint that
is being evaluated, with another tokenizer or another context: what can be found out about that is
found out before anything is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpx
from transformers import PreTrainedModel

from reopold.config import ConfigError, EngineConfig
from reopold.data.images import Image
from reopold.engines.base import EngineFailure, OnFinished, check_limits, check_logprobs
from reopold.engines.completions import Completions, check_sees
from reopold.engines.endpoint import Endpoints, Unanswered
from reopold.provenance import checkpoint_digest
from reopold.rollouts import Rollout, SamplingParams
from reopold.scoring import Scores
from reopold.stopping import ShouldStop, never
from reopold.teachers.server import ServerTeacher
from reopold.vision import image_token

#: A long sample on a busy server; afterwards it is asked for again.
TIMEOUT_SECONDS = 3600.0
#: Of the questions about the model, before anything is sampled.
CHECK_SECONDS = 60.0
#: Ids, spread over the vocabulary, whose text the server's tokenizer must read as ours does.
TOKENIZER_PROBES = 256


@dataclass(frozen=True)
class ServedModel:
    """What a server says about the model that it serves."""

    name: str
    root: str
    """Where it was loaded from: a folder on the server's machine, or a hub id; may be empty."""
    max_length: int | None
    """Longest prompt and response, tokens; None if the server does not say."""


class ServedEngine:
    """The engine of `reopold evaluate CHECKPOINT --engine http://host:8000`.

    A request holds one sample and its own seed: samples of a question that share a request or a
    seed may all be the same (lm-evaluation-harness sends seed 1234 with every one of k repeats).

    Args:
        urls: an address such as `http://host:8000`, or those of replicas of one model.
        tokenizer: the checkpoint's; its `name_or_path` is the checkpoint.

    Raises:
        ConfigError: no address or no server there, none that takes and returns token ids, or it
            serves something else than the checkpoint.
    """

    def __init__(
        self, urls: str | Sequence[str], tokenizer: Any, *, should_stop: ShouldStop = never
    ) -> None:
        wanted = [_address(url) for url in ([urls] if isinstance(urls, str) else urls)]
        if not wanted:
            raise ConfigError("no address of a server: give one, for example http://localhost:8000")
        self.tokenizer, self.weight_version = tokenizer, 0
        self.image_token_id = image_token(str(tokenizer.name_or_path))
        config = EngineConfig(kind="server", urls=wanted, timeout_seconds=TIMEOUT_SECONDS)
        self.endpoints = Endpoints(config, wanted, "engine", should_stop)
        try:
            self.models = {url: self._check(url) for url in wanted}
            names = {model.name for model in self.models.values()}
            if len(names) != 1:
                raise ConfigError(
                    f"the servers {', '.join(wanted)} are no replicas: they serve "
                    f"{' and '.join(sorted(names))}"
                )
        except BaseException:
            self.close()
            raise
        (self.name,) = names
        self.completions = self._completions(self.name)

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
        """See :class:`reopold.engines.base.Engine`.

        Raises:
            ConfigError: a prompt and its response would not fit in the server's context, or it
                takes no images beside token ids.
        """
        check_logprobs(params, 1.0)
        if any(images or ()):
            check_sees(self.endpoints)
        self._check_lengths(prompts, check_limits(prompts, params, limits))
        return self.completions.sample(
            prompts,
            params,
            seeds=seeds,
            n=n,
            limits=limits,
            images=images,
            on_finished=on_finished,
            weight_version=self.weight_version,
        )

    def score(self, rollouts: Sequence[Rollout], *, top_k: int = 0) -> Scores:
        return ServerTeacher(self.endpoints, self.name).score_tokens(rollouts, top_k)

    def update_weights(self, model: PreTrainedModel, version: int) -> NoReturn:
        raise EngineFailure(f"{', '.join(self.models)}: a server of others takes no new weights")

    def sleep(self) -> None:
        """Nothing: the server is not ours."""

    def wake(self) -> None:
        pass

    def close(self) -> None:
        self.endpoints.close()

    def _completions(self, name: str) -> Completions:
        return Completions(self.endpoints, name, self.tokenizer, self.image_token_id)

    def _check(self, url: str) -> ServedModel:
        model = self._served(url)
        self._check_weights(url, model)
        self._check_tokenizer(url, model)
        self._check_token_ids(url, model)
        return model

    def _served(self, url: str) -> ServedModel:
        """The only model there, or the one among several that goes by the checkpoint's path."""
        checkpoint = str(self.tokenizer.name_or_path)
        start = f"start one with: vllm serve {checkpoint} --generation-config vllm"
        try:
            cards = self.endpoints.get("/v1/models", url)["data"]
            models = [
                ServedModel(str(card["id"]), str(card.get("root") or ""), card.get("max_model_len"))
                for card in cards
            ]
        except Unanswered as error:
            raise ConfigError(f"no model is served at {url}: {error}; {start}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{url}/v1/models lists no models; {start}") from error
        if len(models) != 1:
            names = ", ".join(model.name for model in models) or "none"
            models = [model for model in models if checkpoint in (model.name, model.root)]
            if len(models) != 1:
                raise ConfigError(
                    f"{url} serves {names}, and it is not clear which is {checkpoint}; {start}"
                )
        return models[0]

    def _check_weights(self, url: str, model: ServedModel) -> None:
        """Where both checkpoints lie on this machine they can be compared."""
        ours, theirs = Path(str(self.tokenizer.name_or_path)), Path(model.root)
        if not model.root or not all((path / "config.json").is_file() for path in (ours, theirs)):
            return
        if ours.resolve() == theirs.resolve():
            return
        if checkpoint_digest(ours) != checkpoint_digest(theirs):
            raise ConfigError(f"{url} serves {theirs}, which has other weights than {ours}")

    def _check_tokenizer(self, url: str, model: ServedModel) -> None:
        """Both must read a text from all over the vocabulary alike."""
        size = len(self.tokenizer)
        step = max(1, size // TOKENIZER_PROBES)
        text = self.tokenizer.decode(list(range(0, size, step)), skip_special_tokens=False)
        body = {"model": model.name, "prompt": text, "add_special_tokens": False}
        try:
            theirs = self.endpoints.post_to(url, "/tokenize", body, CHECK_SECONDS).get("tokens")
        except (httpx.HTTPError, ValueError):
            return  # vLLM's alone; what follows does without it
        ours = self.tokenizer.encode(text, add_special_tokens=False)
        if theirs != ours:
            raise ConfigError(
                f"{url} serves {model.name} with another tokenizer than that of "
                f"{self.tokenizer.name_or_path}: it is another model"
            )

    def _check_token_ids(self, url: str, model: ServedModel) -> None:
        """One token, to see that the server takes and returns ids."""
        prompt = [len(self.tokenizer) - 1]  # refused where the server's vocabulary is smaller
        completions, params = self._completions(model.name), SamplingParams(1, 0.0)
        try:
            completions.sample_from(url, prompt, params, seed=0, timeout=CHECK_SECONDS)
        except EngineFailure as error:
            raise ConfigError(
                f"{url} cannot be sampled by token ids: {error}. It must be a vLLM of this "
                "checkpoint's vocabulary that knows return_token_ids (0.10.2 or later)"
            ) from error

    def _check_lengths(self, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> None:
        for url, model in self.models.items():
            for prompt, limit in zip(prompts, limits, strict=True):
                need = len(prompt) + limit
                if model.max_length is not None and need > model.max_length:
                    raise ConfigError(
                        f"{url} takes {model.max_length} tokens, and a prompt of {len(prompt)} "
                        f"with up to {limit} new ones needs {need}: lower max_new_tokens, or start "
                        f"the server with --max-model-len {need}"
                    )


def _address(url: str) -> str:
    """Without a closing slash or `/v1`.

    Raises:
        ConfigError: it is no address of HTTP.
    """
    bare = url.rstrip("/").removesuffix("/v1").rstrip("/")
    try:
        parsed = httpx.URL(bare)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{url!r} is no address of a server: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"{url!r} is no address of a server, such as http://localhost:8000")
    return bare
