"""The training step: invariance, no silent changes, golden losses."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reopold.config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
)
from reopold.data.tokenizers import render
from reopold.rollouts import Credit, Rollout, SamplingParams
from reopold.run_dir import RunDir
from reopold.trainer import Step, Trainer, TrainingFailure, describe_rollout, learning_rate
from tests.conftest import REPO

Recipe = Callable[..., RunConfig]
MakeRun = Callable[..., RunDir]


def trainer_of(run: RunDir) -> Trainer:
    return Trainer(run, run.config(), "cpu")


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def gradient(trainer: Trainer, micro_batch: int) -> list[torch.Tensor]:
    """Gradient of one step's loss, in float64, cut into micro-batches of a size."""
    trainer.model.double()
    if trainer.teacher:
        trainer.teacher.model.double()
    trainer.config = trainer.config.model_copy(
        update={"train": trainer.config.train.model_copy(update={"micro_batch": micro_batch})}
    )
    prompts = trainer._next_prompts(0)
    rollouts = trainer._responses(prompts, 0)
    batch, _ = trainer._signals(prompts, rollouts)
    # An untrained model is never right: give the samples of a prompt different outcomes.
    outcomes = torch.arange(len(rollouts)).double() % 2
    credit = trainer.objective(dataclasses.replace(batch, reward_S=outcomes), 5)
    trainer.optimizer.zero_grad()
    trainer._backward(rollouts, batch, credit, credit.keep_N.sum())
    return [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("method", ["reopold", "opd", "grpo", "sft"])
def test_gradient_does_not_depend_on_micro_batches(
    method: str, recipe: Recipe, run_dir: MakeRun
) -> None:
    run = run_dir(recipe(method))
    whole = gradient(trainer_of(run), 100)
    for size in (1, 2, 5):
        parts = gradient(trainer_of(run), size)
        for a, b in zip(whole, parts, strict=True):
            assert torch.allclose(a, b, atol=1e-10, rtol=1e-10)
    assert any(bool(g.abs().max() > 1e-6) for g in whole)


def test_a_step_that_keeps_no_token_changes_nothing_and_says_so(
    recipe: Recipe, run_dir: MakeRun
) -> None:
    run = run_dir(recipe("opd", optimizer=OptimizerConfig(weight_decay=0.1)))
    trainer = trainer_of(run)
    trainer._one_step()  # Adam has momentum now
    before = weights(trainer)
    keep_none = trainer.objective

    def none_kept(batch: object, step: int) -> Credit:
        credit = keep_none(batch, step)  # type: ignore[arg-type]
        return Credit(credit.advantages_N, torch.zeros_like(credit.keep_N))

    none_kept.ratio_clip = None  # type: ignore[attr-defined]
    trainer.objective = none_kept  # type: ignore[assignment]
    trainer._one_step()
    for name, value in weights(trainer).items():
        assert torch.equal(value, before[name])
    assert run.events()[-1]["kind"] == "no_tokens_kept"
    assert run.metrics()[-1]["train/kept_fraction"] == 0.0


def test_a_non_finite_gradient_stops_before_the_weights_change(
    recipe: Recipe, run_dir: MakeRun
) -> None:
    trainer = trainer_of(run_dir(recipe("opd")))
    before = weights(trainer)
    objective = trainer.objective

    def infinite(batch: object, step: int) -> Credit:
        credit = objective(batch, step)  # type: ignore[arg-type]
        return Credit(credit.advantages_N * math.inf, credit.keep_N)

    infinite.ratio_clip = None  # type: ignore[attr-defined]
    trainer.objective = infinite  # type: ignore[assignment]
    with pytest.raises(TrainingFailure, match="gradient norm of step 0"):
        trainer._one_step()
    for name, value in weights(trainer).items():
        assert torch.equal(value, before[name])


def test_a_student_taught_by_itself_does_not_move(
    recipe: Recipe, run_dir: MakeRun, suite: Path
) -> None:
    itself = str(suite / "student-init")
    config = recipe("opd", model=ModelConfig(student=itself, teacher=itself))
    trainer = trainer_of(run_dir(config))
    before = weights(trainer)
    trainer._one_step()
    line = trainer.run.metrics()[-1]
    assert abs(line["teacher/reward"]) < 1e-7 and line["train/grad_norm"] < 1e-6
    for name, value in weights(trainer).items():
        # AdamW divides by the gradient's own size: float noise moves at most one learning rate
        assert torch.allclose(value, before[name], atol=2 * trainer.config.optimizer.lr)


def test_metrics_of_a_step(recipe: Recipe, run_dir: MakeRun) -> None:
    trainer = trainer_of(run_dir(recipe("reopold")))
    for _ in range(2):
        trainer._one_step()
    first, second = trainer.run.metrics()
    assert (first["step"], first["samples"], first["phase"]) == (0, 6, "exploration")
    assert (second["step"], second["samples"]) == (1, 12)
    assert second["tokens"] > first["tokens"] > 0
    for name in (
        "train/loss",
        "train/grad_norm",
        "train/kept_fraction",
        "train/clip_fraction",
        "rollout/reward",
        "rollout/entropy",
        "rollout/length",
        "rollout/truncated_fraction",
        "rollout/sampler_gap",
        "teacher/reward",
        "perf/seconds_sample",
        "perf/seconds_score",
        "perf/seconds_update",
    ):
        assert math.isfinite(first[name]), name
    assert first["train/ratio_max"] == pytest.approx(1.0, abs=1e-5)  # one update a step: on policy
    assert first["rollout/sampler_gap"] < 1e-5


def test_outcomes_belong_to_their_rollouts(recipe: Recipe, run_dir: MakeRun) -> None:
    """Two prompts of two samples, hand-made: right, wrong; wrong, right."""
    config = recipe("grpo", sampling=SamplingConfig(prompts_per_step=2, rollouts_per_prompt=2))
    trainer = trainer_of(run_dir(config))
    prompts = trainer._next_prompts(0)
    assert prompts[0].answer != prompts[1].answer
    encode, eos = trainer.tokenizer.encode, trainer.tokenizer.eos_token_id
    rollouts = [
        Rollout(
            render(trainer.tokenizer, prompt.messages),
            [*encode(f"#{answer}"), eos],
            [0.0] * 3,
            "stop",
        )
        for prompt in prompts
        for answer in (prompts[0].answer, prompts[1].answer)
    ]
    batch, _ = trainer._signals(prompts, rollouts)
    assert batch.reward_S is not None and batch.reward_S.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert batch.group_S is not None and batch.group_S.tolist() == [0, 0, 1, 1]
    step = Step(prompts, rollouts, batch, trainer.objective(batch, 0))
    shown = [describe_rollout(step, i, trainer.tokenizer) for i in range(4)]
    assert [s["prompt"] for s in shown] == [p.messages[0]["content"] for p in prompts for _ in "ab"]
    assert [s["reward"] for s in shown] == [1.0, 0.0, 0.0, 1.0]
    assert [s["answer"] for s in shown] == [p.answer for p in prompts for _ in "ab"]
    assert [t["text"] for t in shown[0]["tokens"]] == ["#", prompts[0].answer, "<eos>"]


def test_settings_reach_their_users(recipe: Recipe, run_dir: MakeRun) -> None:
    config = recipe(
        "opd",
        sampling=SamplingConfig(prompts_per_step=8, max_new_tokens=12, temperature=0.01),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.25, beta1=0.8, beta2=0.95),
    )
    trainer = trainer_of(run_dir(config))
    group = trainer.optimizer.param_groups[0]
    assert (group["weight_decay"], group["betas"], group["lr"]) == (0.25, (0.8, 0.95), 1e-3)
    prompts = trainer._next_prompts(0)
    cold = trainer._responses(prompts, 0)
    greedy = trainer.engine.generate(
        [r.prompt_ids for r in cold], SamplingParams(12, 0.0), seeds=range(len(cold))
    )
    same = sum(a.response_ids[0] == b.response_ids[0] for a, b in zip(cold, greedy, strict=True))
    assert same >= 0.8 * len(cold)  # at temperature 1 an untrained model agrees in about 1 of 20


