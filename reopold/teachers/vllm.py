"""A teacher on vLLM in a child process of the trainer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reopold.bounds import SCORED_TOKENS
from reopold.engines.vllm import VLLMEngine
from reopold.rollouts import Needs, Rollout
from reopold.scoring import Scores
from reopold.stopping import ShouldStop, never
from reopold.teachers.base import SAMPLED_ONLY


class VLLMTeacher:
    """`prompt_logprobs` of vLLM; its weights never change, so the engine core may live apart."""

    def __init__(
        self,
        path: str,
        *,
        eos: int,
        vocab_size: int,
        dtype: str,
        memory_fraction: float,
        max_length: int,
        top_k: int,
        should_stop: ShouldStop = never,
    ) -> None:
        self.concurrent = torch.cuda.is_available()  # on a CPU the two would share its cores
        self.engine = VLLMEngine(
            path,
            eos=eos,
            vocab_size=vocab_size,
            dtype=dtype,
            memory_fraction=memory_fraction,
            max_length=max_length,
            top_k=top_k,
            own_process=True,
            batch_tokens=SCORED_TOKENS,
            should_stop=should_stop,
        )

    def score(self, rollouts: Sequence[Rollout], needs: Needs = SAMPLED_ONLY) -> Scores:
        """See :class:`reopold.teachers.base.Teacher`."""
        return self.engine.score(rollouts, top_k=needs.top_k)

    def close(self) -> None:
        self.engine.close()
