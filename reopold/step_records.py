"""What is written of a step for people to read: some rollouts, and a dump when it goes wrong."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reopold.data.prompts import Prompt
from reopold.rollouts import Credit, Rollout, TokenBatch


@dataclass
class Step:
    """What one optimiser step has seen, kept for the log and for the rollouts folder."""

    prompts: list[Prompt]
    rollouts: list[Rollout]
    batch: TokenBatch
    credit: Credit


def describe_rollout(step: Step, i: int, tokenizer: Any) -> dict[str, Any]:
    """One rollout as a readable record: text, outcome, and every token's signals."""
    rollout, batch = step.rollouts[i], step.batch
    prompt = step.prompts[i * len(step.prompts) // len(step.rollouts)]
    rows = (batch.sequence_N == i).nonzero().squeeze(-1).tolist()
    teacher = batch.teacher_logprobs_N
    return {
        "prompt": "\n".join(message["content"] for message in prompt.messages),
        "response": tokenizer.decode(rollout.response_ids, skip_special_tokens=True),
        "answer": prompt.answer,
        "reward": None if batch.reward_S is None else float(batch.reward_S[i]),
        "finish_reason": rollout.finish_reason,
        "tokens": [
            {
                "text": tokenizer.decode([token]),
                "teacher_logprob": None if teacher is None else float(teacher[row]),
                "student_logprob": float(batch.student_logprobs_N[row]),
                "entropy": float(batch.entropy_N[row]),
                "kept": bool(step.credit.keep_N[row]),
            }
            for token, row in zip(rollout.response_ids, rows, strict=True)
        ],
    }


def dump_step(
    path: Path,
    *,
    step: int,
    reason: str,
    rollouts: Sequence[Rollout],
    batch: TokenBatch,
    credit: Credit | None,
    grad_norms: dict[str, float] | None = None,
) -> None:
    """Everything that explains a step that went wrong, for `torch.load(path)`.

    Tensors, numbers, strings and lists only, so that it loads with `weights_only`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "step": step,
        "reason": reason,
        "rollouts": [dataclasses.asdict(rollout) for rollout in rollouts],
        "batch": _tensors(batch),
        "credit": {} if credit is None else _tensors(credit),
        "grad_norms": grad_norms or {},
    }
    temporary = path.with_suffix(".tmp")
    torch.save(record, temporary)
    os.replace(temporary, path)


def _tensors(signals: TokenBatch | Credit) -> dict[str, Tensor]:
    fields = ((field.name, getattr(signals, field.name)) for field in dataclasses.fields(signals))
    return {name: value.cpu() for name, value in fields if isinstance(value, Tensor)}
