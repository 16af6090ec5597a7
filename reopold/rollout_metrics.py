"""What is logged of a step's rollouts: over the tokens that the model sampled, and over rollouts
whose environment held.

Axes: N response tokens of the step, flattened over its rollouts; S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean

import torch

from reopold.diagnostics import repetition
from reopold.rollouts import Rollout, TokenBatch
from reopold.step_buffer import Metrics, Step


def rollout_metrics(step: Step, *, given: bool, several_rounds: bool) -> Metrics:
    """`rollout/...` of a scored step, and `family/...` where it has prompts of several families.
    At least one environment held.

    Args:
        given: supervised fine-tuning: nothing was sampled.
        several_rounds: prompts may have been drawn that the step did not keep.
    """
    batch, rollouts = step.batch, step.rollouts
    assert batch is not None
    whole = [rollout for rollout in rollouts if not rollout.error]
    metrics = {"rollout/length": float(batch.valid_N.sum()) / len(whole)}
    if several_rounds:
        metrics["rollout/discarded_fraction"] = 1.0 - len(rollouts) / step.drawn.rollouts
    if not given:
        metrics["rollout/repetition"] = repetition([r.sampled_ids for r in whole])
        metrics["rollout/truncated_fraction"] = _truncated(whole)
        metrics["rollout/entropy"] = float(batch.entropy_N[batch.valid_N].mean())
        metrics |= _dialogues(step)
    if batch.reward_S is not None:
        metrics["rollout/reward"] = float(batch.reward_S[~batch.reward_S.isnan()].mean())
    return metrics | _families(step, batch, given)


def turns(rollout: Rollout) -> int:
    """Messages of the model in a rollout."""
    return sum(not observed for observed, _ in groupby(rollout.observed)) if rollout.observed else 1


def _dialogues(step: Step) -> Metrics:
    """Means over the dialogues of a step; nothing where it has none."""
    copies = len(step.rollouts) // len(step.prompts)
    led = [r for i, r in enumerate(step.rollouts) if step.prompts[i // copies].environment]
    if not led:
        return {}
    whole = [rollout for rollout in led if not rollout.error]
    metrics = {"rollout/broken": 1.0 - len(whole) / len(led)}
    if whole:
        metrics |= {
            "rollout/turns": fmean(turns(rollout) for rollout in whole),
            "rollout/calls": fmean(rollout.calls for rollout in whole),
            "rollout/failed_calls": fmean(rollout.failed_calls for rollout in whole),
        }
    return metrics


def _families(step: Step, batch: TokenBatch, given: bool) -> Metrics:
    families = sorted({prompt.family for prompt in step.prompts})
    if len(families) < 2:
        return {}
    copies = len(step.rollouts) // len(step.prompts)
    metrics: Metrics = {}
    for family in families:
        places = [
            i
            for i, rollout in enumerate(step.rollouts)
            if step.prompts[i // copies].family == family and not rollout.error
        ]
        if not places:
            continue
        mine_S = torch.zeros(len(step.rollouts), dtype=torch.bool, device=batch.valid_N.device)
        mine_S[places] = True
        mine_N = batch.valid_N & mine_S[batch.sequence_N]
        found = {"length": float(mine_N.sum()) / len(places)}
        if not given:
            found["truncated_fraction"] = _truncated([step.rollouts[i] for i in places])
        if batch.reward_S is not None:
            found["reward"] = float(batch.reward_S[mine_S].mean())
        if batch.teacher_logprobs_N is not None:
            rewards_N = batch.teacher_logprobs_N - batch.student_logprobs_N
            found["teacher_reward"] = float(rewards_N[mine_N].mean())
        metrics |= {f"family/{family}/{name}": value for name, value in found.items()}
    return metrics


def _truncated(rollouts: Sequence[Rollout]) -> float:
    """Share that ended because a budget was used up."""
    cut = sum(rollout.finish_reason != "stop" for rollout in rollouts)
    return cut / len(rollouts)
