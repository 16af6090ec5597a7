"""One trainer for every method: sample, score, assign credit, update.

Axes: N response tokens of the step, flattened over its rollouts; S sequences.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reopold.checkpoint import load_state, save_checkpoint
from reopold.config import DISTILLATION_METHODS, RunConfig
from reopold.data.answers import answer_reward
from reopold.data.prompts import Prompt, batch_indices, load_prompts
from reopold.data.tokenizers import load_tokenizer, render
from reopold.engines.hf import HFEngine, load_model
from reopold.loss import policy_loss
from reopold.objectives import Objective, build
from reopold.rollouts import Credit, Rollout, SamplingParams, TokenBatch
from reopold.run_dir import RunDir, append_line
from reopold.scoring import micro_batches, score, score_micro_batch
from reopold.teachers.local import LocalTeacher

Metrics = dict[str, float]


class TrainingFailure(RuntimeError):
    """A step produced something no later step can mend (a non-finite gradient, say)."""


@dataclass
class Step:
    """What one optimiser step has seen, kept for the log and for the rollouts folder."""

    prompts: list[Prompt]
    rollouts: list[Rollout]
    batch: TokenBatch
    credit: Credit


class Trainer:
    """Trains the student of a run directory; all state that matters is in its checkpoints."""

    def __init__(self, run: RunDir, config: RunConfig, device: str) -> None:
        self.run, self.config, self.device = run, config, device
        self.steps_done = self.samples = self.tokens = 0
        self.tokenizer = load_tokenizer(config.model.student)
        self.prompts = load_prompts(config.data.train, completions=config.method == "sft")
        self.objective = build_objective(config)
        newest = run.complete_checkpoints()[-1:]
        folder = str(run.checkpoint(newest[0])) if newest else config.model.student
        self.model = load_model(folder, dtype="float32", device=device)
        self.engine = HFEngine(self.model, self.tokenizer)
        self.teacher = self._load_teacher()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.optimizer.lr,
            betas=(config.optimizer.beta1, config.optimizer.beta2),
            weight_decay=config.optimizer.weight_decay,
        )
        if newest:
            self._restore(newest[0])

    def train(self, until: int, should_stop: Callable[[], bool]) -> None:
        """Train up to `until` completed steps, or to the first step after a stop is asked for."""
        scheduled = set(self.config.checkpoint_steps())
        while self.steps_done < until:
            phase = self.config.phase(self.steps_done)
            if self.steps_done == 0 or phase != self.config.phase(self.steps_done - 1):
                self.run.event("phase", self.steps_done, f"{phase} begins")
            step = self._one_step()
            stopping = should_stop()
            if self.steps_done in scheduled or self.steps_done == until or stopping:
                self._checkpoint(step)
            if stopping:
                return

    def _one_step(self) -> Step:
        k, start = self.steps_done, time.perf_counter()
        prompts = self._next_prompts(k)
        rollouts = self._responses(prompts, k)
        sampled = time.perf_counter()
        batch, gap = self._signals(prompts, rollouts)
        credit = self.objective(batch, k)
        scored = time.perf_counter()
        update = self._update(rollouts, batch, credit, k)
        end = time.perf_counter()
        self.steps_done += 1
        self.engine.weight_version = self.steps_done
        self.samples += len(rollouts)
        tokens = len(batch.valid_N)
        self.tokens += tokens
        metrics = {
            **update,
            **credit.metrics,
            **gap,
            **self._rollout_metrics(rollouts, batch),
            "perf/seconds_sample": sampled - start,
            "perf/seconds_score": scored - sampled,
            "perf/seconds_update": end - scored,
            "perf/seconds_total": end - start,
            "perf/tokens_per_second": tokens / (end - start),
        }
        position = {"step": k, "phase": self.config.phase(k), "time": time.time()}
        totals = {"samples": self.samples, "tokens": self.tokens}
        append_line(self.run.metrics_file, {**position, **totals, **metrics})
        return Step(prompts, rollouts, batch, credit)

    def _next_prompts(self, k: int) -> list[Prompt]:
        size = self.config.sampling.prompts_per_step
        return [
            self.prompts[i] for i in batch_indices(len(self.prompts), size, k, self.config.seed)
        ]

    def _responses(self, prompts: Sequence[Prompt], k: int) -> list[Rollout]:
        """G samples of every prompt; for sft the given completions."""
        rendered = [render(self.tokenizer, prompt.messages) for prompt in prompts]
        if self.config.method == "sft":
            return [
                self._given(ids, prompt.completion)
                for ids, prompt in zip(rendered, prompts, strict=True)
            ]
        sampling = self.config.sampling
        requests = [ids for ids in rendered for _ in range(sampling.rollouts_per_prompt)]
        seeds = np.random.SeedSequence([self.config.seed, k]).generate_state(
            len(requests), np.uint64
        )
        params = SamplingParams(sampling.max_new_tokens, sampling.temperature)
        return self.engine.generate(requests, params, seeds=seeds.tolist())

    def _given(self, prompt_ids: list[int], completion: str) -> Rollout:
        text_ids = self.tokenizer.encode(completion, add_special_tokens=False)
        ids = [*text_ids, self.tokenizer.eos_token_id]
        return Rollout(prompt_ids, ids, [], "stop")

    def _signals(
        self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]
    ) -> tuple[TokenBatch, Metrics]:
        """Scores under pi_old and the teacher, and the outcome of each sequence."""
        lengths = torch.tensor([len(r.response_ids) for r in rollouts], device=self.device)
        valid_N = torch.ones(int(lengths.sum()), dtype=torch.bool, device=self.device)
        sequence_N = torch.arange(len(rollouts), device=self.device).repeat_interleave(lengths)
        if self.config.method == "sft":  # given responses: no policy sampled them
            blank_N = torch.zeros_like(valid_N, dtype=torch.float32)
            return TokenBatch(blank_N, None, blank_N, valid_N, sequence_N), {}
        student_N, entropy_N = score(
            self.model,
            rollouts,
            vocab_size=len(self.tokenizer),
            micro_batch=self.config.train.micro_batch,
        )
        sampler_N = torch.tensor([x for r in rollouts for x in r.logprobs], device=self.device)
        group_S = torch.arange(len(prompts), device=self.device).repeat_interleave(
            self.config.sampling.rollouts_per_prompt
        )
        batch = TokenBatch(
            student_logprobs_N=student_N,
            teacher_logprobs_N=self.teacher.score(rollouts) if self.teacher else None,
            entropy_N=entropy_N,
            valid_N=valid_N,
            sequence_N=sequence_N,
            reward_S=self._outcomes(prompts, rollouts),
            group_S=group_S,
        )
        return batch, {"rollout/sampler_gap": float((student_N - sampler_N).abs().mean())}

    def _outcomes(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> Tensor | None:
        if self.config.data.reward == "none":
            return None
        copies = self.config.sampling.rollouts_per_prompt
        answers = [prompt.answer for prompt in prompts for _ in range(copies)]
        texts = self.tokenizer.batch_decode(
            [r.response_ids for r in rollouts], skip_special_tokens=True
        )
        rewards = [answer_reward(text, answer) for text, answer in zip(texts, answers, strict=True)]
        return torch.tensor(rewards, device=self.device)

    def _update(
        self, rollouts: Sequence[Rollout], batch: TokenBatch, credit: Credit, k: int
    ) -> Metrics:
        """One optimiser step; the gradient does not depend on `micro_batch`."""
        lr = learning_rate(self.config, k)
        kept = credit.keep_N.sum()
        metrics = {
            "train/lr": lr,
            "train/kept_fraction": float(kept / batch.valid_N.sum().clamp(min=1)),
        }
        if not bool(kept):  # Adam's momentum would move the weights even on a zero gradient
            self.run.event(
                "no_tokens_kept", k, "the mask kept no token: nothing was changed in this step"
            )
            return {**metrics, "train/loss": 0.0, "train/grad_norm": 0.0}
        self.optimizer.zero_grad(set_to_none=True)
        totals = self._backward(rollouts, batch, credit, kept)
        norm = float(
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.grad_clip)
        )
        if not math.isfinite(norm):
            raise TrainingFailure(
                f"the gradient norm of step {k} is {norm}; no weights were changed"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return {**metrics, **totals, "train/grad_norm": norm}

    def _backward(
        self, rollouts: Sequence[Rollout], batch: TokenBatch, credit: Credit, kept: Tensor
    ) -> Metrics:
        loss_total, nll_total, ratio_max = 0.0, 0.0, 0.0
        for part in micro_batches(rollouts, self.config.train.micro_batch, self.device):
            logprobs, _ = score_micro_batch(self.model, part, len(self.tokenizer))
            given = self.config.method == "sft"  # pi_old does not exist: the ratio is 1
            old = logprobs.detach() if given else batch.student_logprobs_N[part.index_N]
            mine = Credit(credit.advantages_N[part.index_N], credit.keep_N[part.index_N])
            loss, extra = policy_loss(
                logprobs, old, mine, ratio_clip=self.objective.ratio_clip, normaliser=kept
            )
            loss.backward()
            loss_total += float(loss.detach())
            nll_total -= float(logprobs.detach().where(mine.keep_N, 0.0).sum() / kept)
            ratio_max = max(ratio_max, float(extra["ratio_max"]))
        return {"train/loss": loss_total, "train/nll": nll_total, "train/ratio_max": ratio_max}

    def _rollout_metrics(self, rollouts: Sequence[Rollout], batch: TokenBatch) -> Metrics:
        metrics = {"rollout/length": len(batch.valid_N) / len(rollouts)}
        if self.config.method != "sft":
            truncated = sum(r.finish_reason == "length" for r in rollouts)
            metrics["rollout/truncated_fraction"] = truncated / len(rollouts)
            metrics["rollout/entropy"] = float(batch.entropy_N.mean())
        if batch.reward_S is not None:
            metrics["rollout/reward"] = float(batch.reward_S.mean())
        return metrics

    def _load_teacher(self) -> LocalTeacher | None:
        if self.config.method not in DISTILLATION_METHODS:
            return None
        model = load_model(
            self.config.model.teacher, dtype=self.config.model.dtype, device=self.device
        )
        return LocalTeacher(
            model.requires_grad_(False), len(self.tokenizer), self.config.train.micro_batch
        )

    def _checkpoint(self, step: Step) -> None:
        k = self.steps_done
        self._keep_rollouts(step)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "steps_done": k,
            "samples": self.samples,
            "tokens": self.tokens,
            "phase": self.config.phase(k - 1),
        }
        save_checkpoint(
            self.run.checkpoint(k), model=self.model, tokenizer=self.tokenizer, state=state, step=k
        )
        for other in set(self.run.complete_checkpoints()) - {k, *self.config.checkpoint_steps()}:
            # Saved by a stop in mid-stage, now passed: the run ends with the files of any other.
            shutil.rmtree(self.run.checkpoint(other))
            self._rollouts_file(other).unlink(missing_ok=True)
        self.run.event("checkpoint", k, f"checkpoint after {k} steps")
        self.run.update_manifest(step=k)

    def _restore(self, step: int) -> None:
        state = load_state(self.run.checkpoint(step))
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps_done, self.samples, self.tokens = (
            state["steps_done"],
            state["samples"],
            state["tokens"],
        )
        self.engine.weight_version = self.steps_done

    def _keep_rollouts(self, step: Step) -> None:
        file = self._rollouts_file(self.steps_done)
        file.parent.mkdir(exist_ok=True)
        kept = range(min(self.config.train.keep_rollouts, len(step.rollouts)))
        lines = [json.dumps(describe_rollout(step, i, self.tokenizer)) + "\n" for i in kept]
        file.write_text("".join(lines), encoding="utf-8")

    def _rollouts_file(self, step: int) -> Path:
        return self.run.path / "rollouts" / f"step-{step:06d}.jsonl"


def build_objective(config: RunConfig) -> Objective:
    """The objective of a recipe: a method with the settings that are its own."""
    chosen = config.objective
    settings: dict[str, dict[str, Any]] = {
        "reopold": {
            "switch_step": config.switch_step,
            "lam": chosen.lam,
            "floor": chosen.floor,
            "beta": chosen.beta,
        },
        "grpo": {"ratio_clip": chosen.ratio_clip},
    }
    return build(config.method, **settings.get(config.method, {}))


def learning_rate(config: RunConfig, k: int) -> float:
    """Rate of step k (from 0): linear warm-up, then constant or a cosine down to 0."""
    optimizer, steps = config.optimizer, config.train.steps
    if k < optimizer.warmup_steps:
        return optimizer.lr * (k + 1) / optimizer.warmup_steps
    if optimizer.decay == "constant":
        return optimizer.lr
    progress = (k - optimizer.warmup_steps) / max(1, steps - optimizer.warmup_steps)
    return optimizer.lr * 0.5 * (1.0 + math.cos(math.pi * progress))


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
