"""The training step: invariance, no silent changes, golden losses."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError

from reopold.config import (
    GROUP_METHODS,
    DataConfig,
    Method,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    SamplingConfig,
    SourceTeacher,
    TeacherConfig,
    TrainConfig,
)
from reopold.data.prompts import Prompt
from reopold.data.tokenizers import render
from reopold.rollouts import Credit, Rollout, SamplingParams, TokenBatch
from reopold.run_dir import RunDir, read_lines
from reopold.sampling import Drawn
from reopold.step_buffer import Step
from reopold.step_records import describe_rollout
from reopold.trainer import Trainer, TrainingFailure, build_objective
from reopold.update import learning_rate
from tests.conftest import REPO

Recipe = Callable[..., RunConfig]
MakeRun = Callable[..., RunDir]


def trainer_of(run: RunDir) -> Trainer:
    return Trainer(run, run.config(), "cpu")


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def change_credit(trainer: Trainer, change: Callable[[Credit], Credit]) -> None:
    """Let the trainer's objective end in `change`."""
    inner = trainer.objective

    class Changed:
        ratio_clip, needs, floor = inner.ratio_clip, inner.needs, inner.floor
        sequence_mean = inner.sequence_mean

        def __call__(self, batch: TokenBatch, step: int) -> Credit:
            return change(inner(batch, step))

    trainer.objective = trainer.updater.objective = Changed()


def gradient(trainer: Trainer, micro_batch: int) -> list[torch.Tensor]:
    """Gradient of one step's loss, in float64, cut into micro-batches of a size."""
    trainer.model.double()
    if trainer.teacher:
        trainer.teacher.model.double()
    if trainer.reference:
        trainer.reference.model.double()
    trainer.updater.config = trainer.config.model_copy(
        update={"train": trainer.config.train.model_copy(update={"micro_batch": micro_batch})}
    )
    prompts = trainer.sampler.next_prompts(0)
    rollouts = trainer.sampler.responses(prompts, 0)
    batch, _ = trainer.signals(prompts, rollouts)
    # An untrained model is never right: give the samples of a prompt different outcomes.
    outcomes = torch.arange(len(rollouts)).double() % 2
    credit = trainer.objective(dataclasses.replace(batch, reward_S=outcomes), 5)
    trainer.optimizer.zero_grad()
    logprobs = torch.empty_like(batch.student_logprobs_N)
    trainer.updater.backward(
        rollouts, range(len(rollouts)), batch, credit, credit.keep_N.sum(), logprobs
    )
    return [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("method", get_args(Method))
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
    change_credit(trainer, lambda c: dataclasses.replace(c, keep_N=torch.zeros_like(c.keep_N)))
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
    change_credit(trainer, lambda c: dataclasses.replace(c, advantages_N=c.advantages_N * math.inf))
    with pytest.raises(TrainingFailure, match=r"gradient norm of step 0 .* kept in .*step-000000"):
        trainer._one_step()
    for name, value in weights(trainer).items():
        assert torch.equal(value, before[name])
    dump = torch.load(trainer.run.dump(0), weights_only=True)
    assert dump["step"] == 0 and "gradient norm" in dump["reason"]
    assert len(dump["rollouts"]) == 6 and dump["rollouts"][0]["response_ids"]
    tokens = sum(len(r["response_ids"]) for r in dump["rollouts"])
    assert len(dump["batch"]["teacher_logprobs_N"]) == len(dump["credit"]["keep_N"]) == tokens
    assert any(not math.isfinite(norm) for norm in dump["grad_norms"].values())


def test_a_non_finite_teacher_score_stops_the_step_with_a_dump(
    recipe: Recipe, run_dir: MakeRun
) -> None:
    trainer = trainer_of(run_dir(recipe("reopold")))
    before = weights(trainer)
    assert trainer.teacher is not None
    with torch.no_grad():
        next(trainer.teacher.model.parameters()).fill_(math.nan)
    with pytest.raises(TrainingFailure, match=r"not finite.* kept in "):
        trainer._one_step()
    for name, value in weights(trainer).items():
        assert torch.equal(value, before[name])
    assert trainer.run.metrics() == []
    dump = torch.load(trainer.run.dump(0), weights_only=True)
    assert dump["batch"]["teacher_logprobs_N"].isnan().all() and dump["credit"] == {}


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
        "rollout/repetition",
        "teacher/reward",
        "teacher/small_reward_fraction",
        "train/ratio_mean",
        "train/ratio_std",
        "train/ratio_min",
        "train/kl_old",
        "perf/seconds_sample",
        "perf/seconds_score",
        "perf/seconds_update",
    ):
        assert math.isfinite(first[name]), name
    assert first["train/ratio_max"] == pytest.approx(1.0, abs=1e-5)  # one update a step: on policy
    assert first["rollout/sampler_gap"] < 1e-5
    assert [line["step"] for line in read_lines(trainer.run.diagnostics_file)] == [0, 1]
    tokens = second["tokens"] - first["tokens"]
    assert sum(read_lines(trainer.run.diagnostics_file)[1]["reward_counts"]) == tokens


