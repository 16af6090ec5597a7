"""miniVERL's chunked K1 policy loss and its exact divergences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from miniverl.losses import chunked_selected_position_loss
from miniverl.losses.chunked import ExactTargetProvider, VerlPGK1TargetProvider
from torch import Tensor
from transformers import PreTrainedModel

from reopold.divergences import Divergence
from reopold.objectives import build
from reopold.rollouts import Credit
from tests.conformance.conftest import (
    Batch,
    Record,
    gradients,
    hidden_of,
    logits_of,
    make_model,
    our_loss,
    relative_error,
    sampled,
)
from tests.conformance.test_trl_opd import vocabulary


def miniverl_gradients(model: PreTrainedModel, batch: Batch, provider: Any) -> Tensor:
    """It calls backward itself: its loss is a float."""
    model.zero_grad(set_to_none=True)
    hidden = hidden_of(model, batch)[batch.mask_BT.bool()]
    chunked_selected_position_loss(
        hidden_states=hidden,
        lm_head=model.get_output_embeddings(),
        weights=torch.ones(len(hidden), dtype=hidden.dtype),
        provider=provider,
        chunk_size=3,
        backward=True,
    )
    found = [p.grad for p in model.parameters()]
    return torch.cat([g.flatten().double() for g in found if g is not None])


def test_k1(model: PreTrainedModel, batch: Batch, record: Record) -> None:
    """On-policy, where its PPO and dual clips do not bite."""
    keep = batch.mask_BT.bool()
    with torch.no_grad():
        old = sampled(logits_of(model, batch), batch)
    provider = VerlPGK1TargetProvider(
        target_token_ids=batch.targets_BT[keep],
        old_actor_log_probs=old[keep],
        teacher_sampled_token_log_probs=batch.teacher_BT[keep],
    )
    theirs = miniverl_gradients(model, batch, provider)
    credit = build("opd")(batch.token_batch(old), 0)
    error = relative_error(gradients(model, our_loss(model, batch, credit, old)), theirs)
    record.add("miniverl", "VerlPGK1TargetProvider", model.dtype, error)


@pytest.mark.parametrize("kind", ["reverse", "forward", "js"])
def test_exact(model: PreTrainedModel, batch: Batch, record: Record, kind: Any) -> None:
    teacher = make_model(5, model.dtype, tied=False)
    with torch.no_grad():
        logits = logits_of(teacher, batch)[batch.mask_BT.bool()]
    name = {"reverse": "reverse_kl", "forward": "forward_kl", "js": "jsd"}[kind]
    provider = ExactTargetProvider(
        lambda start, end: logits[start:end],
        divergence_name=name,
        temperature=1.0,
        scale_by_temperature_squared=False,
    )
    theirs = miniverl_gradients(model, batch, provider)
    zero = torch.zeros(len(logits), dtype=model.dtype)
    wanted = Divergence(kind, torch.ones_like(zero), vocabulary(teacher, batch), 0.5)
    credit = Credit(zero, torch.ones(len(logits), dtype=torch.bool), {}, wanted)
    error = relative_error(gradients(model, our_loss(model, batch, credit, None)), theirs)
    record.add("miniverl", f"ExactTargetProvider, {name}", model.dtype, error)
