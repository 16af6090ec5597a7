"""Training on dialogues, alone and beside prompts without an environment."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reopold.config import ConfigError, RunConfig, SamplingConfig, TrainConfig
from reopold.data.prompts import Prompt, load_prompts
from reopold.data.tokenizers import render
from reopold.dialogues import turn_seed
from reopold.environments import ENVIRONMENTS, Budget, Kind
from reopold.environments.base import Environment, Observation
from reopold.rollouts import Rollout
from reopold.run_dir import RunDir, read_lines
from reopold.sandbox import SandboxFailure
from reopold.step_buffer import pack, unpack
from reopold.trainer import Trainer, TrainingFailure
from tests.faults.compare import assert_same, logged

Recipe = Callable[..., RunConfig]
MakeRun = Callable[..., RunDir]


class Echo(Environment):
    """Answers with the number of digits in a message, until one has fewer than two or it has
    answered three; breaks where its task says so."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self.task, self.heard = task, 0

    def observe(self) -> str:
        return str(self.task.get("first", ""))

    def act(self, message: str) -> Observation:
        if self.task.get("breaks"):
            raise SandboxFailure("no room")
        digits = sum(letter.isdigit() for letter in message)
        if digits < 2 or self.heard == 3:
            return Observation("", done=True)
        self.heard += 1
        return Observation(f"{digits}=", done=False, calls=1, failed=digits % 2)

    def outcome(self) -> float | None:
        if self.task.get("breaks"):
            raise SandboxFailure("no room")
        return self.task.get("outcome")


@pytest.fixture(autouse=True)
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(task: Mapping[str, Any], budget: Budget) -> Environment:
        return Echo(task)

    monkeypatch.setitem(ENVIRONMENTS, "echo", Kind("tool_call", make))
    monkeypatch.setitem(ENVIRONMENTS, "echo_fenced", Kind("fenced", make))


def prompts_file(path: Path, suite: Path, tasks: list[dict[str, Any]]) -> str:
    """The suite's problems with an environment each; a task of None asks for an answer alone."""
    lines = (suite / "micro_maths" / "train.jsonl").read_text().splitlines()
    with path.open("w") as file:
        for line, more in zip(lines, tasks * len(lines), strict=False):
            file.write(json.dumps({**json.loads(line), **more}) + "\n")
    return str(path)


LED = [{"environment": "echo"}]
MIXED = [{"environment": "echo"}, {}, {"environment": "echo", "task": {"outcome": 0.5}}, {}]
SAMPLING = SamplingConfig(prompts_per_step=4, rollouts_per_prompt=3, max_new_tokens=60, max_turns=3)


@pytest.fixture
def tooled(recipe: Recipe, suite: Path, tmp_path: Path) -> Recipe:
    def make(method: str = "reopold", tasks: Any = MIXED, **sections: Any) -> RunConfig:
        data = {"train": prompts_file(tmp_path / "prompts.jsonl", suite, tasks)}
        train = TrainConfig(steps=3, checkpoint_every=1, micro_batch=4, keep_rollouts=12)
        fields = {"data": data, "sampling": SAMPLING, "train": train, "family": "tools"}
        return recipe(method, **{**fields, **sections})

    return make


def trainer_of(run: RunDir, **more: Any) -> Trainer:
    return Trainer(run, run.config(), "cpu", **more)


