"""A step under way: what is sampled, scored and updated of it, and how that is kept on disk.

A stop in the middle of a step loses none of it that took long: rollouts with the sampler's
log-probs, scores, masks, and the updates that are made go into the checkpoint.

Axes: N response tokens of the step, flattened over its rollouts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reopold.data.images import Image
from reopold.data.prompts import Prompt
from reopold.divergences import TopK
from reopold.rollouts import Credit, Rollout, TokenBatch
from reopold.sampling import Drawn

Metrics = dict[str, float]


@dataclass
class Updates:
    """The optimiser updates of a step that are made."""

    logprobs_N: Tensor
    """Of the kept tokens, each under the weights just before its update; NaN elsewhere."""
    done: int = 0
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)


@dataclass
class Step:
    """Step k (from 0), as far as it has come. Each part is None until it is there."""

    k: int
    prompts: list[Prompt]
    rollouts: list[Rollout]
    drawn: Drawn
    seconds: dict[str, float] = field(default_factory=dict)
    """Spent on each part, over all the processes that worked at it."""
    batch: TokenBatch | None = None
    gap: Metrics = field(default_factory=dict)
    credit: Credit | None = None
    updates: Updates | None = None


def pack(step: Step) -> dict[str, Any]:
    """Plain data and tensors, for :func:`reopold.checkpoint.write_checkpoint`.

    A teacher's whole distribution is not kept: its rollouts are scored once more.
    """
    packed: dict[str, Any] = {
        "k": step.k,
        "prompts": [dataclasses.asdict(prompt) for prompt in step.prompts],
        "rollouts": _pack_rollouts(step.rollouts),
        "drawn": dataclasses.asdict(step.drawn),
        "seconds": step.seconds,
    }
    batch, credit, updates = step.batch, step.credit, step.updates
    if batch is None or not isinstance(batch.teacher_distribution, TopK | None):
        return packed
    packed |= {"batch": _tensors(batch), "gap": step.gap}
    if batch.teacher_distribution is not None:
        packed["top_k"] = _tensors(batch.teacher_distribution)
    if credit is not None:
        packed["credit"] = {"advantages_N": credit.advantages_N, "keep_N": credit.keep_N}
    if updates is not None:
        packed["updates"] = vars(updates)
    return packed


def unpack(packed: dict[str, Any], device: torch.device | str) -> Step:
    """The step of :func:`pack`. Its credit is the objective's to give again."""
    step = Step(
        k=packed["k"],
        prompts=[_prompt(prompt) for prompt in packed["prompts"]],
        rollouts=_unpack_rollouts(packed["rollouts"]),
        drawn=Drawn(**packed["drawn"]),
        seconds=packed["seconds"],
    )
    if "batch" not in packed:
        return step
    top = packed.get("top_k")
    batch = {"teacher_logprobs_N": None, **_moved(packed["batch"], device)}
    step.batch = TokenBatch(
        **batch, teacher_distribution=None if top is None else TopK(**_moved(top, device))
    )
    step.gap = packed["gap"]
    if "updates" in packed:
        step.updates = Updates(**packed["updates"])
        step.updates.logprobs_N = step.updates.logprobs_N.to(device)
    return step


def _prompt(packed: dict[str, Any]) -> Prompt:
    images = tuple(Image(**image) for image in packed["images"])
    return Prompt(**{**packed, "completion": tuple(packed["completion"]), "images": images})


def same_credit(credit: Credit, packed: dict[str, Any]) -> bool:
    """Whether the objective gives the credit that was kept; NaN where a token has no score."""
    kept = packed.get("credit")
    return kept is None or (
        torch.equal(credit.keep_N.cpu(), kept["keep_N"])
        and torch.equal(credit.advantages_N.cpu().nan_to_num(), kept["advantages_N"].nan_to_num())
    )


def _pack_rollouts(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    def flat(name: str, dtype: torch.dtype) -> dict[str, Any]:
        rows = [getattr(rollout, name) for rollout in rollouts]
        return {
            "values": torch.tensor([x for row in rows for x in row], dtype=dtype),
            "lengths": [len(row) for row in rows],
        }

    return {
        "prompt_ids": flat("prompt_ids", torch.int64),
        "response_ids": flat("response_ids", torch.int64),
        "logprobs": flat("logprobs", torch.float64),
        "finish_reason": [rollout.finish_reason for rollout in rollouts],
        "weight_version": [rollout.weight_version for rollout in rollouts],
        "source": [rollout.source for rollout in rollouts],
        "images": [[dataclasses.asdict(each) for each in r.images] for r in rollouts],
        "observed": [rollout.observed for rollout in rollouts],
        "calls": [rollout.calls for rollout in rollouts],
        "failed_calls": [rollout.failed_calls for rollout in rollouts],
        "outcome": [rollout.outcome for rollout in rollouts],
        "error": [rollout.error for rollout in rollouts],
    }


def _unpack_rollouts(packed: dict[str, Any]) -> list[Rollout]:
    columns: dict[str, list[Any]] = {
        name: _rows(column) if isinstance(column, dict) else column
        for name, column in packed.items()
    }
    count = len(packed["source"])
    rows: list[dict[str, Any]] = [{n: c[i] for n, c in columns.items()} for i in range(count)]
    for row in rows:
        row["images"] = tuple(Image(**image) for image in row["images"])
    return [Rollout(**row) for row in rows]


def _rows(column: dict[str, Any]) -> list[list[Any]]:
    return [part.tolist() for part in torch.split(column["values"], column["lengths"])]


def _tensors(signals: Any) -> dict[str, Tensor]:
    fields = ((each.name, getattr(signals, each.name)) for each in dataclasses.fields(signals))
    return {name: value for name, value in fields if isinstance(value, Tensor)}


def _moved(tensors: dict[str, Tensor], device: torch.device | str) -> dict[str, Any]:
    return {name: value.to(device) for name, value in tensors.items()}
