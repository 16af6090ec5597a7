"""One loss for every method (method.md Eq. 4): kept tokens' `-rho * advantage`, averaged.

A credit may ask for a divergence from the teacher's distribution beside it (gkd and its relatives).

Axes: N tokens flattened over the batch, C tokens of one chunk, K ids of a token, D hidden, V
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reopold.divergences import TopK, divergence
from reopold.logprobs import Head, HeadPass
from reopold.rollouts import Credit

RatioClip = tuple[float, float]


def policy_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor | None,
    credit: Credit,
    *,
    ratio_clip: RatioClip | None = None,
    normaliser: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`-(1 / normaliser) * sum over kept tokens of rho * advantage`, rho = pi_theta / pi_old.

    Args:
        logprobs_N: log pi_theta of the sampled tokens, with gradient.
        old_logprobs_N: log pi_old of them, without; None where no policy sampled them (sft) or it
            is this one: the ratio is 1.
        credit: advantages and mask of the same N tokens.
        ratio_clip: PPO clip of the ratio, how far below and above 1 (GRPO, DAPO); None for the
            distillation methods, which clip the reward.
        normaliser: kept tokens of the whole optimiser step, over all micro-batches and ranks;
            by default those of this call. So the gradient does not change with the split
            (trl #4719, ms-swift #10076).

    Returns:
        The loss (0 with a graph if nothing is kept) and `ratio_max` over kept tokens.

    Raises:
        ValueError: the advantages carry a gradient: K1 as a direct loss (OpenRLHF PR 1309).
    """
    _refuse_gradient(credit)
    keep_N = credit.keep_N
    if old_logprobs_N is None:
        old_logprobs_N = logprobs_N.detach()
    # Difference 0 before the exponential at dropped positions: exp(inf) * 0 is NaN (Flash-RL #19).
    ratio_N = (logprobs_N - old_logprobs_N).where(keep_N, 0.0).exp()
    gain_N = ratio_N * credit.advantages_N
    if ratio_clip is not None:
        low, high = ratio_clip
        clipped_N = ratio_N.clamp(1.0 - low, 1.0 + high) * credit.advantages_N
        gain_N = torch.minimum(gain_N, clipped_N)
    total = keep_N.sum() if normaliser is None else normaliser
    loss = -gain_N.where(keep_N, 0.0).sum() / _at_least_one(total)
    kept_ratio = ratio_N.detach().where(keep_N, 1.0)
    return loss, {"ratio_max": kept_ratio.max() if kept_ratio.numel() else kept_ratio.sum() + 1.0}


