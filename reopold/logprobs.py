"""Log-probs of sampled tokens, and entropies, without a full [N, V] tensor.

Axes: N tokens flattened over the batch, D hidden, V vocabulary, C tokens of one chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

#: Tokens whose logits are whole in memory at once: 512 x 152k x 4 bytes = 0.3 GB.
CHUNK_TOKENS = 512


def token_logprobs_and_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    vocab_size: int | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of each position, chunk by chunk.

    Differentiable in `hidden_ND` and `weight_VD` through the log-prob; a chunk's logits are
    recomputed in the backward pass, never kept. The entropy carries no gradient.

    Args:
        hidden_ND: last hidden states, any float dtype.
        weight_VD: output head; rows from `vocab_size` on are padding and take no probability.
        targets_N: int64 token ids below `vocab_size`.
        temperature: divides the float32 logits (never the low-precision ones, miles #1554).

    Returns:
        logprobs_N and entropy_N, float32 (float64 for float64 input), nats.
    """
    weight_VD = weight_VD[:vocab_size]
    logprobs, entropies = [], []
    recompute = torch.is_grad_enabled() and hidden_ND.shape[0] > chunk_tokens
    for hidden_CD, targets_C in zip(
        hidden_ND.split(chunk_tokens), targets_N.split(chunk_tokens), strict=True
    ):
        if recompute:
            logprobs_C, entropy_C = checkpoint(
                _chunk, hidden_CD, weight_VD, targets_C, temperature, use_reentrant=False
            )
        else:
            logprobs_C, entropy_C = _chunk(hidden_CD, weight_VD, targets_C, temperature)
        logprobs.append(logprobs_C)
        entropies.append(entropy_C)
    return torch.cat(logprobs), torch.cat(entropies)


def _chunk(
    hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits_CV = upcast(hidden_CD @ weight_VD.T) / temperature
    logprobs_CV = torch.log_softmax(logits_CV, dim=-1)
    logprobs_C = logprobs_CV.gather(-1, targets_C[:, None]).squeeze(-1)
    return logprobs_C, entropy_of(logprobs_CV.detach())


def entropy_of(logprobs_CV: Tensor) -> Tensor:
    """Entropy in nats; an impossible token (log-prob -inf) adds 0, not NaN."""
    return -torch.xlogy(logprobs_CV.exp(), logprobs_CV.exp()).sum(-1)


def upcast(logits: Tensor) -> Tensor:
    """At least float32: a bfloat16 softmax over 152k ids is off by 0.014 nats."""
    return logits if logits.dtype == torch.float64 else logits.float()