def test_outcomes_belong_to_their_rollouts(recipe: Recipe, run_dir: MakeRun) -> None:
    """Two prompts of two samples, hand-made: right, wrong; wrong, right."""
    config = recipe("grpo", sampling=SamplingConfig(prompts_per_step=2, rollouts_per_prompt=2))
    trainer = trainer_of(run_dir(config))
    prompts = trainer.sampler.next_prompts(0)
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
    batch, _ = trainer.signals(prompts, rollouts)
    assert batch.reward_S is not None and batch.reward_S.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert batch.group_S is not None and batch.group_S.tolist() == [0, 0, 1, 1]
    step = Step(0, prompts, rollouts, Drawn(4, 0, 12), batch=batch)
    step.credit = trainer.objective(batch, 0)
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
    prompts = trainer.sampler.next_prompts(0)
    cold = trainer.sampler.responses(prompts, 0)
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


def updates(
    recipe: Recipe, run_dir: MakeRun, name: str, method: str = "opd", **objective: object
) -> Trainer:
    """One step of two prompts x 2 samples in two updates, at a rate that moves the policy."""
    config = recipe(
        method,
        sampling=SamplingConfig(prompts_per_step=2, rollouts_per_prompt=2, max_new_tokens=12),
        optimizer=OptimizerConfig(lr=1e-2),
        train=TrainConfig(steps=6, updates_per_step=2),
        objective=ObjectiveConfig(**objective),  # type: ignore[arg-type]
    )
    trainer = trainer_of(run_dir(config, name))
    trainer._one_step()
    return trainer