def fused_policy_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    old_logprobs_N: Tensor | None,
    credit: Credit,
    *,
    normaliser: Tensor | float,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    ratio_clip: RatioClip | None = None,
    temperature: float = 1.0,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`policy_loss` (and the credit's divergence) from hidden states, in one pass.

    The loss is a function of a few log-probs a token, so its gradient in the logits is known as
    soon as a chunk's logits are: it is formed in the forward pass, in the same buffer, and the
    backward pass only scales it. No [N, V] tensor exists and nothing is computed twice. Tokens that
    the mask drops cost no head work at all.

    Args:
        hidden_ND: last hidden states, any float dtype; differentiable once.
        weight_VD: output head; the other settings of the head are those of
            :class:`reopold.logprobs.Head`.
        targets_N: int64 sampled ids below `vocab_size`.
        old_logprobs_N: log pi_old of them (any value where the mask drops); None as in
            :func:`policy_loss`.
        normaliser: kept tokens of the whole optimiser step (see :func:`policy_loss`).
        chunk_tokens: tokens whose logits are in memory at once; by default about 40 MB of them on
            a CPU and 320 MB on a GPU.

    Returns:
        The loss, and log-prob and entropy of every *kept* token (NaN at dropped ones: they were not
        computed), float32 (float64 for float64 input), without gradient.

    Raises:
        ValueError: the advantages carry a gradient: K1 as a direct loss (OpenRLHF PR 1309).
    """
    _refuse_gradient(credit)
    head = Head(weight_VD, bias_V, scale, softcap, vocab_size, temperature)
    terms = _Terms(targets_N, old_logprobs_N, credit, ratio_clip, _at_least_one(normaliser))
    loss, logprobs_N, entropy_N = _FusedLoss.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, bias_V, head, terms, chunk_tokens, torch.is_grad_enabled()
    )
    return loss, logprobs_N, entropy_N


@dataclass(frozen=True)
class _Terms:
    """The loss of a few tokens, as a function of their log-probs."""

    targets_N: Tensor
    old_logprobs_N: Tensor | None
    credit: Credit
    ratio_clip: RatioClip | None
    normaliser: Tensor

    @property
    def top(self) -> TopK | None:
        """The teacher's top ids, where the credit's divergence is over those."""
        asked = self.credit.divergence
        return asked.teacher if asked is not None and isinstance(asked.teacher, TopK) else None

    @property
    def dense(self) -> bool:
        return self.credit.divergence is not None and self.top is None

    def policy(self, rows: Tensor, logprobs_C: Tensor) -> Tensor:
        advantages_C = self.credit.advantages_N[rows].to(logprobs_C.dtype)
        credit = Credit(advantages_C, torch.ones_like(advantages_C, dtype=torch.bool))
        old_N = self.old_logprobs_N
        old_C = None if old_N is None else old_N[rows].detach().to(logprobs_C.dtype)
        loss, _ = policy_loss(
            logprobs_C, old_C, credit, ratio_clip=self.ratio_clip, normaliser=self.normaliser
        )
        return loss

    def divergence(self, rows: Tensor, teacher_CB: Tensor, student_CB: Tensor) -> Tensor:
        asked = self.credit.divergence
        assert asked is not None
        weight_C = asked.weight_N[rows].to(student_CB.dtype)
        each_C = divergence(asked.kind, teacher_CB.to(student_CB.dtype), student_CB, asked.mixture)
        # 0 x inf is NaN: a token without weight is left out, not multiplied.
        return (weight_C * each_C.where(weight_C != 0, 0.0)).sum() / self.normaliser


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        head: Head,
        terms: _Terms,
        chunk_tokens: int | None,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needed = tuple(with_gradient and need for need in ctx.needs_input_grad[:3])
        work = HeadPass(head, hidden_ND, chunk_tokens, gradients=needed)  # type: ignore[arg-type]
        kept = terms.credit.keep_N.nonzero().squeeze(-1)
        step = _dense_chunk if terms.dense else _sparse_chunk
        loss = work.empty(1).zero_()
        logprobs_N = work.empty(len(hidden_ND)).fill_(torch.nan)
        entropy_N = logprobs_N.clone()
        for rows in kept.split(work.chunk_tokens):
            part, logprobs_N[rows], entropy_N[rows] = step(work, terms, hidden_ND[rows], rows)
            loss += part
        ctx.gradients = work.take_gradients()
        ctx.mark_non_differentiable(logprobs_N, entropy_N)
        return loss.squeeze(0), logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("fused_policy_loss can be differentiated once only")
        # Handed over, not kept: autograd then takes the tensor as .grad without a copy of the head.
        gradients, ctx.gradients = ctx.gradients, None
        if float(grad) != 1.0:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(grad.to(gradient.dtype))
        return (*gradients, None, None, None, None)


def _sparse_chunk(
    work: HeadPass, terms: _Terms, hidden_CD: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A chunk whose loss is a function of the log-probs of a few ids: target, and top K of teacher.

    With G the gradients in those log-probs and g in the tail's, the gradient in the logits is
    `G - p * (sum G + g)` at the ids and `p * (g / p_tail - sum G - g)` elsewhere.
    """
    ids_CK = terms.targets_N[rows, None]
    if terms.top is not None:
        ids_CK = torch.cat([ids_CK, terms.top.ids_NK[rows]], dim=-1)
    chunk = work.softmax(hidden_CD, ids_CK)
    with torch.enable_grad():
        logprobs_CK = chunk.logprobs_CK.detach().requires_grad_()
        loss = terms.policy(rows, logprobs_CK[:, 0])
        if terms.top is None:
            (grad_CK,) = torch.autograd.grad(loss, logprobs_CK)
            row_scale_C = -grad_CK.sum(-1)
        else:
            smallest = torch.finfo(work.dtype).tiny
            tail_C = work.split_off(chunk, 1).clamp(min=smallest)
            log_tail_C = tail_C.log().requires_grad_()
            student_CB = torch.cat([logprobs_CK[:, 1:], log_tail_C[:, None]], dim=-1)
            loss = loss + terms.divergence(rows, terms.top.with_tail(rows), student_CB)
            grad_CK, grad_tail_C = torch.autograd.grad(loss, (logprobs_CK, log_tail_C))
            total_C = grad_CK.sum(-1) + grad_tail_C
            row_scale_C = grad_tail_C / tail_C - total_C
            grad_CK = grad_CK.clone()  # the top ids have left the buffer: their share of p is here
            grad_CK[:, 1:] -= chunk.logprobs_CK[:, 1:].exp() * total_C[:, None]
    work.backward(chunk, rows, row_scale_C, grad_CK)
    return loss.detach(), chunk.logprobs_CK[:, 0], chunk.entropy_C


def _dense_chunk(
    work: HeadPass, terms: _Terms, hidden_CD: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A chunk whose loss sees the whole vocabulary: autograd through its log-softmax."""
    logits_CV, tanh_CV = work.logits(hidden_CD)
    asked = terms.credit.divergence
    assert asked is not None and not isinstance(asked.teacher, TopK)
    with torch.enable_grad():
        leaf_CV = logits_CV.requires_grad_()
        logprobs_CV = torch.log_softmax(leaf_CV, dim=-1)
        logprobs_C = logprobs_CV.gather(-1, terms.targets_N[rows, None]).squeeze(-1)
        loss = terms.policy(rows, logprobs_C)
        loss = loss + terms.divergence(rows, asked.teacher.logprobs(rows), logprobs_CV)
        (grad_CV,) = torch.autograd.grad(loss, leaf_CV)
    probs_CV = logprobs_CV.detach().exp()
    entropy_C = -torch.xlogy(probs_CV, probs_CV).sum(-1)
    logits_CV.requires_grad_(False)
    work.backward_dense(hidden_CD, rows, grad_CV, tanh_CV)
    return loss.detach(), logprobs_C.detach(), entropy_C


def _refuse_gradient(credit: Credit) -> None:
    if credit.advantages_N.requires_grad:
        raise ValueError(
            "the advantages carry a gradient. K1 as a direct loss has zero expected gradient "
            "(OpenRLHF PR 1309): detach the reward, it is the weight of the policy gradient"
        )


def _at_least_one(normaliser: Tensor | float) -> Tensor:
    total = normaliser if isinstance(normaliser, Tensor) else torch.as_tensor(normaliser)
    return total.clamp(min=1)
