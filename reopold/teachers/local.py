"""A teacher in this process: a frozen Hugging Face model that scores sampled tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from reopold.rollouts import Rollout
from reopold.scoring import score


@dataclass(frozen=True)
class LocalTeacher:
    model: PreTrainedModel
    vocab_size: int
    """Real ids of the shared tokenizer; padding rows of the head take no probability."""
    micro_batch: int

    def score(self, rollouts: Sequence[Rollout]) -> Tensor:
        """log pi_T of every response token: float32 [N], rollouts in order, then time."""
        logprobs_N, _ = score(
            self.model, rollouts, vocab_size=self.vocab_size, micro_batch=self.micro_batch
        )
        return logprobs_N
