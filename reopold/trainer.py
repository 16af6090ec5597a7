"""One trainer for every method: sample, score, assign credit, update.

Axes: N response tokens of the step, flattened over its rollouts; S sequences.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reopold.checkpoint import load_state, save_checkpoint
from reopold.config import DISTILLATION_METHODS, RunConfig
from reopold.data.answers import answer_reward
from reopold.data.prompts import Prompt, batch_indices, load_prompts
from reopold.data.tokenizers import load_tokenizer, render
from reopold.diagnostics import repetition, reward_diagnostics
from reopold.engines.base import SEED_LIMIT
from reopold.engines.build import build_engine
from reopold.engines.handover import hand_over
from reopold.engines.hf import HFEngine, load_model
from reopold.objectives import OBJECTIVES, Objective, build
from reopold.rewards import MissingScore
from reopold.rollouts import Credit, Rollout, SamplingParams, TokenBatch
from reopold.run_dir import RunDir, append_line
from reopold.sampler_gap import gap_metrics
from reopold.scoring import Scores
from reopold.step_records import Step, describe_rollout, dump_step
from reopold.teachers.build import build_teacher, load_local
from reopold.teachers.routing import ScoringAhead
from reopold.update import Metrics, NonFinite, Updater


class TrainingFailure(RuntimeError):
    """A step produced something no later step can mend (a non-finite gradient, say)."""


class SamplerGap(RuntimeError):
    """The engine samples from another distribution than the trainer scores."""


class Trainer:
    """Trains the student of a run directory; all state that matters is in its checkpoints."""

    def __init__(
        self,
        run: RunDir,
        config: RunConfig,
        device: str,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.should_stop = should_stop
        self.run, self.config, self.device = run, config, device
        self.steps_done = self.samples = self.tokens = 0
        self.tokenizer = load_tokenizer(config.model.student)
        self.prompts = load_prompts(config.data.train, completions=config.method == "sft")
        self.objective = build_objective(config)
        newest = run.complete_checkpoints()[-1:]
        folder = str(run.checkpoint(newest[0])) if newest else config.model.student
        self.model = load_model(folder, dtype="float32", device=device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.optimizer.lr,
            betas=(config.optimizer.beta1, config.optimizer.beta2),
            weight_decay=config.optimizer.weight_decay,
        )
        self.updater = Updater(
            run, config, self.model, self.objective, self.optimizer, len(self.tokenizer)
        )
        if newest:
            self._restore(newest[0])
        self._start_models()

    def _start_models(self) -> None:
        """The engine, the teacher and the reference, each wherever the recipe puts it."""
        config, needs, folder = self.config, self.objective.needs, self.run.path / "engine"
        self.teacher = self.reference = None
        self.ahead: ScoringAhead | None = None
        self.engine = build_engine(
            config,
            self.model,
            self.tokenizer,
            folder,
            version=self.steps_done,
            should_stop=self.should_stop,
        )
        try:
            if needs.teacher:
                self.teacher = build_teacher(
                    config,
                    self.tokenizer,
                    needs,
                    folder,
                    device=self.device,
                    should_stop=self.should_stop,
                )
            if needs.reference:
                path = config.model.reference or config.model.student
                self.reference = load_local(config, path, self.tokenizer, self.device)
            self._hand_over()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the engine and the teacher, and whatever was started for them."""
        if self.ahead is not None:
            self.ahead.close()
        self.engine.close()
        if self.teacher is not None:
            self.teacher.close()

    def _hand_over(self) -> Metrics:
        """The engine takes the weights as they are now; what shares them need not."""
        if isinstance(self.engine, HFEngine) and self.engine.model is self.model:
            self.engine.update_weights(self.model, self.steps_done)
            return {}
        dtype: torch.dtype = getattr(torch, self.config.model.dtype)
        started = time.perf_counter()
        self.engine.wake()
        gap = hand_over(self.engine, self.model, self.updater.head, self.steps_done, dtype)
        return {
            "rollout/probe_gap": gap,
            "perf/seconds_sync": time.perf_counter() - started,
        }

    def train(self, until: int) -> None:
        """Train up to `until` completed steps, or to the first step after a stop is asked for."""
        scheduled = set(self.config.checkpoint_steps())
        while self.steps_done < until:
            phase = self.config.phase(self.steps_done)
            if self.steps_done == 0 or phase != self.config.phase(self.steps_done - 1):
                self.run.event("phase", self.steps_done, f"{phase} begins")
            step = self._one_step()
            stopping = self.should_stop()
            if self.steps_done in scheduled or self.steps_done == until or stopping:
                self._checkpoint(step)
            if stopping:
                return

    def _one_step(self) -> Step:
        k, start = self.steps_done, time.perf_counter()
        prompts, rollouts, drawn = self._sample(k)
        self.engine.sleep()
        sampled = time.perf_counter()
        batch, gap = self._signals(prompts, rollouts)
        scored = time.perf_counter()
        credit, update = self._learn(rollouts, batch, gap, k)
        self.steps_done += 1
        synced = self._hand_over()
        end = time.perf_counter()
        self.samples += len(rollouts)
        tokens = sum(len(rollout.response_ids) for rollout in drawn)
        self.tokens += tokens
        metrics = {
            **update,
            **credit.metrics,
            **gap,
            **synced,
            **self._rollout_metrics(rollouts, drawn, batch),
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

    def _watch_gap(self, gap: float, k: int) -> None:
        """Raises SamplerGap above the second threshold; above the first the step is an event."""
        limits = self.config.engine
        if not gap <= limits.gap_stop:
            raise SamplerGap(
                f"sampler and trainer differ by {gap:.3g} nats a token on average, more than "
                f"engine.gap_stop ({limits.gap_stop:g}): they are not the same model"
            )
        if gap > limits.gap_warn:
            self.run.event(
                "sampler_gap",
                k,
                f"sampler and trainer differ by {gap:.3g} nats a token on average, more than "
                f"engine.gap_warn ({limits.gap_warn:g}); objective.sampler_weights corrects for it",
            )

    def _learn(
        self, rollouts: list[Rollout], batch: TokenBatch, gap: Metrics, k: int
    ) -> tuple[Credit, Metrics]:
        """Credit and update of a step; what is not finite ends the run with a dump.

        Raises:
            TrainingFailure: a score or a gradient is not finite; the weights are as before.
        """
        credit = None
        try:
            self._watch_gap(gap.get("rollout/sampler_gap", 0.0), k)
            credit = self.objective(batch, k)
            metrics = self._diagnose(batch, k)
            return credit, {**metrics, **self.updater(rollouts, batch, credit, k)}
        except (MissingScore, NonFinite, SamplerGap) as error:
            dump = self.run.dump(k)
            dump_step(
                dump,
                step=k,
                reason=str(error),
                rollouts=rollouts,
                batch=batch,
                credit=credit,
                grad_norms=getattr(error, "grad_norms", None),
            )
            raise TrainingFailure(f"{error}; the step is kept in {dump}") from error

    def _diagnose(self, batch: TokenBatch, k: int) -> Metrics:
        """Write the step's reward distribution, and give the number of it that is plotted."""
        if batch.teacher_logprobs_N is None:
            return {}
        rewards_N = batch.teacher_logprobs_N - batch.student_logprobs_N
        found = reward_diagnostics(
            rewards_N, batch.entropy_N, batch.valid_N, floor=self.objective.floor
        )
        append_line(self.run.diagnostics_file, {"step": k, **found})
        return {"teacher/small_reward_fraction": found["small_fraction"]}

    def _sample(self, k: int) -> tuple[list[Prompt], list[Rollout], list[Rollout]]:
        """Prompts and rollouts of step k, and all rollouts that were drawn for it.

        An objective that asks for several rounds gets prompts whose samples differ in outcome
        (DAPO's dynamic sampling); if too few turn up, the rest is filled with others, which its
        mask drops. Round r of step k is a function of (seed, k, r): a resumed run draws the same.
        """
        rounds, size = self.objective.needs.sampling_rounds, self.config.sampling.prompts_per_step
        copies = self.config.sampling.rollouts_per_prompt
        useful: list[tuple[Prompt, list[Rollout]]] = []
        spare: list[tuple[Prompt, list[Rollout]]] = []
        drawn: list[Rollout] = []
        for draw in range(k * rounds, (k + 1) * rounds):
            prompts = self._next_prompts(draw)
            rollouts = self._responses(prompts, draw)
            if rounds == 1:
                return prompts, rollouts, rollouts
            drawn += rollouts
            rewards_S = self._outcomes(prompts, rollouts)
            assert rewards_S is not None  # the config refuses group methods without outcomes
            for i, prompt in enumerate(prompts):
                group = slice(i * copies, (i + 1) * copies)
                mixed = bool(rewards_S[group].max() > rewards_S[group].min())
                (useful if mixed else spare).append((prompt, rollouts[group]))
            if len(useful) >= size:
                break
        chosen = (useful + spare)[:size]
        return [p for p, _ in chosen], [r for _, group in chosen for r in group], drawn

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
        sampling, copies = self.config.sampling, self.config.sampling.rollouts_per_prompt
        stream = np.random.SeedSequence([self.config.seed, k])
        seeds = stream.generate_state(len(prompts), np.uint64)
        params = SamplingParams(
            sampling.max_new_tokens,
            sampling.temperature,
            self.config.objective.logprob_temperature,
        )
        overlap = self.config.teacher.overlap and self.teacher is not None
        if overlap and self.teacher is not None and self.teacher.concurrent:
            self.ahead = ScoringAhead(self.teacher, self.objective.needs)

        def on_finished(place: int, rollout: Rollout) -> None:
            if self.ahead is not None:
                source = prompts[place // copies].source
                self.ahead.add(place, dataclasses.replace(rollout, source=source))

        rollouts = self.engine.generate(
            rendered,
            params,
            seeds=[seed % SEED_LIMIT for seed in seeds.tolist()],
            n=copies,
            on_finished=on_finished,
        )
        return [
            dataclasses.replace(rollout, source=prompts[place // copies].source)
            for place, rollout in enumerate(rollouts)
        ]

    def _teacher_scores(self, rollouts: Sequence[Rollout]) -> Scores | None:
        """The teacher's, many of them made while the last rollouts were still being sampled."""
        if self.teacher is None:
            return None
        ahead, self.ahead = self.ahead, None
        if ahead is not None:
            return ahead.collect(rollouts).to(self.device)
        return self.teacher.score(rollouts, self.objective.needs).to(self.device)

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
            dtype = torch.promote_types(self.model.dtype, torch.float32)
            blank_N = torch.zeros_like(valid_N, dtype=dtype)
            return TokenBatch(blank_N, None, blank_N, valid_N, sequence_N), {}
        own = self.updater.score(rollouts)
        sampler_N = torch.tensor([x for r in rollouts for x in r.logprobs], device=self.device)
        group_S = torch.arange(len(prompts), device=self.device).repeat_interleave(
            self.config.sampling.rollouts_per_prompt
        )
        teacher = self._teacher_scores(rollouts)
        reference = self.reference.score(rollouts) if self.reference else None
        assert own.entropy_N is not None  # our own scores always have it
        batch = TokenBatch(
            student_logprobs_N=own.logprobs_N,
            teacher_logprobs_N=teacher.logprobs_N if teacher else None,
            entropy_N=own.entropy_N,
            valid_N=valid_N,
            sequence_N=sequence_N,
            reward_S=self._outcomes(prompts, rollouts),
            group_S=group_S,
            sampler_logprobs_N=sampler_N,
            reference_logprobs_N=reference.logprobs_N if reference else None,
            teacher_entropy_N=teacher.entropy_N if teacher else None,
            teacher_distribution=teacher.distribution if teacher else None,
        )
        return batch, gap_metrics(own.logprobs_N, sampler_N, valid_N)

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

    def _rollout_metrics(
        self, rollouts: Sequence[Rollout], drawn: Sequence[Rollout], batch: TokenBatch
    ) -> Metrics:
        metrics = {"rollout/length": len(batch.valid_N) / len(rollouts)}
        if self.objective.needs.sampling_rounds > 1:
            metrics["rollout/discarded_fraction"] = 1.0 - len(rollouts) / len(drawn)
        if self.config.method != "sft":
            metrics["rollout/repetition"] = repetition([r.response_ids for r in rollouts])
            truncated = sum(r.finish_reason == "length" for r in rollouts)
            metrics["rollout/truncated_fraction"] = truncated / len(rollouts)
            metrics["rollout/entropy"] = float(batch.entropy_N.mean())
        if batch.reward_S is not None:
            metrics["rollout/reward"] = float(batch.reward_S.mean())
        return metrics

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
    available = {
        **config.objective.model_dump(),
        "switch_step": config.switch_step,
        "max_length": config.sampling.max_new_tokens,
        "seed": config.seed,
    }
    own = inspect.signature(OBJECTIVES[config.method]).parameters
    weight = config.objective.outcome_weight if config.method in DISTILLATION_METHODS else 0.0
    return build(
        config.method,
        outcome_weight=weight,
        sampler_weights="none" if config.method == "sft" else config.objective.sampler_weights,
        sampler_weight_cap=config.objective.sampler_weight_cap,
        **{name: available[name] for name in own},
    )