def test_several_updates_a_step(recipe: Recipe, run_dir: MakeRun) -> None:
    """The second update is off-policy: its ratio leaves 1, and R may be taken anew."""
    old = updates(recipe, run_dir, "old")
    line = old.run.metrics()[-1]
    assert line["train/ratio_max"] > 1.01 and line["train/kl_old"] > 0.0
    steps = {float(s["step"]) for s in old.optimizer.state.values()}
    assert steps == {2.0}
    current = weights(updates(recipe, run_dir, "current", reward_at="current"))
    assert any(not torch.equal(value, current[name]) for name, value in weights(old).items())
    # The mask of the second update is not that of the first: each token counts under its own.
    masked = updates(
        recipe, run_dir, "masked", "reopold", reward_at="current", lam=0.45, floor="odds"
    )
    line = masked.run.metrics()[-1]
    assert 0.0 < line["train/kept_fraction"] < 1.0
    assert all(math.isfinite(value) for key, value in line.items() if key != "phase")


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "dapo", "opd"])
def test_an_update_is_the_step_of_its_own_prompts(
    method: str, recipe: Recipe, run_dir: MakeRun
) -> None:
    """The gradient of the first of two updates is that of a step of these sequences alone, though
    the objective has seen all of them: lengths of the two halves differ, the shares must not."""
    sampling = SamplingConfig(prompts_per_step=2, rollouts_per_prompt=2, max_new_tokens=12)
    train = TrainConfig(steps=6, updates_per_step=2)
    trainer = trainer_of(run_dir(recipe(method, sampling=sampling, train=train)))
    prompts = trainer.sampler.next_prompts(0)
    rollouts = trainer.sampler.responses(prompts, 0)
    short = [
        dataclasses.replace(r, response_ids=r.response_ids[:3], logprobs=r.logprobs[:3])
        for r in rollouts[:2]
    ]
    rollouts = [*short, *rollouts[2:]]
    outcomes = torch.tensor([1.0, 0.0, 1.0, 0.0])
    gradients = []

    def keep_gradient() -> None:
        gradients.append([p.grad.clone() for p in trainer.model.parameters() if p.grad is not None])

    trainer.optimizer.step = keep_gradient  # type: ignore[method-assign, assignment]
    trainer.config.optimizer.__dict__["grad_clip"] = 1e9
    for chosen in (slice(0, 4), slice(0, 2)):
        batch, _ = trainer.signals(prompts[: len(rollouts[chosen]) // 2], rollouts[chosen])
        batch = dataclasses.replace(batch, reward_S=outcomes[chosen])
        trainer.updater(rollouts[chosen], batch, trainer.objective(batch, 0), 0)
        if chosen.stop == 4:  # the second call makes one update of all it is given
            trainer.config.train.__dict__["updates_per_step"] = 1
    first, _, alone = gradients
    for a, b in zip(first, alone, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_reward_under_the_policy_of_now(recipe: Recipe, run_dir: MakeRun) -> None:
    trainer = trainer_of(run_dir(recipe("opd", objective=ObjectiveConfig(reward_at="current"))))
    prompts = trainer.sampler.next_prompts(0)
    rollouts = trainer.sampler.responses(prompts, 0)
    batch, _ = trainer.signals(prompts, rollouts)
    with torch.no_grad():
        next(trainer.model.parameters()).mul_(1.1)
    now, _ = trainer.signals(prompts, rollouts)
    credit = trainer.updater._credit_now(rollouts, batch, 0)
    assert batch.teacher_logprobs_N is not None
    expected = batch.teacher_logprobs_N - now.student_logprobs_N
    assert torch.allclose(credit.advantages_N, expected, atol=1e-6)
    assert not torch.allclose(credit.advantages_N, trainer.objective(batch, 0).advantages_N)


def test_the_temperature_of_the_log_probs_reaches_everyone(
    recipe: Recipe, run_dir: MakeRun
) -> None:
    """Student, teacher, sampler and update at 0.7; the ratio stays 1 and the gap 0."""
    trainer = trainer_of(run_dir(recipe("opd", objective=ObjectiveConfig(logprob_temperature=0.7))))
    step = trainer._one_step()
    line = trainer.run.metrics()[-1]
    assert line["rollout/sampler_gap"] < 1e-5
    assert line["train/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    plain = trainer_of(run_dir(recipe("opd"), "plain"))
    batch, _ = plain.signals(step.prompts, step.rollouts)
    assert batch.teacher_logprobs_N is not None and step.batch.teacher_logprobs_N is not None
    gap = (batch.teacher_logprobs_N - step.batch.teacher_logprobs_N).abs().mean()
    assert gap > 1e-3


def test_dynamic_sampling_draws_until_outcomes_are_mixed(recipe: Recipe, run_dir: MakeRun) -> None:
    """Outcomes by hand: of each draw only the first prompt is mixed, so 2 need two draws."""
    sampling = SamplingConfig(prompts_per_step=2, rollouts_per_prompt=2, max_new_tokens=12)
    trainer = trainer_of(run_dir(recipe("dapo", sampling=sampling)))
    mixed: list[str] = []

    def outcomes(prompts: list[Prompt], rollouts: object) -> torch.Tensor:
        if len(mixed) < 2:
            mixed.append(prompts[0].id)
        return torch.tensor(
            [x for p in prompts for x in ([1.0, 0.0] if p.id in mixed else [0.0] * 2)]
        )

    trainer._outcomes = outcomes  # type: ignore[assignment, method-assign]
    step = trainer._one_step()
    assert [p.id for p in step.prompts] == mixed
    line = trainer.run.metrics()[-1]
    assert line["rollout/discarded_fraction"] == 0.5 and line["samples"] == 4
    assert line["rollout/informative_fraction"] == 1.0
    trainer._one_step()  # nothing is mixed: three draws, the step is filled and masked out
    line = trainer.run.metrics()[-1]
    assert line["rollout/discarded_fraction"] == pytest.approx(2 / 3)
    assert line["train/kept_fraction"] == 0.0
    assert trainer.run.events()[-1]["kind"] == "no_tokens_kept"


def test_the_reference_of_exopd(recipe: Recipe, run_dir: MakeRun, suite: Path) -> None:
    """By default the student as it starts: then R is scaled; else the model that is named."""
    trainer = trainer_of(run_dir(recipe("exopd")))
    step = trainer._one_step()
    batch = step.batch
    assert batch.reference_logprobs_N is not None and batch.teacher_logprobs_N is not None
    assert torch.allclose(batch.reference_logprobs_N, batch.student_logprobs_N, atol=1e-6)
    plain = batch.teacher_logprobs_N - batch.student_logprobs_N
    assert torch.allclose(step.credit.advantages_N, 1.25 * plain, atol=1e-5)
    teacher = str(suite / "teacher-init")
    model = ModelConfig(student=str(suite / "student-init"), teacher=teacher, reference=teacher)
    other = trainer_of(run_dir(recipe("exopd", model=model), "other"))._one_step()
    assert other.batch.reference_logprobs_N is not None
    assert torch.equal(other.batch.reference_logprobs_N, other.batch.teacher_logprobs_N)


def test_every_setting_of_a_recipe_reaches_its_objective() -> None:
    def objective(method: str, **settings: object) -> object:
        config = RunConfig(
            name="x",
            method=method,  # type: ignore[arg-type]
            seed=9,
            model=ModelConfig(student="./s", teacher="./t"),
            data=DataConfig(train="./p"),
            objective=ObjectiveConfig(**settings),  # type: ignore[arg-type]
            train=TrainConfig(steps=10),
        )
        return build_objective(config)

    found = vars(objective("reopold", lam=0.1, floor="odds", beta=0.4, clip=False, mask="random"))
    assert found["floor"] == pytest.approx(math.log(0.1 / 0.9))
    assert (found["beta"], found["clip"], found["mask"]) == (0.4, False, "random")
    assert (found["seed"], found["switch_step"]) == (9, 5)
    assert vars(objective("reopold", phases="one"))["switch_step"] == 0
    assert vars(objective("reopold", switch_step=7))["switch_step"] == 7
    assert vars(objective("iw_opd", gamma=0.25))["gamma"] == 0.25
    dapo = vars(objective("dapo", ratio_clip=0.1, ratio_clip_high=0.5, overlong_buffer=6))
    assert (dapo["ratio_clip"], dapo["overlong_buffer"], dapo["max_length"]) == ((0.1, 0.5), 6, 48)
    mixed = objective("opd", outcome_weight=0.5)
    assert vars(mixed)["weight"] == 0.5


GOLDEN = REPO / "tests" / "golden" / "losses.json"


@pytest.mark.parametrize("method", get_args(Method))
def test_golden_losses(method: str, recipe: Recipe, run_dir: MakeRun) -> None:
    """Identical, or explained: a change of these numbers is a change of the method.

    To accept one, say why in CHANGELOG.md and write the new numbers printed by the failure.
    """
    config = recipe(
        method,
        sampling=SamplingConfig(prompts_per_step=8, rollouts_per_prompt=4, max_new_tokens=16),
        optimizer=OptimizerConfig(lr=1e-2),
        # a floor that untrained models reach: -0.2
        objective=ObjectiveConfig(
            lam=0.45, floor="odds", beta=0.2, switch_fraction=0.5, top_k=3, entropy_threshold=2.9
        ),
    )
    trainer = trainer_of(run_dir(config))
    if method in GROUP_METHODS:  # an untrained model is never right: reward an even length instead
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


def shift_sampler(trainer: Trainer, nats: float) -> None:
    """The engine as one that computes every log-prob `nats` too low."""
    generate = trainer.engine.generate

    def shifted(*arguments: Any, **options: Any) -> list[Rollout]:
        return [
            dataclasses.replace(r, logprobs=[x - nats for x in r.logprobs])
            for r in generate(*arguments, **options)
        ]

    trainer.engine.generate = shifted  # type: ignore[method-assign]


def test_a_gap_to_the_sampler_is_an_event_and_then_the_end(
    recipe: Recipe, run_dir: MakeRun
) -> None:
    trainer = trainer_of(run_dir(recipe("opd")))
    trainer._one_step()
    assert trainer.run.metrics()[0]["rollout/sampler_gap_max"] < 1e-5
    assert not [e for e in trainer.run.events() if e["kind"] == "alarm"]
    shift_sampler(trainer, 0.1)
    trainer._one_step()
    (event,) = (e for e in trainer.run.events() if e["kind"] == "alarm")
    assert event["alarm"] == "sampler_gap" and event["policy"] == "warn"
    assert event["step"] == 1 and "0.1 nats" in event["message"]
    assert trainer.run.metrics()[1]["rollout/sampler_gap"] == pytest.approx(0.1, rel=1e-3)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    shift_sampler(trainer, 0.5)
    with pytest.raises(TrainingFailure, match=r"gap_stop \(0\.5\): they are not the same model"):
        trainer._one_step()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert trainer.run.dump(2).exists()


def test_sampler_weights_scale_the_update(recipe: Recipe, run_dir: MakeRun) -> None:
    """A sampler that is 0.1 nats too low a token: weights of e^0.1, cut at 1.05."""
    losses = {}
    for weights in ("none", "token"):
        objective = ObjectiveConfig(sampler_weights=weights, sampler_weight_cap=1.05)  # type: ignore[arg-type]
        trainer = trainer_of(run_dir(recipe("opd", objective=objective), weights))
        shift_sampler(trainer, 0.1)
        trainer._one_step()
        losses[weights] = trainer.run.metrics()[0]["train/loss"]
    assert losses["token"] == pytest.approx(1.05 * losses["none"], rel=1e-5)
    assert trainer.run.metrics()[0]["rollout/sampler_weight_cut"] == 1.0


def test_each_prompt_is_scored_by_the_teacher_of_its_source(
    recipe: Recipe, run_dir: MakeRun, suite: Path, tmp_path: Path
) -> None:
    file = suite / "micro_maths" / "train.jsonl"
    lines = [json.loads(x) for x in file.read_text().splitlines()]
    for i, line in enumerate(lines):
        line["source"] = "own" if i % 2 else ""
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # The student itself is the teacher of "own": it gives its samples the reward 0.
    own = SourceTeacher(sources=["own"], model=str(suite / "student-init"))
    sampling = SamplingConfig(prompts_per_step=16, rollouts_per_prompt=2, max_new_tokens=12)
    config = recipe("opd", data=DataConfig(train=str(data)), teachers=[own], sampling=sampling)
    step = trainer_of(run_dir(config))._one_step()
    reward_N = step.batch.teacher_logprobs_N - step.batch.student_logprobs_N  # type: ignore[operator]
    kinds = set()
    for i, rollout in enumerate(step.rollouts):
        mean = float(reward_N[step.batch.sequence_N == i].abs().mean())
        assert (mean < 1e-5) == (rollout.source == "own")
        kinds.add(rollout.source)
    assert kinds == {"own", ""}


def test_scoring_ahead_changes_no_bit(recipe: Recipe, run_dir: MakeRun) -> None:
    lines = []
    for ahead in (True, False):
        config = recipe("reopold", teacher=TeacherConfig(overlap=ahead))
        trainer = trainer_of(run_dir(config, f"ahead-{ahead}"))
        trainer.teacher = dataclasses.replace(trainer.teacher, concurrent=True, micro_batch=1)  # type: ignore[type-var]
        trainer.sampler.teacher = trainer.teacher
        for _ in range(2):
            trainer._one_step()
        lines.append([line["train/nll"] for line in trainer.run.metrics()])
    assert lines[0] == lines[1]


def test_kept_activations_change_no_bit(recipe: Recipe, run_dir: MakeRun) -> None:
    """One forward pass less, for the same numbers."""
    found = []
    for keep in (False, True):
        train = TrainConfig(steps=6, micro_batch=4, keep_activations=keep)
        trainer = trainer_of(run_dir(recipe("reopold", train=train), f"keep-{keep}"))
        for _ in range(3):
            trainer._one_step()
        lines = trainer.run.metrics()
        found.append([(line["train/nll"], line["train/grad_norm"]) for line in lines])
        found.append(weights(trainer))
    assert found[0] == found[2]
    assert all(torch.equal(found[1][name], found[3][name]) for name in found[1])  # type: ignore[index,call-overload]
    with pytest.raises(ValidationError, match="one update a step"):
        recipe("opd", train=TrainConfig(keep_activations=True, updates_per_step=2))
