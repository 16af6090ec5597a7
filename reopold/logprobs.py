"""Log-probs, entropies and their gradients at the output head, without a full [N, V] tensor.

Everything here works on a chunk of tokens at a time, in one reused buffer of float32 logits. The
gradient of anything that is a function of a few log-probs a token is, in the logits,
`row_scale * softmax + a few entries`, so a chunk costs three matrix products and one softmax:
logits, the gradient of the hidden states, the gradient of the head.

Axes: N tokens flattened over the batch, C tokens of one chunk, D hidden, V vocabulary, K ids of a
token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reopold.bounds import CHUNK_LOGITS

#: Logits of one softmax on a CPU: the block stays in the cache while it is read five times.
BLOCK_LOGITS = 2 * 152_064
#: Head rows that are upcast at once where a CPU multiplies bfloat16.
UPCAST_ROWS = 8192


class HeadSettings(TypedDict):
    vocab_size: int | None
    temperature: float
    bias_V: Tensor | None
    scale: float
    softcap: float | None


@dataclass(frozen=True)
class Head:
    """How a model turns hidden states into logits, and those into log-probs:
    `cap * tanh(scale * (hidden @ weight.T + bias) / cap) / temperature`, cap absent in most models.
    """

    weight_VD: Tensor
    """May be the input embedding too (tied): its gradient is added like any other."""
    bias_V: Tensor | None = None
    scale: float = 1.0
    """Factor on the logits (Cohere, Granite)."""
    softcap: float | None = None
    """Soft cap of the logits (Gemma 2)."""
    vocab_size: int | None = None
    """Real ids; rows from here on are padding and take no probability (trl #3028)."""
    temperature: float = 1.0
    """Divides the float32 logits, never the low-precision ones (miles #1554)."""

    def settings(self) -> HeadSettings:
        """All but the weight, as keyword arguments of the functions below."""
        return {
            "vocab_size": self.vocab_size,
            "temperature": self.temperature,
            "bias_V": self.bias_V,
            "scale": self.scale,
            "softcap": self.softcap,
        }

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """Raw logits over the real vocabulary at temperature 1, at least float32."""
        work = HeadPass(self, hidden_CD, max(1, len(hidden_CD)))
        logits_CV, _ = work.logits(hidden_CD, temperature=1.0)
        return logits_CV


def token_logprobs_and_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
    temperature: float = 1.0,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of each position, chunk by chunk.

    Differentiable once in `hidden_ND`, `weight_VD` and `bias_V` through the log-prob; a chunk's
    logits are recomputed in the backward pass, never kept. The entropy carries no gradient.

    Args:
        hidden_ND: last hidden states, any float dtype.
        weight_VD: output head; the other settings of the head are those of :class:`Head`.
        targets_N: int64 token ids below `vocab_size`.
        chunk_tokens: tokens whose logits are in memory at once; by default what fills
            :data:`reopold.bounds.CHUNK_LOGITS`.

    Returns:
        logprobs_N and entropy_N, float32 (float64 for float64 input), nats.
    """
    head = Head(weight_VD, bias_V, scale, softcap, vocab_size, temperature)
    logprobs_N, entropy_N = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, bias_V, targets_N, head, chunk_tokens
    )
    return logprobs_N, entropy_N


@torch.no_grad()
def top_logprobs(
    hidden_ND: Tensor, head: Head, k: int, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """The `k` likeliest ids at each position, likeliest first, and their log-probs: [N, k] each.

    A vocabulary of fewer than `k` ids gives them all.
    """
    work = HeadPass(head, hidden_ND, chunk_tokens)
    k = min(k, len(work.weight_VD))
    ids, logprobs = [], []
    for rows in work.chunks(len(hidden_ND)):
        logits_CV, _ = work.logits(hidden_ND[rows])
        top_CK, ids_CK = logits_CV.topk(k, dim=-1)
        lse_C, _ = _softmax_in_place(logits_CV)
        ids.append(ids_CK)
        logprobs.append(top_CK - lse_C[:, None])
    if not ids:
        empty = torch.empty(0, k, device=hidden_ND.device)
        return empty.long(), empty.to(work.dtype)
    return torch.cat(ids), torch.cat(logprobs)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        head: Head,
        chunk_tokens: int | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N)
        ctx.head, ctx.chunk_tokens = head, chunk_tokens
        work = HeadPass(head, hidden_ND, chunk_tokens)
        logprobs_N, entropy_N = work.empty(len(hidden_ND)), work.empty(len(hidden_ND))
        for rows in work.chunks(len(hidden_ND)):
            chunk = work.softmax(hidden_ND[rows], targets_N[rows, None])
            logprobs_N[rows], entropy_N[rows] = chunk.logprobs_CK[:, 0], chunk.entropy_C
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, _weight_VD, _bias_V, targets_N = ctx.saved_tensors
        work = HeadPass(ctx.head, hidden_ND, ctx.chunk_tokens, gradients=ctx.needs_input_grad[:3])
        for rows in work.chunks(len(hidden_ND)):
            chunk = work.softmax(hidden_ND[rows], targets_N[rows, None])
            work.backward(chunk, rows, -grad_N[rows], grad_N[rows, None])
        return (*work.take_gradients(), None, None, None)


@dataclass
class Chunk:
    """The probabilities of a chunk of tokens, and what was read off on the way."""

    hidden_CD: Tensor
    probs_CV: Tensor
    """In the buffer that all chunks share: valid until the next chunk."""
    slope_CV: Tensor | None
    """Derivative of the soft cap; None where there is no cap."""
    ids_CK: Tensor
    logprobs_CK: Tensor
    entropy_C: Tensor


class HeadPass:
    """One pass over the tokens of a batch: softmax by chunk, gradients added up as it goes.

    Raises:
        ValueError: `chunk_tokens` is not positive.
    """

    def __init__(
        self,
        head: Head,
        hidden_ND: Tensor,
        chunk_tokens: int | None = None,
        *,
        gradients: tuple[bool, bool, bool] = (False, False, False),
    ) -> None:
        self.head = head
        self.weight_VD = head.weight_VD.detach()[: head.vocab_size]
        self.bias_V = None if head.bias_V is None else head.bias_V.detach()[: head.vocab_size]
        self.device = hidden_ND.device
        self.dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        vocab = self.weight_VD.shape[0]
        limit = CHUNK_LOGITS.get(self.device.type, CHUNK_LOGITS["cuda"])
        self.chunk_tokens = max(1, limit // vocab) if chunk_tokens is None else chunk_tokens
        if self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
        rows = min(self.chunk_tokens, len(hidden_ND))
        self._logits_CV = self.empty(rows, vocab)
        self._capped_CV = None if head.softcap is None else self.empty(rows, vocab)
        hidden, weight, bias = gradients
        # Zeros: tokens that the loss drops and padding rows keep a gradient of 0.
        self._hidden_ND = torch.zeros_like(hidden_ND) if hidden else None
        self._weight_VD = self._zeros_like(head.weight_VD) if weight else None
        self._bias_V = self._zeros_like(head.bias_V) if bias and head.bias_V is not None else None

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _zeros_like(self, parameter: Tensor) -> Tensor:
        return torch.zeros(parameter.shape, dtype=self.dtype, device=self.device)

    def chunks(self, count: int) -> list[slice]:
        size = self.chunk_tokens
        return [slice(first, min(first + size, count)) for first in range(0, count, size)]

    def logits(
        self, hidden_CD: Tensor, temperature: float | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits in the buffer, and with a soft cap the tanh they come from (which is kept)."""
        head = self.head
        temperature = head.temperature if temperature is None else temperature
        raw_CV = self._logits_CV[: len(hidden_CD)]
        _product(hidden_CD, self.weight_VD, raw_CV)
        if self.bias_V is not None:
            raw_CV.add_(self.bias_V)
        if head.softcap is None:
            factor = head.scale / temperature
            return (raw_CV if factor == 1.0 else raw_CV.mul_(factor)), None
        assert self._capped_CV is not None
        tanh_CV = raw_CV.mul_(head.scale / head.softcap).tanh_()
        capped_CV = self._capped_CV[: len(hidden_CD)]
        return torch.mul(tanh_CV, head.softcap / temperature, out=capped_CV), tanh_CV

    def softmax(self, hidden_CD: Tensor, ids_CK: Tensor) -> Chunk:
        """Probabilities of a chunk, the log-probs of some ids of each token, and the entropy."""
        logits_CV, tanh_CV = self.logits(hidden_CD)
        selected_CK = logits_CV.gather(-1, ids_CK)
        lse_C, mean_C = _softmax_in_place(logits_CV)
        slope_CV = None if tanh_CV is None else tanh_CV.square_().neg_().add_(1.0)
        return Chunk(
            hidden_CD, logits_CV, slope_CV, ids_CK, selected_CK - lse_C[:, None], lse_C - mean_C
        )

    def split_off(self, chunk: Chunk, first: int) -> Tensor:
        """Tail mass: what the ids from column `first` on do not hold. Their probabilities leave the
        buffer, so the sum is free of the cancellation of `1 - sum`."""
        chunk.probs_CV.scatter_(-1, chunk.ids_CK[:, first:], 0.0)
        return chunk.probs_CV.sum(-1)

    def backward(
        self, chunk: Chunk, rows: slice | Tensor, row_scale_C: Tensor, entries_CK: Tensor
    ) -> None:
        """Add the gradient of logits `row_scale * probs + entries at ids` to what came before.

        Args:
            rows: where the chunk's tokens lie among the N hidden states.
            entries_CK: added at `chunk.ids_CK`, before the soft cap's slope and the scale.
        """
        row_scale_C1 = (row_scale_C * (self.head.scale / self.head.temperature))[:, None]
        entries_CK = entries_CK * (self.head.scale / self.head.temperature)
        if chunk.slope_CV is not None:
            entries_CK = entries_CK * chunk.slope_CV.gather(-1, chunk.ids_CK)
            chunk.probs_CV.mul_(chunk.slope_CV)
        hidden_CD = chunk.hidden_CD.to(self.dtype)
        if self._hidden_ND is not None:
            grad_CD = _transposed_product(chunk.probs_CV, self.weight_VD).mul_(row_scale_C1)
            for ids_C, entries_C in zip(chunk.ids_CK.T, entries_CK.T, strict=True):
                grad_CD.addcmul_(self.weight_VD[ids_C].to(self.dtype), entries_C[:, None])
            self._hidden_ND[rows] = grad_CD.to(self._hidden_ND.dtype)
        if self._weight_VD is not None:
            grad_VD = self._weight_VD[: len(self.weight_VD)]
            _add_outer(grad_VD, chunk.probs_CV, hidden_CD * row_scale_C1, chunk.hidden_CD.dtype)
            for ids_C, entries_C in zip(chunk.ids_CK.T, entries_CK.T, strict=True):
                grad_VD.index_add_(0, ids_C, hidden_CD * entries_C[:, None])
        if self._bias_V is not None:
            grad_V = self._bias_V[: len(self.weight_VD)]
            grad_V.addmv_(chunk.probs_CV.T, row_scale_C1[:, 0])
            grad_V.index_add_(0, chunk.ids_CK.flatten(), entries_CK.flatten())

    def backward_dense(
        self,
        hidden_CD: Tensor,
        rows: slice | Tensor,
        logits_grad_CV: Tensor,
        tanh_CV: Tensor | None,
    ) -> None:
        """The same for a gradient of the logits that has no such form (full-vocabulary losses)."""
        slope_CV = None if tanh_CV is None else 1.0 - tanh_CV.square()
        none_CK = torch.empty(len(hidden_CD), 0, dtype=torch.long, device=self.device)
        chunk = Chunk(
            hidden_CD, logits_grad_CV, slope_CV, none_CK, logits_grad_CV, logits_grad_CV[:, 0]
        )
        ones_C = torch.ones(len(hidden_CD), dtype=self.dtype, device=self.device)
        self.backward(chunk, rows, ones_C, none_CK.to(self.dtype))

    def take_gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden states, weight and bias, in their dtypes; None if not asked for."""
        hidden_ND, weight_VD, bias_V = self._hidden_ND, self._weight_VD, self._bias_V
        self._hidden_ND = self._weight_VD = self._bias_V = None
        if weight_VD is not None:
            weight_VD = weight_VD.to(self.head.weight_VD.dtype)
        if bias_V is not None and self.head.bias_V is not None:
            bias_V = bias_V.to(self.head.bias_V.dtype)
        return hidden_ND, weight_VD, bias_V


def _softmax_in_place(logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Logits become probabilities; returns log-sum-exp and mean logit of each row."""
    count, vocab = logits_CV.shape
    rows = count if logits_CV.is_cuda else min(count, max(1, BLOCK_LOGITS // vocab))
    scratch_BV = logits_CV.new_empty(rows, vocab)
    lse_C, mean_C = logits_CV.new_empty(count), logits_CV.new_empty(count)
    for first in range(0, count, max(1, rows)):
        block_BV = logits_CV[first : first + rows]
        probs_BV = torch.softmax(block_BV, dim=-1, out=scratch_BV[: len(block_BV)])
        # The largest probability is 1 / sum(exp(x - max)): no second exponential is needed.
        lse_C[first : first + rows] = block_BV.amax(-1) - probs_BV.amax(-1).log()
        mean_C[first : first + rows] = block_BV.mul_(probs_BV).sum(-1)
        block_BV.copy_(probs_BV)
    return lse_C, mean_C


def _product(hidden_CD: Tensor, weight_VD: Tensor, out_CV: Tensor) -> None:
    """`hidden @ weight.T` in the dtype of `out`, accumulated there: bfloat16 logits of 152k ids
    would be off by 0.014 nats."""
    if hidden_CD.dtype == weight_VD.dtype == out_CV.dtype:
        torch.mm(hidden_CD, weight_VD.T, out=out_CV)
    elif hidden_CD.is_cuda and hidden_CD.dtype == weight_VD.dtype:
        torch.mm(hidden_CD, weight_VD.T, out_dtype=out_CV.dtype, out=out_CV)
    else:
        hidden_CD = hidden_CD.to(out_CV.dtype)
        for first in range(0, len(weight_VD), UPCAST_ROWS):
            block_UD = weight_VD[first : first + UPCAST_ROWS].to(out_CV.dtype)
            torch.mm(hidden_CD, block_UD.T, out=out_CV[:, first : first + UPCAST_ROWS])


def _transposed_product(probs_CV: Tensor, weight_VD: Tensor) -> Tensor:
    """`probs @ weight`, accumulated in the dtype of `probs`."""
    if probs_CV.dtype == weight_VD.dtype:
        return probs_CV @ weight_VD
    if probs_CV.is_cuda:
        return torch.mm(probs_CV.to(weight_VD.dtype), weight_VD, out_dtype=probs_CV.dtype)
    grad_CD = probs_CV.new_zeros(len(probs_CV), weight_VD.shape[1])
    for first in range(0, len(weight_VD), UPCAST_ROWS):
        block_UD = weight_VD[first : first + UPCAST_ROWS].to(probs_CV.dtype)
        grad_CD.addmm_(probs_CV[:, first : first + UPCAST_ROWS], block_UD)
    return grad_CD


def _add_outer(grad_VD: Tensor, probs_CV: Tensor, hidden_CD: Tensor, dtype: torch.dtype) -> None:
    """`grad += probs.T @ hidden`, on a GPU with factors in the model's low precision."""
    if grad_VD.is_cuda and dtype != grad_VD.dtype:
        low_VC, low_CD = probs_CV.T.to(dtype), hidden_CD.to(dtype)
        torch.addmm(grad_VD, low_VC, low_CD, out_dtype=grad_VD.dtype, out=grad_VD)
    else:
        grad_VD.addmm_(probs_CV.T, hidden_CD)


def upcast(logits: Tensor) -> Tensor:
    """At least float32: a bfloat16 softmax over 152k ids is off by 0.014 nats."""
    return logits if logits.dtype == torch.float64 else logits.float()
