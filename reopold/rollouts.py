"""What passes between sampler, teacher, objective and loss.

Axes: S sequences (rollouts), T token of one response, N response tokens flattened over the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from reopold.data.images import Image
    from reopold.divergences import Divergence, TopK, Vocabulary

FinishReason = Literal["stop", "length", "turns", "seconds"]


@dataclass(frozen=True)
class Rollout:
    """One sampled response, as token ids (never re-tokenised text)."""

    prompt_ids: list[int]
    """One placeholder id an image, whatever room the image takes in a model: every model expands
    it by its own vision tower (:mod:`reopold.vision`)."""
    response_ids: list[int]
    """T ids. Of a single response the last one is EOS (or one of :attr:`SamplingParams.stop_ids`,
    or completes one of its `stop_strings`) if and only if `finish_reason` is "stop"."""
    logprobs: list[float]
    """The sampler's own log-prob of each response token: T floats, at
    :attr:`SamplingParams.logprob_temperature`; 0 where `observed`."""
    finish_reason: FinishReason
    """Of a dialogue also "turns" and "seconds": which budget was used up."""
    weight_version: int = 0
    """Completed optimiser steps of the weights that sampled this, as the engine read them back."""
    source: str = ""
    """Where the prompt comes from; it decides which of several teachers scores this."""
    images: tuple[Image, ...] = ()
    """In the order of their placeholders in `prompt_ids`."""
    observed: list[bool] = field(default_factory=list)
    """T flags: whether the environment said this token, not the model. Empty: all were sampled."""
    calls: int = 0
    """Tool calls of a dialogue."""
    failed_calls: int = 0
    """Those among them that were the model's mistake."""
    outcome: float | None = None
    """The environment's own verdict on a dialogue; None: the answer decides."""
    error: str = ""
    """Why the environment broke: then the dialogue says nothing about the model, and no token of
    it is learnt from."""

    @property
    def valid(self) -> list[bool]:
        """T flags: the tokens that count, in the loss and everywhere else."""
        if self.error:
            return [False] * len(self.response_ids)
        return [not said for said in self.observed] or [True] * len(self.response_ids)

    @property
    def sampled_ids(self) -> list[int]:
        """The response tokens that the model said."""
        if not self.observed:
            return self.response_ids
        return [i for i, said in zip(self.response_ids, self.observed, strict=True) if not said]

    @property
    def last_message_ids(self) -> list[int]:
        """The response tokens after the last one that the environment said."""
        if True not in self.observed:
            return self.response_ids
        return self.response_ids[len(self.observed) - self.observed[::-1].index(True) :]


@dataclass(frozen=True)
class SamplingParams:
    """How to sample.

    Training samples from the model's whole distribution. A cut one (top-p, top-k, min-p) is not the
    policy whose log-probs the trainer scores: the importance ratio is wrong without anybody seeing
    it (trl #6789). So no recipe has a setting for it, and `top_p` is for evaluation alone, whose
    published protocols draw at temperature 0.6 and top-p 0.95. Top-k and min-p do not exist here.

    Raises:
        ValueError: a value that no engine could obey.
    """

    max_new_tokens: int
    temperature: float = 1.0
    """0 is greedy."""
    logprob_temperature: float = 1.0
    """Of the log-probs that are returned, whatever the draw's temperature and top-p were: they are
    always those of the full distribution."""
    top_p: float = 1.0
    """Evaluation only. Draws come from the nucleus: the smallest set of likeliest tokens, at the
    draw's temperature, whose probability reaches this (Holtzman et al. 2020, arXiv 1904.09751)."""
    stop_ids: tuple[int, ...] = ()
    """Further ids that end a response as EOS does; the id is the last of the response."""
    stop_strings: tuple[str, ...] = ()
    """A response ends with the token that completes one of these in its text, which may reach
    beyond it (see :mod:`reopold.engines.stops`)."""
    min_new_tokens: int = 0
    """So many first tokens can neither be EOS nor one of `stop_ids`."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if not 0.0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be finite and at least 0, not {self.temperature}")
        if not 0.0 < self.logprob_temperature < math.inf:
            raise ValueError(
                f"logprob_temperature must be finite and above 0, not {self.logprob_temperature}"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if any(token < 0 for token in self.stop_ids):
            raise ValueError(f"stop_ids must be token ids, not {self.stop_ids}")
        if not all(self.stop_strings):
            raise ValueError("a stop string must not be empty: every response would end at once")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens must lie between 0 and max_new_tokens "
                f"({self.max_new_tokens}), not {self.min_new_tokens}"
            )


@dataclass(frozen=True)
class Needs:
    """Signals that an objective reads beyond the student's scores of its own samples."""

    teacher: bool = False
    """log pi_T and teacher entropy of every token."""
    reference: bool = False
    """log-probs of a reference model."""
    top_k: int = 0
    """The teacher's likeliest ids at each position."""
    vocabulary: bool = False
    """The teacher's whole distribution."""
    outcome: bool = False
    """An outcome reward for every sequence."""
    sampling_rounds: int = 1
    """Times that prompts may be drawn for a step until enough groups have mixed outcomes."""


@dataclass(frozen=True)
class TokenBatch:
    """The signals of one optimiser step: a row a response token, student = pi_old.

    Args:
        student_logprobs_N: float32, log pi_old of the sampled token.
        teacher_logprobs_N: float32, log pi_T of it; None for methods without a teacher.
        entropy_N: float32, entropy of pi_old's full distribution at that position, nats.
        valid_N: bool, False where no token was sampled (padding, tool output).
        sequence_N: int64, index in [0, S) of the token's sequence.
        reward_S: float32, outcome reward of each sequence; NaN where its environment broke: that
            sequence is no part of its group.
        group_S: int64, prompt that each sequence answers.
        current_logprobs_N: float32, log pi_theta before this update, where a step has several;
            None where it equals pi_old.
        reference_logprobs_N: float32, log of the reference model's probability (exopd).
        sampler_logprobs_N: float32, the engine's own log-prob of what it sampled.
        teacher_entropy_N: float32, entropy of the teacher at that position, nats.
        teacher_distribution: more of the teacher than the sampled token's log-prob, for the methods
            that learn from a divergence.
    """

    student_logprobs_N: Tensor
    teacher_logprobs_N: Tensor | None
    entropy_N: Tensor
    valid_N: Tensor
    sequence_N: Tensor
    reward_S: Tensor | None = None
    group_S: Tensor | None = None
    current_logprobs_N: Tensor | None = None
    reference_logprobs_N: Tensor | None = None
    sampler_logprobs_N: Tensor | None = None
    teacher_entropy_N: Tensor | None = None
    teacher_distribution: TopK | Vocabulary | None = None


@dataclass(frozen=True)
class Credit:
    """An objective's verdict on every token.

    Args:
        advantages_N: float32, no gradient; the token's share of the objective.
        keep_N: bool, the tokens that count, in the sum and in the normaliser alike.
        metrics: what the objective wants logged, by metric name.
        divergence: a loss beside the policy loss, over the teacher's distribution; None for most.
    """

    advantages_N: Tensor
    keep_N: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    divergence: Divergence | None = None

    def at(self, index_N: Tensor) -> Credit:
        """The credit of some tokens (those of a micro-batch)."""
        divergence = None if self.divergence is None else self.divergence.at(index_N)
        return Credit(self.advantages_N[index_N], self.keep_N[index_N], {}, divergence)
