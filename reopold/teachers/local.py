"""A teacher in this process: a frozen Hugging Face model that scores sampled tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from reopold.rollouts import Needs, Rollout
from reopold.scoring import Scores, output_head, score
from reopold.stopping import ShouldStop, never
from reopold.teachers.base import SAMPLED_ONLY
from reopold.vision import Vision


@dataclass(frozen=True)
class LocalTeacher:
    model: PreTrainedModel
    vocab_size: int
    """Real ids of the shared tokenizer; padding rows of the head take no probability."""
    micro_batch: int
    temperature: float = 1.0
    """Of the log-probs and entropies, not of any sampling."""
    concurrent: bool = False
    """It shares its device with the sampler, and would only take turns with it."""
    vision: Vision | None = None
    should_stop: ShouldStop = never

    def score(self, rollouts: Sequence[Rollout], needs: Needs = SAMPLED_ONLY) -> Scores:
        """Log-prob and entropy of every response token, and of the distribution what is needed."""
        return score(
            self.model,
            rollouts,
            head=output_head(self.model, self.vocab_size, self.temperature),
            micro_batch=self.micro_batch,
            top_k=needs.top_k,
            vocabulary=needs.vocabulary,
            vision=self.vision,
            should_stop=self.should_stop,
        )

    def close(self) -> None:
        pass
