"""What passes between sampler, teacher, objective and loss.

Axes: S sequences (rollouts), T token of one response, N response tokens flattened over the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Rollout:
    """One sampled response, as token ids (never re-tokenised text)."""

    prompt_ids: list[int]
    response_ids: list[int]
    """T ids; the last one is EOS if and only if `finish_reason` is "stop"."""
    logprobs: list[float]
    """The sampler's own log-prob of each response token: T floats, temperature 1."""
    finish_reason: FinishReason
    weight_version: int = 0
    """Completed optimiser steps of the weights that sampled this."""


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. top-p, top-k and min-p do not exist here on purpose (trl #6789)."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 is greedy."""


@dataclass(frozen=True)
class TokenBatch:
    """The signals of one optimiser step: a row a response token, student = pi_old.

    Args:
        student_logprobs_N: float32, log pi_old of the sampled token.
        teacher_logprobs_N: float32, log pi_T of it; None for methods without a teacher.
        entropy_N: float32, entropy of pi_old's full distribution at that position, nats.
        valid_N: bool, False where no token was sampled (padding, tool output).
        sequence_N: int64, index in [0, S) of the token's sequence.
        reward_S: float32, outcome reward of each sequence.
        group_S: int64, prompt that each sequence answers.
    """

    student_logprobs_N: Tensor
    teacher_logprobs_N: Tensor | None
    entropy_N: Tensor
    valid_N: Tensor
    sequence_N: Tensor
    reward_S: Tensor | None = None
    group_S: Tensor | None = None


@dataclass(frozen=True)
class Credit:
    """An objective's verdict on every token.

    Args:
        advantages_N: float32, no gradient; the token's share of the objective.
        keep_N: bool, the tokens that count, in the sum and in the normaliser alike.
        metrics: what the objective wants logged, by metric name.
    """

    advantages_N: Tensor
    keep_N: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
