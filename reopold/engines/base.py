"""The protocol of everything that samples: token ids in, token ids out.

Every engine passes one suite of contract tests (tests/reopold/test_engine_contract.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from reopold.rollouts import Rollout, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from reopold.data.images import Image
    from reopold.scoring import Scores

#: Called with a rollout's place in the answer, as soon as it is finished.
OnFinished = Callable[[int, Rollout], None]

#: Seeds lie below this, so that `seed + i` still fits an int64.
SEED_LIMIT = 2**62


class EngineFailure(RuntimeError):
    """An engine died, answered nonsense, or does not hold the weights it should."""


class Engine(Protocol):
    @property
    def weight_version(self) -> int:
        """Completed optimiser steps of the weights that it holds, as the engine itself says."""
        ...

    @property
    def image_token_id(self) -> int | None:
        """Stands for an image in a prompt; None where the model takes no images."""
        ...

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
        """Sample n responses a prompt; those of a prompt lie together, prompts in order.

        Args:
            prompts: token ids of each request.
            seeds: one a request, below :data:`SEED_LIMIT`. Sample i of a request is drawn with
                `seed + i` and with nothing else: neither the rest of the batch nor n matters.
            limits: most new tokens of each request, where they differ; none is above
                `params.max_new_tokens`, and a lower one changes nothing but where it cuts.
            images: of each request, in the order of the placeholder ids of its prompt (one id an
                image); they stay with the rollouts.
            on_finished: told of every rollout as it is finished, in whatever order they finish.

        Raises:
            EngineFailure: no answer, or not the one that was asked for.
            StopRequested: a stop was asked for meanwhile; what was under way is given up.
            ValueError: a limit that `params` does not allow.
            ConfigError: images that the model does not take, or not one a placeholder.
        """
        ...

    def score(self, rollouts: Sequence[Rollout], *, top_k: int = 0) -> Scores:
        """Log-prob of every response token, and of the top_k likeliest ids at each position.

        Raises:
            EngineFailure: no answer; MissingScore: a score is missing or not finite.
        """
        ...

    def update_weights(self, model: PreTrainedModel, version: int) -> int:
        """Take over the weights of `model` and forget every cached prefix.

        Returns:
            The version as read back from wherever the weights now lie.

        Raises:
            EngineFailure: the engine does not hold the weights that it was given.
        """
        ...

    def sleep(self) -> None:
        """Give accelerator memory back until :meth:`wake`, where the engine can."""
        ...

    def wake(self) -> None: ...

    def close(self) -> None:
        """End every process and free all memory; a second call does nothing."""
        ...


def check_limits(
    prompts: Sequence[Sequence[int]], params: SamplingParams, limits: Sequence[int] | None
) -> Sequence[int]:
    """Most new tokens of each request.

    Raises:
        ValueError: not one limit a request, or one outside what `params` allows.
    """
    if limits is None:
        return [params.max_new_tokens] * len(prompts)
    if len(limits) != len(prompts):
        raise ValueError(f"{len(limits)} limits for {len(prompts)} prompts")
    least = max(params.min_new_tokens, 1)
    for limit in limits:
        if not least <= limit <= params.max_new_tokens:
            raise ValueError(f"a limit of {limit} is not from {least} to {params.max_new_tokens}")
    return limits


def check_logprobs(params: SamplingParams, temperature: float) -> None:
    """For vLLM, which returns the log-probs that it was started to return.

    Args:
        temperature: of the engine's log-probs. Other than at 1 they are those of what is drawn
            from, so that a nucleus would change them.

    Raises:
        EngineFailure: others were asked for.
    """
    if params.logprob_temperature != temperature:
        raise EngineFailure(
            f"log-probs at temperature {params.logprob_temperature} were asked of an engine that "
            f"gives them at {temperature}"
        )
    if temperature != 1.0 and (params.top_p < 1.0 or params.min_new_tokens):
        raise EngineFailure(
            "an engine with log-probs of another temperature than 1 samples without top_p and "
            "min_new_tokens: they would change the log-probs"
        )
