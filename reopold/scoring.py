"""Scores of given responses under a model: the same code for teacher, pi_old and the update.

Sequences are padded on the right. Under causal attention a pad never reaches a real position, so
no mask and no position ids are needed and a score does not depend on the padding (trl #6800).

Axes: B sequences of a micro-batch, L padded length, N response tokens of given rollouts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reopold.config import ConfigError
from reopold.logprobs import token_logprobs_and_entropy
from reopold.rollouts import Rollout


@dataclass(frozen=True)
class MicroBatch:
    """Some rollouts of a step, padded, and where their tokens lie in the step's flat order."""

    input_ids_BL: Tensor
    row_N: Tensor
    position_N: Tensor
    """Position whose hidden state predicts the token: one before the token itself."""
    targets_N: Tensor
    index_N: Tensor
    """Index of each token in the step's flattened order (rollouts in order, then time)."""


def micro_batches(
    rollouts: Sequence[Rollout], size: int, device: torch.device | str
) -> Iterator[MicroBatch]:
    """Cut rollouts into micro-batches of `size` sequences, longest together to save padding."""
    lengths = torch.tensor([len(r.response_ids) for r in rollouts])
    starts = lengths.cumsum(0) - lengths
    order = sorted(
        range(len(rollouts)),
        key=lambda i: -len(rollouts[i].prompt_ids) - len(rollouts[i].response_ids),
    )
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        yield _pad([rollouts[i] for i in chosen], [int(starts[i]) for i in chosen], device)


def _pad(
    rollouts: Sequence[Rollout], starts: Sequence[int], device: torch.device | str
) -> MicroBatch:
    longest = max(len(r.prompt_ids) + len(r.response_ids) for r in rollouts)
    input_ids = torch.zeros(len(rollouts), longest, dtype=torch.long)
    row: list[int] = []
    position: list[int] = []
    targets: list[int] = []
    index: list[int] = []
    for i, (rollout, start) in enumerate(zip(rollouts, starts, strict=True)):
        ids = rollout.prompt_ids + rollout.response_ids
        input_ids[i, : len(ids)] = torch.tensor(ids)
        length = len(rollout.response_ids)
        first = len(rollout.prompt_ids) - 1
        row += [i] * length
        position += range(first, first + length)
        targets += rollout.response_ids
        index += range(start, start + length)
    flat = [
        torch.tensor(values, dtype=torch.long, device=device)
        for values in (row, position, targets, index)
    ]
    return MicroBatch(input_ids.to(device), *flat)


def score_micro_batch(
    model: PreTrainedModel, batch: MicroBatch, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Log-prob (with gradient, if enabled) and entropy of the micro-batch's tokens, float32."""
    hidden_BLD = model.base_model(input_ids=batch.input_ids_BL, use_cache=False).last_hidden_state
    hidden_ND = hidden_BLD[batch.row_N, batch.position_N]
    weight_VD = model.get_output_embeddings().weight
    return token_logprobs_and_entropy(hidden_ND, weight_VD, batch.targets_N, vocab_size=vocab_size)


@torch.no_grad()
def score(
    model: PreTrainedModel, rollouts: Sequence[Rollout], *, vocab_size: int, micro_batch: int
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of every response token: logprobs_N, entropy_N, at least float32.

    N runs over rollouts in order, then time. `vocab_size` is the number of real ids.
    """
    total = sum(len(r.response_ids) for r in rollouts)
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    logprobs_N = torch.full((total,), torch.nan, dtype=dtype, device=model.device)
    entropy_N = logprobs_N.clone()
    for batch in micro_batches(rollouts, micro_batch, model.device):
        logprobs_N[batch.index_N], entropy_N[batch.index_N] = score_micro_batch(
            model, batch, vocab_size
        )
    return logprobs_N, entropy_N


def check_head(model: PreTrainedModel, name: str) -> None:
    """Refuse heads whose logits are not `hidden @ weight.T`: their scores would be wrong.

    Raises:
        ConfigError: the head has a bias, scales its logits or caps them.
    """
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    extras = {
        "a bias": getattr(head, "bias", None) is not None,
        "soft-capped logits": getattr(config, "final_logit_softcapping", None) is not None,
        "scaled logits": getattr(config, "logit_scale", None) is not None
        or getattr(config, "logits_scaling", None) is not None,
    }
    found = [what for what, present in extras.items() if present]
    if found:
        raise ConfigError(
            f"{name} has an output head with {' and '.join(found)}, which is not supported yet"
        )
