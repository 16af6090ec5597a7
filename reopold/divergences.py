"""Divergences between teacher and student at one position, over the vocabulary or over buckets.

Axes: C tokens of a chunk, B buckets whose probabilities sum to 1 (ids, or the teacher's top ids and
one tail bucket), K of the teacher's likeliest ids, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from reopold.logprobs import Head, HeadPass

Kind = Literal["forward", "reverse", "js"]


@dataclass(frozen=True)
class TopK:
    """The teacher's K likeliest ids at each position; everything else is one tail bucket.

    Without the tail bucket a truncated reverse KL falls by moving mass out of the top K (verl PR
    5041) and a truncated forward KL goes negative (verl #7856).
    """

    ids_NK: Tensor
    logprobs_NK: Tensor

    def at(self, index_N: Tensor) -> TopK:
        return TopK(self.ids_NK[index_N], self.logprobs_NK[index_N])

    def with_tail(self, rows: Tensor) -> Tensor:
        """Log-probs of the K ids and of the tail, [C, K + 1].

        The tail is at least the rounding error of the sum: a teacher that holds all its mass in K
        ids leaves it at about 1e-7, not at 0, where the reverse KL would be infinite.
        """
        logprobs_CK = self.logprobs_NK[rows]
        smallest = torch.finfo(torch.float32).eps
        tail_C1 = (1.0 - logprobs_CK.exp().sum(-1, keepdim=True)).clamp(min=smallest).log()
        return torch.cat([logprobs_CK, tail_C1], dim=-1)


@dataclass(frozen=True)
class Vocabulary:
    """The teacher's whole distribution, as its hidden states and its head: [N, V] never exists."""

    hidden_ND: Tensor
    head: Head

    def at(self, index_N: Tensor) -> Vocabulary:
        return replace(self, hidden_ND=self.hidden_ND[index_N])

    def logprobs(self, rows: Tensor) -> Tensor:
        """[C, V], at least float32, at the head's temperature."""
        hidden_CD = self.hidden_ND[rows]
        logits_CV, _ = HeadPass(self.head, hidden_CD, max(1, len(hidden_CD))).logits(hidden_CD)
        return torch.log_softmax(logits_CV, dim=-1)


@dataclass(frozen=True)
class Divergence:
    """A loss beside the policy loss: `weight * D(teacher, student)` at each kept token."""

    kind: Kind
    weight_N: Tensor
    teacher: TopK | Vocabulary
    mixture: float = 0.5
    """js: share of the teacher in the mixture."""

    def at(self, index_N: Tensor) -> Divergence:
        return replace(self, weight_N=self.weight_N[index_N], teacher=self.teacher.at(index_N))


def divergence(kind: Kind, teacher_CB: Tensor, student_CB: Tensor, mixture: float = 0.5) -> Tensor:
    """Divergence of each row in nats, [C], from log-probs of B buckets (GKD, arXiv 2306.13649).

    With teacher q, student p and m = b q + (1 - b) p, b = `mixture` (Eq. 1 of GKD):
    forward `sum q log(q / p)`; reverse `sum p log(p / q)`; js `b KL(q, m) + (1 - b) KL(p, m)`.
    A bucket of probability 0 adds 0 where it is the weight (-inf x 0 is NaN, trl PR 5594).

    Raises:
        ValueError: js with a mixture outside (0, 1); its limits are the two KLs.
    """
    if kind == "forward":
        return _kl(teacher_CB, student_CB)
    if kind == "reverse":
        return _kl(student_CB, teacher_CB)
    if not 0.0 < mixture < 1.0:
        raise ValueError(f"the mixture of js must lie strictly between 0 and 1, got {mixture}")
    weight = torch.tensor(mixture, dtype=student_CB.dtype, device=student_CB.device)
    mixed_CB = torch.logaddexp(teacher_CB + weight.log(), student_CB + (1.0 - weight).log())
    return mixture * _kl(teacher_CB, mixed_CB) + (1.0 - mixture) * _kl(student_CB, mixed_CB)


def _kl(weight_CB: Tensor, other_CB: Tensor) -> Tensor:
    possible_CB = weight_CB > -torch.inf
    difference_CB = (weight_CB - other_CB).where(possible_CB, 0.0)
    return (weight_CB.where(possible_CB, 0.0).exp() * difference_CB).where(possible_CB, 0.0).sum(-1)
