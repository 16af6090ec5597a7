"""TRL's GRPOTrainer: its own loss method, three loss types, and what its mask divides by."""

from __future__ import annotations

import types
from collections import defaultdict
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from reopold.objectives import build
from reopold.rollouts import Credit
from reopold.selection import top_fraction
from tests.conformance.conftest import (
    LENGTHS,
    LONGEST,
    PROMPT,
    Batch,
    Record,
    gradients,
    logits_of,
    our_loss,
    relative_error,
    sampled,
)

CLIP = (0.2, 0.28)


def grpo_trainer(model: PreTrainedModel, loss_type: str, quantile: float = 1.0) -> Any:
    """The trainer's own loss method, without its training loop."""
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    trainer = GRPOTrainer.__new__(GRPOTrainer)
    settings = {
        "accelerator": Accelerator(cpu=True),
        "model": model,
        "aux_loss_enabled": False,
        "top_entropy_quantile": quantile,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "loss_type": loss_type,
        "epsilon_low": CLIP[0],
        "epsilon_high": CLIP[1],
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": LONGEST + 2,
        "_entropy_bonus_enabled": False,
        "args": types.SimpleNamespace(
            delta=None, use_bias_correction_kl=False, steps_per_generation=1, report_to=[]
        ),
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
    }
    for name, value in settings.items():
        setattr(trainer, name, value)
    return trainer


def trl_loss(trainer: Any, batch: Batch, advantages: Tensor, old: Tensor | None) -> Tensor:
    found: Tensor = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": batch.ids_BL[:, :PROMPT],
            "prompt_mask": torch.ones(len(LENGTHS), PROMPT, dtype=torch.long),
            "completion_ids": batch.targets_BT,
            "completion_mask": batch.mask_BT,
            "advantages": advantages,
            "old_per_token_logps": old,
            "num_items_in_batch": batch.mask_BT.sum().float(),
        },
    )
    return found


#: Outcomes of two prompts of two samples each; the same for every loss type.
OUTCOMES, GROUPS = [1.0, 0.0, 0.25, 0.75], [0, 0, 1, 1]


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_losses(model: PreTrainedModel, batch: Batch, record: Record, loss_type: str) -> None:
    """Off-policy, so that the clip bites; advantages are the objective's own, per sequence."""
    with torch.no_grad():
        now = sampled(logits_of(model, batch), batch)
    old = now - batch.drift_BT
    rewards = torch.tensor(OUTCOMES, dtype=model.dtype)
    longest = {} if loss_type == "grpo" else {"max_length": LONGEST + 2}
    objective = build(loss_type, ratio_clip=CLIP[0], **longest)
    token_batch = batch.token_batch(old, reward_S=rewards, group_S=torch.tensor(GROUPS))
    credit = objective(token_batch, 0)
    centred = rewards - torch.tensor([0.5, 0.5, 0.5, 0.5], dtype=model.dtype)
    scale = torch.tensor([0.5, 0.5, 0.25, 0.25], dtype=model.dtype) + 1e-4
    advantages = centred if loss_type == "dr_grpo" else centred / scale
    ratios = batch.drift_BT.exp()[batch.mask_BT.bool()]
    assert (ratios > 1 + CLIP[1]).any() and (ratios < 1 - CLIP[0]).any()
    ours = gradients(model, our_loss(model, batch, credit, old, ratio_clip=CLIP))
    theirs = trl_loss(grpo_trainer(model, loss_type), batch, advantages, old)
    error = relative_error(ours, gradients(model, theirs))
    record.add("trl", f"GRPOTrainer, {loss_type}", model.dtype, error)


def test_plain_distillation_through_token_advantages(
    model: PreTrainedModel, batch: Batch, record: Record
) -> None:
    """K1 as advantages of shape (B, T) under its dapo normalisation, on-policy."""
    with torch.no_grad():
        now = sampled(logits_of(model, batch), batch)
    credit = build("opd")(batch.token_batch(now), 0)
    ours = gradients(model, our_loss(model, batch, credit, now))
    theirs = trl_loss(grpo_trainer(model, "dapo"), batch, batch.teacher_BT - now, None)
    error = relative_error(ours, gradients(model, theirs))
    record.add("trl", "GRPOTrainer, dapo, K1 as advantages", model.dtype, error)


def test_its_entropy_mask_leaves_dropped_tokens_in_the_denominator(
    model: PreTrainedModel, batch: Batch, record: Record
) -> None:
    """The same tokens are learnt from, but the step shrinks by kept / valid."""
    logits = logits_of(model, batch).detach()
    logprobs = torch.log_softmax(logits, -1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)[batch.mask_BT.bool()]
    valid = torch.ones_like(entropy, dtype=torch.bool)
    keep = top_fraction(entropy, valid, 0.2)
    advantage = batch.advantage_B[:, None].expand_as(batch.mask_BT)[batch.mask_BT.bool()]
    now = sampled(logits, batch)
    ours = gradients(model, our_loss(model, batch, Credit(advantage, keep), now))
    trainer = grpo_trainer(model, "dapo", quantile=0.2)
    theirs = gradients(model, trl_loss(trainer, batch, batch.advantage_B, None))
    share = float(keep.sum()) / len(keep)
    error = relative_error(ours * share, theirs)
    name = f"GRPOTrainer, top 20 % entropy: ours times kept / valid ({share:.2f})"
    record.add("trl", name, model.dtype, error)