class TestDraw:
    def test_dialogues_and_answers_of_one_draw_are_in_the_order_of_the_prompts(
        self, tooled: Recipe, run_dir: MakeRun
    ) -> None:
        trainer = trainer_of(run_dir(tooled()))
        prompts, rollouts, drawn = trainer.sampler.draw(0)
        assert {bool(prompt.environment) for prompt in prompts} == {True, False}
        for i, rollout in enumerate(rollouts):
            prompt = prompts[i // 3]
            assert rollout.prompt_ids == render(trainer.tokenizer, prompt.messages)
            assert bool(rollout.observed) == bool(prompt.environment)
            assert rollout.outcome == prompt.task.get("outcome")
        assert any(True in rollout.observed for rollout in rollouts)
        assert drawn.tokens == sum(rollout.valid.count(True) for rollout in rollouts)

    def test_every_turn_is_what_the_engine_samples_with_its_own_seed(
        self, tooled: Recipe, run_dir: MakeRun
    ) -> None:
        """Seeds are functions of run, draw, prompt, sample and turn."""
        trainer = trainer_of(run_dir(tooled(tasks=LED)))
        asked: list[list[int]] = []
        generate = trainer.engine.generate

        def listening(*args: Any, seeds: Any, **named: Any) -> Any:
            asked.append(list(seeds))
            return generate(*args, seeds=seeds, **named)

        trainer.engine.generate = listening  # type: ignore[method-assign]
        _, rollouts, _ = trainer.sampler.draw(1)
        state = np.random.SeedSequence([3, 1]).generate_state(4, np.uint64).tolist()
        seeds = [base % 2**62 + copy for base in state for copy in range(3)]
        for turn, found in enumerate(asked):
            led = [i for i, rollout in enumerate(rollouts) if turns(rollout) > turn]
            assert found == [turn_seed(seeds[i], turn) for i in led]
        assert len(asked) == 3
        trainer.engine.generate = generate  # type: ignore[method-assign]
        assert trainer.sampler.draw(1)[1] == rollouts

    def test_what_an_environment_says_first_is_part_of_the_prompt(
        self, tooled: Recipe, run_dir: MakeRun
    ) -> None:
        tasks = [{"environment": "echo", "task": {"first": "7="}}]
        trainer = trainer_of(run_dir(tooled(tasks=tasks)))
        (prompt, *_), (rollout, *_), _ = trainer.sampler.draw(0)
        chat = [*prompt.messages, {"role": "user", "content": "7="}]
        assert rollout.prompt_ids == render(trainer.tokenizer, chat)


class TestSignals:
    def test_an_outcome_is_the_environment_s_or_the_last_message_s(
        self, tooled: Recipe, run_dir: MakeRun
    ) -> None:
        trainer = trainer_of(run_dir(tooled()))
        prompts = [
            Prompt("a", [], "5", environment="echo"),
            Prompt("b", [], "5", environment="echo_fenced"),
        ]
        encode = trainer.tokenizer.encode

        def rollout(*parts: str, **more: Any) -> Rollout:
            ids, observed = [], []
            for number, part in enumerate(parts):
                piece = encode(part, add_special_tokens=False)
                ids += piece
                observed += [number % 2 == 1] * len(piece)
            return Rollout([1], ids, [0.0] * len(ids), "stop", observed=observed, **more)

        rollouts = [
            rollout("1+4=", "#", "5"),  # what the tool said is no part of the answer
            rollout("#4", "#7", "#5"),
            rollout("#5", outcome=0.25),
            rollout("#5", "5"),  # cut off after an observation
            rollout("#5", error="gone"),
            rollout("1;#5"),
        ]
        found = trainer._outcomes(prompts, rollouts)
        assert found is not None
        assert found[:4].tolist() == [0.0, 1.0, 0.25, 0.0]
        assert math.isnan(found[4]) and found[5] == 1.0

    def test_metrics_count_what_was_sampled_and_what_held(
        self, tooled: Recipe, run_dir: MakeRun
    ) -> None:
        tasks = [*MIXED, {"environment": "echo", "task": {"breaks": True}}]
        run = run_dir(tooled("opd", tasks=tasks))
        trainer = trainer_of(run)
        step = trainer._one_step()
        (line,) = run.metrics()
        whole = [rollout for rollout in step.rollouts if not rollout.error]
        broken = [rollout for rollout in step.rollouts if rollout.error]
        assert broken and all(r.error == "no room" for r in broken)
        batch = step.batch
        assert batch is not None and batch.teacher_logprobs_N is not None
        flags = [flag for rollout in step.rollouts for flag in rollout.valid]
        assert batch.valid_N.tolist() == flags
        count = sum(len(rollout.sampled_ids) for rollout in whole)
        assert sum(flags) == count
        assert line["rollout/length"] == pytest.approx(count / len(whole))
        valid = torch.tensor(flags)
        assert line["rollout/entropy"] == pytest.approx(float(batch.entropy_N[valid].mean()))
        rewards = (batch.teacher_logprobs_N - batch.student_logprobs_N)[valid]
        assert line["teacher/reward"] == pytest.approx(float(rewards.mean()))
        led = [r for i, r in enumerate(step.rollouts) if step.prompts[i // 3].environment]
        held = [rollout for rollout in led if not rollout.error]
        assert line["rollout/broken"] == pytest.approx(len(broken) / len(led))
        assert line["rollout/turns"] == pytest.approx(sum(map(turns, held)) / len(held))
        for name in ("calls", "failed_calls"):
            mean = sum(getattr(rollout, name) for rollout in held) / len(held)
            assert line[f"rollout/{name}"] == pytest.approx(mean)
        cut = sum(rollout.finish_reason != "stop" for rollout in whole)
        assert line["rollout/truncated_fraction"] == pytest.approx(cut / len(whole))
        assert line["tokens"] == sum(len(rollout.sampled_ids) for rollout in step.rollouts)
        # Sampler and trainer agree on every sampled token, across the turns of a dialogue.
        assert line["rollout/sampler_gap_max"] < 1e-4
        assert not any(name.startswith("family/") for name in line)

    def test_families_have_their_own_lines(self, tooled: Recipe, run_dir: MakeRun) -> None:
        run = run_dir(tooled("opd"))
        trainer = trainer_of(run)
        inner = trainer.sampler.next_prompts

        def of_two_families(draw: int) -> list[Prompt]:
            return [
                dataclasses.replace(p, family="tools" if p.environment else "maths")
                for p in inner(draw)
            ]

        trainer.sampler.next_prompts = of_two_families  # type: ignore[method-assign]
        step = trainer._one_step()
        (line,) = run.metrics()
        batch = step.batch
        assert batch is not None and batch.reward_S is not None
        assert batch.teacher_logprobs_N is not None
        rewards_N = batch.teacher_logprobs_N - batch.student_logprobs_N
        for family in ("maths", "tools"):
            mine = [i for i in range(12) if step.prompts[i // 3].family == family]
            rows = batch.valid_N & torch.isin(batch.sequence_N, torch.tensor(mine))
            wanted = {
                "length": sum(len(step.rollouts[i].sampled_ids) for i in mine) / len(mine),
                "reward": float(batch.reward_S[mine].mean()),
                "teacher_reward": float(rewards_N[rows].mean()),
                "truncated_fraction": sum(step.rollouts[i].finish_reason != "stop" for i in mine)
                / len(mine),
            }
            found = {
                name.removeprefix(f"family/{family}/"): value
                for name, value in line.items()
                if name.startswith(f"family/{family}/")
            }
            assert found == pytest.approx(wanted)

    def test_a_step_of_which_all_broke_ends_the_run(self, tooled: Recipe, run_dir: MakeRun) -> None:
        tasks = [{"environment": "echo", "task": {"breaks": True}}]
        with pytest.raises(TrainingFailure, match=r"all 12 rollouts.*no room"):
            trainer_of(run_dir(tooled(tasks=tasks)))._one_step()

    def test_an_update_is_normalised_by_the_sequences_that_held(
        self, tooled: Recipe, run_dir: MakeRun
    ) -> None:
        """A mean over sequences, made in two updates of which one lost more of them."""
        train = TrainConfig(steps=3, micro_batch=4, updates_per_step=2)
        tasks = [*MIXED, {"environment": "echo", "task": {"breaks": True}}]
        trainer = trainer_of(run_dir(tooled("grpo", tasks=tasks, train=train)))
        backward, normalisers = trainer.updater.backward, []

        def listening(*args: Any) -> float:
            normalisers.append(float(args[4]))
            return backward(*args)

        trainer.updater.backward = listening  # type: ignore[method-assign]
        step = trainer._one_step()
        held = [not rollout.error for rollout in step.rollouts]
        halves = [sum(held[:6]), sum(held[6:])]
        assert halves[0] != halves[1]
        kept = sum(rollout.valid.count(True) for rollout in step.rollouts)
        wanted = [kept * half / sum(halves) for half in halves if half]
        assert normalisers == pytest.approx(wanted)

    def test_no_gradient_comes_from_what_the_environment_said(
        self, tooled: Recipe, run_dir: MakeRun
    ) -> None:
        """Other scores at observed tokens, and a log-prob of anything there: the same weights."""
        weights = []
        for garbage in (-50.0, math.nan):
            run = run_dir(tooled("reopold", tasks=LED), f"run{garbage}")
            trainer = trainer_of(run)
            inner = trainer.signals

            def spoilt(*step: Any, inner: Any = inner, value: float = garbage) -> Any:
                batch, gap = inner(*step)
                seen_N = ~batch.valid_N
                assert seen_N.any()
                fields = {
                    name: found.masked_fill(seen_N, value)
                    for name, found in vars(batch).items()
                    if name.endswith(("logprobs_N", "entropy_N")) and found is not None
                }
                assert len(fields) == 5
                return dataclasses.replace(batch, **fields), gap

            trainer.signals = spoilt  # type: ignore[assignment]
            trainer._one_step()
            weights.append([p.detach().clone() for p in trainer.model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


class TestGiven:
    def test_a_worked_dialogue_is_learnt_without_its_observations(
        self, recipe: Recipe, run_dir: MakeRun, tmp_path: Path
    ) -> None:
        """The loss is the mean NLL of the assistant's tokens, by the model's own forward."""
        said = [("assistant", "12+3"), ("tool", "15"), ("assistant", "15-4"), ("tool", "11"),
                ("assistant", "#11")]  # fmt: skip
        completion = [{"role": role, "content": content} for role, content in said]
        line = {"id": "a", "prompt": [{"role": "user", "content": "12+3-4="}], "answer": "11"}
        more = {"environment": "echo", "completion": completion}
        file = tmp_path / "given.jsonl"
        file.write_text(json.dumps({**line, **more}) + "\n")
        sampling = SamplingConfig(prompts_per_step=1, rollouts_per_prompt=1)
        config = recipe("sft", data={"train": str(file)}, sampling=sampling)
        run = run_dir(config)
        trainer = trainer_of(run)
        encode = trainer.tokenizer.encode
        eos = trainer.tokenizer.eos_token_id
        ids = render(trainer.tokenizer, line["prompt"])  # type: ignore[arg-type]
        flags = [False] * len(ids)
        for role, content in said:
            own = role == "assistant"
            text = content if own else f"<|tool|>{content}<|assistant|>"
            piece = encode(text, add_special_tokens=False) + ([eos] if own else [])
            ids += piece
            flags += [own] * len(piece)
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.tensor([ids])).logits[0, :-1]
        logprobs = torch.log_softmax(logits[:, : len(trainer.tokenizer)], -1)
        own_N = logprobs.gather(-1, torch.tensor(ids[1:])[:, None]).squeeze(-1)
        wanted = -float(own_N[torch.tensor(flags[1:])].mean())
        step = trainer._one_step()
        assert step.rollouts[0].prompt_ids + step.rollouts[0].response_ids == ids
        assert run.metrics()[0]["train/nll"] == pytest.approx(wanted, rel=1e-5)
        assert run.metrics()[0]["rollout/length"] == sum(flags)


class TestResume:
    @pytest.mark.parametrize(
        ("method", "turn"),
        [
            ("reopold", 2),
            pytest.param("reopold", 1, marks=pytest.mark.slow),
            pytest.param("grpo", 2, marks=pytest.mark.slow),
            pytest.param("grpo", 3, marks=pytest.mark.slow),
        ],
    )
    def test_a_stop_in_the_middle_of_a_dialogue_changes_no_bit(
        self, method: str, turn: int, tooled: Recipe, run_dir: MakeRun
    ) -> None:
        config = tooled(method)
        straight = run_dir(config, "straight")
        trainer = trainer_of(straight)
        trainer.train(3)
        trainer.close()
        run, stop = run_dir(config), False
        first = trainer_of(run, should_stop=lambda: stop)
        first.train(1)
        generate, asked = first.engine.generate, 0

        def stopping(*args: Any, **named: Any) -> Any:
            nonlocal asked, stop
            asked += 1
            stop = asked == turn + 1  # the answers without an environment come first
            return generate(*args, **named)

        first.engine.generate = stopping  # type: ignore[method-assign]
        first.engine.should_stop = lambda: stop  # type: ignore[attr-defined]
        first.train(3)
        first.close()
        assert (asked, first.steps_done) == (turn + 1, 1)
        second = trainer_of(run, point=run.resume_points()[-1])
        second.train(3)
        second.close()
        assert logged(run.metrics()) == logged(straight.metrics())
        assert_same(straight, run)
        assert any(line["rollout/turns"] > 1 for line in run.metrics())

    def test_a_step_is_unpacked_as_it_was(self, tooled: Recipe, run_dir: MakeRun) -> None:
        tasks = [*MIXED, {"environment": "echo", "task": {"breaks": True}}]
        trainer = trainer_of(run_dir(tooled("grpo", tasks=tasks)))
        step = trainer._one_step()
        found = unpack(pack(step), "cpu")
        assert found.rollouts == step.rollouts and found.prompts == step.prompts
        assert found.drawn == step.drawn
        assert found.batch is not None and step.batch is not None
        assert torch.equal(found.batch.valid_N, step.batch.valid_N)


class TestRecords:
    def test_a_dialogue_can_be_read_turn_by_turn(self, tooled: Recipe, run_dir: MakeRun) -> None:
        run = run_dir(tooled())
        trainer = trainer_of(run)
        trainer.train(1)
        trainer.close()
        records = read_lines(run.rollouts_file(1))
        led = [record for record in records if "dialogue" in record]
        assert 0 < len(led) < len(records)
        for record in records:
            assert ("environment" in record) == ("dialogue" in record)
        for record in led:
            messages, tokens = record["dialogue"], record["tokens"]
            assert record["environment"] == "echo" and record["error"] == ""
            assert sum(message["tokens"] for message in messages) == len(tokens)
            place = 0
            for message in messages:
                part = tokens[place : place + message["tokens"]]
                assert {t["observed"] for t in part} == {message["role"] == "tool"}
                place += message["tokens"]
            assert not any(t["kept"] for t in tokens if t["observed"])
            assert record["calls"] >= record["failed_calls"] >= 0
            assert [m["role"] for m in messages][:2] in (["assistant"], ["assistant", "tool"])


class TestPrompts:
    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"environment": "pyhton"}, "no environment 'pyhton'.*python"),
            ({"environment": "tau2_mock"}, "'db'"),
            ({"environment": "echo", "task": [1]}, "'task' must be an object"),
            (
                {
                    "completion": [
                        {"role": r, "content": "1"} for r in ("assistant", "tool", "assistant")
                    ]
                },
                "needs an 'environment'",
            ),
        ],
    )
    def test_what_cannot_be_led_is_refused_before_any_work(
        self, more: dict[str, Any], words: str, tmp_path: Path
    ) -> None:
        line = {"id": "a", "prompt": [{"role": "user", "content": "1+1="}], "answer": "2", **more}
        file = tmp_path / "prompts.jsonl"
        file.write_text(json.dumps(line) + "\n")
        with pytest.raises(ConfigError, match=f"line 1: .*{words}"):
            load_prompts(str(file))


def turns(rollout: Rollout) -> int:
    """Messages of the model: runs of tokens that it sampled."""
    flags = rollout.observed
    return 1 + sum(a and not b for a, b in itertools.pairwise(flags))