def test_learning_rate_by_hand() -> None:
    def config(**optimizer: object) -> RunConfig:
        return RunConfig(
            name="x",
            method="sft",
            model=ModelConfig(student="./s"),
            data=DataConfig(train="./p"),
            optimizer=OptimizerConfig(lr=1.0, **optimizer),  # type: ignore[arg-type]
            train=TrainConfig(steps=12),
        )

    constant = config(warmup_steps=4)
    assert [learning_rate(constant, k) for k in (0, 1, 3, 4, 11)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    cosine = config(warmup_steps=4, decay="cosine")
    assert [learning_rate(cosine, k) for k in (4, 8)] == pytest.approx([1.0, 0.5])
    assert learning_rate(cosine, 6) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


GOLDEN = REPO / "tests" / "golden" / "losses.json"


@pytest.mark.parametrize("method", ["reopold", "opd", "grpo", "sft"])
def test_golden_losses(method: str, recipe: Recipe, run_dir: MakeRun) -> None:
    """Identical, or explained: a change of these numbers is a change of the method.

    To accept one, say why in CHANGELOG.md and write the new numbers printed by the failure.
    """
    config = recipe(
        method,
        sampling=SamplingConfig(prompts_per_step=8, rollouts_per_prompt=4, max_new_tokens=16),
        optimizer=OptimizerConfig(lr=1e-2),
        # a floor that untrained models reach: -0.2
        objective=ObjectiveConfig(lam=0.45, floor="odds", beta=0.2, switch_fraction=0.5),
    )
    trainer = trainer_of(run_dir(config))
    if method == "grpo":  # an untrained model is never right: reward an even length instead
        trainer._outcomes = (  # type: ignore[method-assign]
            lambda prompts, rollouts: torch.tensor(
                [float(len(r.response_ids) % 2 == 0) for r in rollouts]
            )
        )
    for _ in range(6):
        trainer._one_step()
    keys = ("train/loss", "train/nll", "train/grad_norm", "train/kept_fraction")
    found = [{key: line[key] for key in keys} for line in trainer.run.metrics()]
    print(json.dumps(found, indent=1))
    golden = json.loads(GOLDEN.read_text())[method]
    for step, (ours, theirs) in enumerate(zip(found, golden, strict=True)):
        assert ours == pytest.approx(theirs, rel=2e-4, abs=1e-6), f"step {step}"
