"""The update: from a step's credit to new weights, in one or several optimiser updates.

Axes: N response tokens of the step, flattened over its rollouts.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reopold.config import RunConfig
from reopold.diagnostics import ratio_diagnostics
from reopold.distributed import all_sum
from reopold.logprobs import Head
from reopold.loss import fused_policy_loss
from reopold.objectives import Objective
from reopold.precision import layer_passes
from reopold.rollouts import Credit, Rollout, TokenBatch
from reopold.run_dir import RunDir
from reopold.scoring import (
    Forward,
    MicroBatch,
    Scores,
    micro_batches,
    output_head,
    score,
    token_hidden,
)
from reopold.step_buffer import Metrics, Updates
from reopold.stopping import ShouldStop, check, never
from reopold.vision import Vision


class NonFinite(RuntimeError):
    """A gradient that no later step can mend; carries the gradient norm of every parameter."""

    def __init__(self, message: str, grad_norms: dict[str, float]) -> None:
        super().__init__(message)
        self.grad_norms = grad_norms


@dataclass
class Updater:
    """Changes the student by a step's credit; the gradient depends on no split of the step."""

    run: RunDir
    config: RunConfig
    model: PreTrainedModel
    objective: Objective
    optimizer: torch.optim.Optimizer
    vocab_size: int
    should_stop: ShouldStop = never
    vision: Vision | None = None
    forward: Forward = field(default_factory=list)
    """The scoring pass of this step, where its activations are kept for the update."""

    @property
    def head(self) -> Head:
        return output_head(self.model, self.vocab_size, self.config.objective.logprob_temperature)

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Log-probs and entropies of pi_old."""
        self.forward = []
        return score(
            self.model,
            rollouts,
            head=self.head,
            micro_batch=self.config.train.micro_batch,
            forward=self.forward if self.config.train.keep_activations else None,
            vision=self.vision,
            within=self._within,
            should_stop=self.should_stop,
        )

    def _within(self) -> AbstractContextManager[None]:
        return layer_passes(self.model, self.config.train)

    def __call__(
        self,
        rollouts: Sequence[Rollout],
        batch: TokenBatch,
        credit: Credit,
        k: int,
        updates: Updates | None = None,
    ) -> Metrics:
        """Every update of step k.

        Args:
            updates: those that are made already; it grows with each one, so that the caller can
                keep what a stop leaves.

        Raises:
            NonFinite: a gradient norm is not finite; that update was not made.
            StopRequested: a stop was asked for; the update under way was not made.
        """
        lr = learning_rate(self.config, k)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        made = updates or Updates(torch.full_like(batch.student_logprobs_N, torch.nan))
        logprobs_N = made.logprobs_N
        for update, part in enumerate(self._parts(len(rollouts))):
            if update < made.done:
                continue
            if update and self.config.objective.reward_at == "current":
                credit = self._credit_now(rollouts, batch, k)
            done = self._one_update(rollouts, part, batch, credit, k, logprobs_N)
            made.done += 1
            if done is not None:
                made.losses.append(done[0])
                made.grad_norms.append(done[1])
        kept_N = logprobs_N.isfinite()  # what the updates have seen, each under its own credit
        kept, valid = kept_N.sum(), batch.valid_N.sum().clamp(min=1)
        # Given responses have no pi_old: their ratio is 1 by definition.
        old_N = logprobs_N if self.config.method == "sft" else batch.student_logprobs_N
        nll = -logprobs_N.where(kept_N, 0.0).sum() / kept.clamp(min=1)
        return {
            "train/lr": lr,
            "train/kept_fraction": float(kept / valid),
            "train/loss": fmean(made.losses) if made.losses else 0.0,
            "train/grad_norm": fmean(made.grad_norms) if made.losses else 0.0,
            **({"train/nll": float(nll)} if made.losses else {}),
            **ratio_diagnostics(logprobs_N, old_N, kept_N),
        }

    def _parts(self, sequences: int) -> list[range]:
        """Sequences of each update: whole prompts, in order."""
        copies = 1 if self.config.method == "sft" else self.config.sampling.rollouts_per_prompt
        prompts, updates = sequences // copies, self.config.train.updates_per_step
        ends = [prompts * u // updates * copies for u in range(updates + 1)]
        return [range(a, b) for a, b in itertools.pairwise(ends)]

    def _credit_now(self, rollouts: Sequence[Rollout], batch: TokenBatch, k: int) -> Credit:
        """The objective's verdict with R under the policy as it is now; entropies stay pi_old's."""
        now = score(
            self.model,
            rollouts,
            head=self.head,
            micro_batch=self.config.train.micro_batch,
            vision=self.vision,
            within=self._within,
            should_stop=self.should_stop,
        )
        return self.objective(dataclasses.replace(batch, current_logprobs_N=now.logprobs_N), k)

    def _one_update(
        self,
        rollouts: Sequence[Rollout],
        part: range,
        batch: TokenBatch,
        credit: Credit,
        k: int,
        logprobs_N: Tensor,
    ) -> tuple[float, float] | None:
        """Loss and gradient norm of one optimiser update; None if no token was kept."""
        mine_N = (batch.sequence_N >= part.start) & (batch.sequence_N < part.stop)
        kept = all_sum((credit.keep_N & mine_N).sum())
        if not bool(kept):  # Adam's momentum would move the weights even on a zero gradient
            self.run.event(
                "no_tokens_kept", k, "the mask kept no token: nothing was changed in this update"
            )
            return None
        if self.objective.sequence_mean:
            counted = [not rollout.error for rollout in rollouts]
            counts = [sum(counted[part.start : part.stop]), sum(counted)]
            mine, every = all_sum(torch.tensor(counts, device=self.model.device))
            kept = all_sum(credit.keep_N.sum()) * (mine / every)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward(rollouts, part, batch, credit, kept, logprobs_N)
        norm = float(
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.grad_clip)
        )
        if not math.isfinite(norm):
            raise NonFinite(
                f"the gradient norm of step {k} is {norm}; no weights were changed",
                {
                    name: float(p.grad.norm())
                    for name, p in self.model.named_parameters()
                    if p.grad is not None
                },
            )
        self.optimizer.step()
        return loss, norm

    def backward(
        self,
        rollouts: Sequence[Rollout],
        part: range,
        batch: TokenBatch,
        credit: Credit,
        normaliser: Tensor,
        logprobs_N: Tensor,
    ) -> float:
        """Add up the gradient of some sequences, micro-batch by micro-batch; returns their loss.

        Writes the log-probs of the kept tokens into `logprobs_N`.
        """
        first = sum(len(r.response_ids) for r in rollouts[: part.start])
        chosen = rollouts[part.start : part.stop]
        head, total = self.head, 0.0
        for micro, hidden_ND in self._hidden(chosen):
            check(self.should_stop)
            index_N = micro.index_N + first
            old_N = None if self.config.method == "sft" else batch.student_logprobs_N[index_N]
            loss, logprobs_N[index_N], _ = fused_policy_loss(
                hidden_ND,
                head.weight_VD,
                micro.targets_N,
                old_N,
                credit.at(index_N),
                normaliser=normaliser,
                ratio_clip=self.objective.ratio_clip,
                **head.settings(),
            )
            if loss.requires_grad:
                loss.backward()
            total += float(loss.detach())
        return total

    def _hidden(self, rollouts: Sequence[Rollout]) -> Iterator[tuple[MicroBatch, Tensor]]:
        """Micro-batches and their hidden states, kept ones or new; each graph is used once."""
        if self.forward:
            while self.forward:
                yield self.forward.pop(0)
            return
        size, device = self.config.train.micro_batch, self.model.device
        for micro in micro_batches(rollouts, size, device, self.vision):
            with self._within():
                hidden_ND = token_hidden(self.model, micro)
            yield micro, hidden_ND


def learning_rate(config: RunConfig, k: int) -> float:
    """Rate of step k (from 0): linear warm-up, then constant or a cosine down to 0."""
    optimizer, steps = config.optimizer, config.train.steps
    if k < optimizer.warmup_steps:
        return optimizer.lr * (k + 1) / optimizer.warmup_steps
    if optimizer.decay == "constant":
        return optimizer.lr
    progress = (k - optimizer.warmup_steps) / max(1, steps - optimizer.warmup_steps)
    return optimizer.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
