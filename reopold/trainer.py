"""One trainer for every method: sample, score, assign credit, update.

Axes: N response tokens of the step, flattened over its rollouts; S sequences.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reopold.answers.judge import JUDGES
from reopold.answers.thinking import opened_thought
from reopold.checkpoint import (
    Snapshot,
    copied,
    load_state,
    optimizer_state,
    restore_optimizer,
    restore_rng,
    rng_state,
    write_checkpoint,
)
from reopold.config import DISTILLATION_METHODS, ConfigError, RunConfig
from reopold.costs import Costs, Meter, Scorer, local_scorer, teacher_scorers
from reopold.data.prompts import Prompt, load_mix
from reopold.data.tokenizers import load_tokenizer
from reopold.diagnostics import reward_diagnostics
from reopold.dialogue_styles import answer_text
from reopold.engines.build import build_engine
from reopold.engines.handover import hand_over
from reopold.engines.hf import HFEngine, load_model
from reopold.health import Alarm, Health
from reopold.objectives import OBJECTIVES, Objective, build
from reopold.precision import prepare
from reopold.retention import prune
from reopold.rewards import MissingScore
from reopold.rollout_metrics import rollout_metrics
from reopold.rollouts import Rollout, TokenBatch
from reopold.run_dir import RunDir, append_line, write_atomic
from reopold.sampler_gap import gap_metrics
from reopold.sampling import Sampler
from reopold.saving import Saver
from reopold.scoring import Scores
from reopold.step_buffer import Metrics, Step, Updates, pack, same_credit, unpack
from reopold.step_records import describe_rollout, dump_step
from reopold.stopping import ShouldStop, StopRequested, never
from reopold.teachers.base import Teacher
from reopold.teachers.build import build_teacher, check_sight, load_local
from reopold.teachers.local import LocalTeacher
from reopold.update import NonFinite, Updater
from reopold.vision import Vision


class TrainingFailure(RuntimeError):
    """A step produced something no later step can mend (a non-finite gradient, say)."""


class SamplerGap(RuntimeError):
    """The engine samples from another distribution than the trainer scores."""


class Trainer:
    """Trains the student of a run directory; all state that matters is in its checkpoints.

    Args:
        point: checkpoint to go on from; None starts from the student. The run's logs have to be
            cut back to it already.
    """

    def __init__(
        self,
        run: RunDir,
        config: RunConfig,
        device: str,
        should_stop: ShouldStop = never,
        point: Path | None = None,
    ) -> None:
        self.should_stop = should_stop
        self.run, self.config, self.device = run, config, device
        self.steps_done = 0
        self.blocked = 0.0
        self.step: Step | None = None
        self.kept: dict[str, Any] = {}
        self.alarm: Alarm | None = None
        self.tokenizer = load_tokenizer(config.model.student)
        # A fast tokenizer is not to be read by the checkpoint's writer while it is in use here.
        self.written_tokenizer = copy.deepcopy(self.tokenizer)
        self.prompts = load_mix(
            config.data, config.family, config.seed, completions=config.method == "sft"
        )
        check_sight(config, self.prompts.prompts)
        self.objective = build_objective(config)
        folder = str(point) if point else config.model.student
        self.model = load_model(folder, dtype="float32", device=device)
        prepare(self.model, config.train, config.model.student)
        vision = self._vision()
        self.optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=config.optimizer.lr,
            betas=(config.optimizer.beta1, config.optimizer.beta2),
            weight_decay=config.optimizer.weight_decay,
        )
        self.updater = Updater(
            run,
            config,
            self.model,
            self.objective,
            self.optimizer,
            len(self.tokenizer),
            should_stop,
            vision,
        )
        own = Scorer(sum(p.numel() for p in self.model.parameters()), vision)
        self.meter = Meter(config, own, {})
        if point:
            self._restore(point)
        self.health = Health(config, run.metrics())
        self.saver = Saver()
        self._start_models()

    def _vision(self) -> Vision | None:
        """The student's image processor; raises ConfigError where it cannot take the prompts."""
        model = self.config.model
        vision = Vision.of(self.model, model.student)
        if vision is not None:
            vision.check(self.tokenizer, self.prompts.prompts)
            if model.freeze_vision:
                vision.freeze()
        elif model.freeze_vision:
            raise ConfigError(f"model.freeze_vision: {model.student} has no vision tower")
        return vision

    def _start_models(self) -> None:
        """The engine, the teacher and the reference, each wherever the recipe puts it."""
        config, needs, folder = self.config, self.objective.needs, self.run.path / "engine"
        self.teacher: Teacher | None = None
        self.reference: LocalTeacher | None = None
        self.engine = build_engine(
            config,
            self.model,
            self.tokenizer,
            folder,
            version=self.steps_done,
            vision=self.updater.vision,
            should_stop=self.should_stop,
        )
        try:
            if needs.teacher:
                self.teacher = build_teacher(
                    config,
                    self.tokenizer,
                    needs,
                    folder,
                    prompts=self.prompts.prompts,
                    device=self.device,
                    should_stop=self.should_stop,
                )
            if needs.reference:
                path = config.model.reference or config.model.student
                self.reference = load_local(
                    config, path, self.tokenizer, self.device, self.should_stop
                )
            self.sampler = Sampler(
                config,
                self.prompts,
                self.tokenizer,
                self.engine,
                needs,
                self.teacher,
                lambda prompts, rollouts: self._outcomes(prompts, rollouts),
                self.should_stop,
                self.meter.student.length,
            )
            self.meter.teachers = teacher_scorers(config, self.teacher)
            self.meter.reference = local_scorer(self.reference) if self.reference else None
            self._hand_over()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the engine and the teacher, and whatever was started for them."""
        self.saver.close()
        if hasattr(self, "sampler") and self.sampler.ahead is not None:
            self.sampler.ahead.close()
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
        head, vision = self.updater.head, self.updater.vision
        gap = hand_over(self.engine, self.model, head, self.steps_done, dtype, vision)
        return {
            "rollout/probe_gap": gap,
            "perf/seconds_sync": time.perf_counter() - started,
        }

    def train(self, until: int) -> None:
        """Train up to `until` completed steps, to a stop that is asked for, or to an alarm that
        ends the run (:attr:`alarm`). When it returns, what it leaves is on disk.

        Raises:
            TrainingFailure: a step cannot be made. SaveFailed: a checkpoint cannot be written.
        """
        scheduled, every = set(self.config.checkpoint_steps()), self.config.train.save_every
        while self.steps_done < until and self.alarm is None and not self.should_stop():
            self._announce_phase()
            self.saver.look()
            try:
                step = self._one_step()
            except StopRequested:
                break
            k = self.steps_done
            if self.alarm is not None and not self._note(self.alarm):
                break
            if k in scheduled or k == until or (every and k % every == 0):
                self._checkpoint(step)
        if self.alarm is None or self.alarm.policy != "rollback":
            self._save_the_rest()
        self.saver.wait()

    def _note(self, alarm: Alarm) -> bool:
        """Write down what an alarm asks for, and whether its step is to be saved.

        Before the step is saved: a trainer that is killed in between meets the alarm once more, or
        finds the word of it, but never goes on as if it had not been. A rollback saves nothing.
        """
        self.saver.wait()
        if alarm.policy == "stop":
            self.run.update_manifest(ended_by=alarm.name, message=alarm.sentence)
        elif alarm.policy == "pause":
            self.run.update_manifest(status="paused", message=alarm.sentence)
        return alarm.policy != "rollback"

    def _announce_phase(self) -> None:
        k, phase = self.steps_done, self.config.phase(self.steps_done)
        if k == 0 or phase != self.config.phase(k - 1):
            self.run.event("phase", k, f"{phase} begins")

    def _one_step(self) -> Step:
        """Raises StopRequested: :attr:`step` holds what is there of the step by then."""
        if self.step is None:
            started = time.perf_counter()
            drawn = self.sampler.draw(self.steps_done)
            _refuse_broken(drawn[1])
            self.step = Step(self.steps_done, *drawn)
            self.step.seconds["sample"] = time.perf_counter() - started
        step, k = self.step, self.steps_done
        self.engine.sleep()
        with _timed(step, "score"):
            if step.batch is None:
                step.batch, step.gap = self.signals(step.prompts, step.rollouts)
        with _timed(step, "update"):
            update = self._learn(step)
            self.steps_done, self.step = k + 1, None
            synced = self._hand_over()
        self.meter.count(step.rollouts, step.drawn)
        self._log(step, {**update, **step.gap, **synced})
        return step

    def _log(self, step: Step, metrics: Metrics) -> None:
        """The step's line, and what is unhealthy about it."""
        total, blocked = sum(step.seconds.values()), self.blocked
        self.blocked = 0.0
        line = {
            "step": step.k,
            "phase": self.config.phase(step.k),
            "time": time.time(),
            **self.meter.total.line(),
            **metrics,
            **rollout_metrics(
                step,
                given=self.config.method == "sft",
                several_rounds=self.objective.needs.sampling_rounds > 1,
            ),
            **{f"perf/seconds_{part}": seconds for part, seconds in step.seconds.items()},
            "perf/seconds_total": total,
            "perf/seconds_checkpoint": blocked,
            "perf/tokens_per_second": step.drawn.tokens / total,
        }
        append_line(self.run.metrics_file, line)
        for alarm in self.health.observe(line):
            self.run.event(
                "alarm",
                step.k,
                alarm.message,
                alarm=alarm.name,
                policy=alarm.policy,
                value=alarm.value,
                limit=alarm.limit,
            )
            self.alarm = graver(self.alarm, alarm)

    def _watch_gap(self, gap: float) -> None:
        """Raises SamplerGap above the second threshold; above the first it is an alarm."""
        limit = self.config.engine.gap_stop
        if not gap <= limit:
            raise SamplerGap(
                f"sampler and trainer differ by {gap:.3g} nats a token on average, more than "
                f"engine.gap_stop ({limit:g}): they are not the same model"
            )

    def _learn(self, step: Step) -> Metrics:
        """Credit and updates of a step; what is not finite ends the run with a dump.

        Raises:
            TrainingFailure: a score or a gradient is not finite; the weights are as before.
        """
        batch, k = step.batch, step.k
        assert batch is not None
        try:
            self._watch_gap(step.gap.get("rollout/sampler_gap", 0.0))
            step.credit = self.objective(batch, k)
            if not same_credit(step.credit, self.kept):
                raise MissingScore("the credit of the step that was under way is another today")
            self.kept = {}
            metrics = self._diagnose(batch, k)
            step.updates = step.updates or Updates(
                torch.full_like(batch.student_logprobs_N, torch.nan)
            )
            update = self.updater(step.rollouts, batch, step.credit, k, step.updates)
            return {**update, **step.credit.metrics, **metrics}
        except (MissingScore, NonFinite, SamplerGap) as error:
            dump = self.run.dump(k)
            dump_step(dump, step, str(error), getattr(error, "grad_norms", {}))
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

    def _teacher_scores(self, rollouts: Sequence[Rollout]) -> Scores | None:
        """The teacher's, many of them made while the last rollouts were still being sampled."""
        if self.teacher is None:
            return None
        ahead, self.sampler.ahead = self.sampler.ahead, None
        if ahead is not None:
            return ahead.collect(rollouts).to(self.device)
        return self.teacher.score(rollouts, self.objective.needs).to(self.device)

    def signals(
        self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]
    ) -> tuple[TokenBatch, Metrics]:
        """Scores under pi_old and the teacher, and the outcome of each sequence."""
        lengths = torch.tensor([len(r.response_ids) for r in rollouts], device=self.device)
        valid_N = torch.tensor(
            [flag for rollout in rollouts for flag in rollout.valid],
            dtype=torch.bool,
            device=self.device,
        )
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
        """What every rollout has earned; NaN where its environment broke."""
        if self.config.data.reward == "none":
            return None
        texts = self.tokenizer.batch_decode(
            [r.last_message_ids for r in rollouts], skip_special_tokens=True
        )
        copies = self.config.sampling.rollouts_per_prompt
        rewards = [math.nan if r.error else r.outcome for r in rollouts]
        undecided = [place for place, reward in enumerate(rewards) if reward is None]
        said, wanted = [], []
        for place in undecided:
            prompt = prompts[place // copies]
            opened = opened_thought(self.tokenizer, rollouts[place].prompt_ids)
            said.append(opened + answer_text(texts[place], prompt.environment))
            wanted.append(prompt.answer)
        judged = JUDGES[self.config.data.reward](said, wanted)
        for place, reward in zip(undecided, judged, strict=True):
            rewards[place] = reward
        return torch.tensor(rewards, device=self.device)

    def _checkpoint(self, step: Step) -> None:
        """Save the run after the steps that are done, behind the training."""
        self._keep_rollouts(step)
        self._save(self.run.checkpoint(self.steps_done), {})

    def _save_the_rest(self) -> None:
        """What a stop leaves: the step that was under way, or whole steps without a checkpoint."""
        self.saver.wait()
        if self.step is not None:
            self._save(self.run.middle(self.steps_done), {"under_way": pack(self.step)})
        elif self.steps_done and self.steps_done not in self.run.complete_checkpoints():
            self._save(self.run.checkpoint(self.steps_done), {})

    def _save(self, folder: Path, more: dict[str, Any]) -> None:
        """Copy everything now; it is written meanwhile, unless the recipe says to wait for it."""
        started, k = time.perf_counter(), self.steps_done
        self.saver.wait()
        state = {
            "steps_done": k,
            "costs": dataclasses.asdict(self.meter.total),
            "next_draw": k * self.objective.needs.sampling_rounds,
            "phase": self.config.phase(min(k, self.config.train.steps - 1)),
            "weight_version": self.engine.weight_version,
            "attempt": self.run.attempt(),
            "optimizer": optimizer_state(self.optimizer),
            "rng": rng_state(),
            **more,
        }
        snapshot = Snapshot(
            folder=folder,
            step=k,
            weights=copied(self.model.state_dict()),
            state=state,
            recipe=self.run.recipe().canonical_json(),
            logs={file: file.stat().st_size for file in self.run.logs() if file.exists()},
        )

        def write() -> None:
            begun = time.perf_counter()
            processor = self.updater.vision.source if self.updater.vision else ""
            write_checkpoint(snapshot, self.model, self.written_tokenizer, processor)
            prune(self.run, self.config)
            took = round(time.perf_counter() - begun, 3)
            if not more:  # what a stop leaves of a step is told by the stop
                self.run.checkpoint_event(k, seconds=took)
            self.run.update_manifest(step=k)

        self.saver.submit(write)
        if not self.config.train.background_saves:
            self.saver.wait()
        self.blocked += time.perf_counter() - started

    def _restore(self, point: Path) -> None:
        state = load_state(point)
        restore_rng(state["rng"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.steps_done, self.meter.total = state["steps_done"], Costs(**state["costs"])
        if "under_way" in state:
            self.kept = state["under_way"]
            self.step = unpack(self.kept, self.device)

    def _keep_rollouts(self, step: Step) -> None:
        file = self.run.rollouts_file(self.steps_done)
        file.parent.mkdir(exist_ok=True)
        kept = range(min(self.config.train.keep_rollouts, len(step.rollouts)))
        lines = [json.dumps(describe_rollout(step, i, self.tokenizer)) + "\n" for i in kept]
        write_atomic(file, "".join(lines))


#: From the least to the most that an alarm may ask for; a warning asks for nothing.
GRAVITY = ("pause", "rollback", "stop")


def graver(one: Alarm | None, other: Alarm) -> Alarm | None:
    """Of two alarms the one whose policy asks for more; None where neither asks for anything."""
    asking = [a for a in (one, other) if a is not None and a.policy in GRAVITY]
    return max(asking, key=lambda alarm: GRAVITY.index(alarm.policy), default=None)


def _refuse_broken(rollouts: Sequence[Rollout]) -> None:
    """Raises TrainingFailure: not one rollout of a step says anything about the model."""
    if all(rollout.error for rollout in rollouts):
        raise TrainingFailure(
            f"the environments of all {len(rollouts)} rollouts of a step broke; the last said: "
            f"{rollouts[-1].error}"
        )


@contextmanager
def _timed(step: Step, part: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        step.seconds[part] = step.seconds.get(part, 0.0) + time.perf_counter() - started


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
