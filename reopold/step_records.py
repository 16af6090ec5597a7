"""What is written of a step for people to read: some rollouts, and a dump when it goes wrong."""

from __future__ import annotations

import dataclasses
import os
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reopold.divergences import TopK
from reopold.rollouts import Credit, Rollout, TokenBatch
from reopold.step_buffer import Step


def describe_rollout(
    step: Step, i: int, tokenizer: Any, rather: TopK | None = None
) -> dict[str, Any]:
    """One rollout as a readable record: text, outcome, and every token's signals. Of a dialogue
    also its messages, each with the number of its tokens; of a prompt with images their paths.

    Args:
        rather: the teacher's likeliest ids at every token of the step.
    """
    rollout, batch, credit = step.rollouts[i], step.batch, step.credit
    assert batch is not None and credit is not None
    prompt = step.prompts[i * len(step.prompts) // len(step.rollouts)]
    rows = (batch.sequence_N == i).nonzero().squeeze(-1).tolist()
    teacher, observed = batch.teacher_logprobs_N, rollout.observed or [False] * len(rows)
    led = _describe_dialogue(rollout, prompt.environment, tokenizer) if prompt.environment else {}
    return {
        "question_id": prompt.id,
        "prompt": "\n".join(message["content"] for message in prompt.messages),
        "response": tokenizer.decode(rollout.response_ids, skip_special_tokens=True),
        "answer": prompt.answer,
        "reward": _reward(batch, i),
        "finish_reason": rollout.finish_reason,
        **({"images": [image.path for image in rollout.images]} if rollout.images else {}),
        **led,
        "tokens": [
            {
                "text": tokenizer.decode([token]),
                "teacher_logprob": None if teacher is None else float(teacher[row]),
                "student_logprob": float(batch.student_logprobs_N[row]),
                "entropy": float(batch.entropy_N[row]),
                "kept": bool(credit.keep_N[row]),
                **({"observed": said} if led else {}),
                **({} if rather is None else _alternatives(rather, row, tokenizer)),
            }
            for token, row, said in zip(rollout.response_ids, rows, observed, strict=True)
        ],
    }


def _alternatives(rather: TopK, row: int, tokenizer: Any) -> dict[str, Any]:
    """Texts and log-probs of the teacher's likeliest ids at a token."""
    pairs = zip(rather.ids_NK[row].tolist(), rather.logprobs_NK[row].tolist(), strict=True)
    return {"alternatives": [[tokenizer.decode([token]), logprob] for token, logprob in pairs]}


def _reward(batch: TokenBatch, i: int) -> float | None:
    """None where there is none, or the environment broke."""
    if batch.reward_S is None or batch.reward_S[i].isnan():
        return None
    return float(batch.reward_S[i])


def _describe_dialogue(rollout: Rollout, environment: str, tokenizer: Any) -> dict[str, Any]:
    messages = []
    observed_T = rollout.observed or [False] * len(rollout.response_ids)
    flagged = zip(rollout.response_ids, observed_T, strict=True)
    for observed, group in groupby(flagged, key=lambda pair: pair[1]):
        ids = [token for token, _ in group]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        role = "tool" if observed else "assistant"
        messages.append({"role": role, "content": text, "tokens": len(ids)})
    return {
        "environment": environment,
        "dialogue": messages,
        "calls": rollout.calls,
        "failed_calls": rollout.failed_calls,
        "error": rollout.error,
    }


def dump_step(path: Path, step: Step, reason: str, grad_norms: dict[str, float]) -> None:
    """Everything that explains a step that went wrong, for `torch.load(path)`.

    Tensors, numbers, strings and lists only, so that it loads with `weights_only`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "step": step.k,
        "reason": reason,
        "rollouts": [dataclasses.asdict(rollout) for rollout in step.rollouts],
        "batch": {} if step.batch is None else _tensors(step.batch),
        "credit": {} if step.credit is None else _tensors(step.credit),
        "grad_norms": grad_norms,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(record, temporary)
    os.replace(temporary, path)


def _tensors(signals: TokenBatch | Credit) -> dict[str, Tensor]:
    fields = ((field.name, getattr(signals, field.name)) for field in dataclasses.fields(signals))
    return {name: value.cpu() for name, value in fields if isinstance(value, Tensor)}
