"""Dialogues: budgets, environments that act at once, and faults."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reopold.dialogues import THREADS, Dialogue, DialogueRequest, run_dialogues
from reopold.engines.base import EngineFailure
from reopold.environments.base import Observation
from reopold.rollouts import Rollout, SamplingParams
from reopold.sandbox import SandboxFailure
from reopold.stopping import StopRequested
from tests.conftest import REPO
from tests.reopold.scripted_dialogues import (
    EOS,
    PROMPT,
    TOKENIZER,
    ScriptedEngine,
    World,
    encode,
    lead,
    says,
    turn,
)


class TestBudgets:
    def test_turns(self) -> None:
        worlds = [World([says()] * 9), World([says()])]
        scripts = [[turn("call")] * 9, [turn("call"), turn("answer")]]
        endless, answered = lead(scripts, worlds, max_turns=2)
        assert endless.rollout.finish_reason == "turns" and len(endless.turns) == 2
        assert worlds[0].heard == ["call", "call"] and endless.rollout.calls == 2
        assert endless.rollout.response_ids[-1] == EOS and not endless.rollout.observed[-1]
        assert answered.rollout.finish_reason == "stop" and answered.answer == "answer"

    @pytest.mark.parametrize("style", ["tool_call", "fenced"])
    def test_tokens(self, style: Any) -> None:
        scripts = [[turn("call")] * 3]
        (led,) = lead(scripts, [World([says()] * 2)], style=style)
        whole = led.rollout
        assert whole.finish_reason == "stop"
        second = whole.observed.index(False, whole.observed.index(True))  # where turn 2 begins
        for budget in range(1, len(whole.response_ids) + 2):
            (dialogue,) = lead(scripts, [World([says()] * 2)], style=style, max_tokens=budget)
            cut, turns = dialogue.rollout, [t.finish_reason for t in dialogue.turns]
            assert len(cut.response_ids) <= budget
            assert cut.response_ids[: second - 1] == whole.response_ids[
                : min(len(cut.response_ids), second - 1)
            ] or (len(turns) == 1 and cut.response_ids == turn("call")[:budget])
            if budget >= len(whole.response_ids):
                assert cut == whole
            else:
                assert cut.finish_reason == "length"
            if second < budget < second + len(turn("call")):  # within the second turn
                assert cut.response_ids == whole.response_ids[:budget]
                assert cut.logprobs == whole.logprobs[:budget]
                assert turns == ["stop", "length"]
            elif len(turn("call")) <= budget <= second:  # the observation leaves no room
                assert cut.response_ids == turn("call") and turns == ["stop"]
                assert (cut.calls, True in cut.observed) == (1, False)

    def test_a_turn_has_its_own_limit_and_the_rest_of_the_budget(self) -> None:
        engine = ScriptedEngine([[turn("call"), turn("a" * 50)], [turn("call, longer"), turn("b")]])
        worlds = [World([says()]), World([says()])]
        params = SamplingParams(40)
        dialogues = lead([[], []], worlds, engine=engine, params=params, max_tokens=100)
        assert engine.asked[0]["limits"] == [40, 40]
        used = [d.rollout.observed.index(False, d.rollout.observed.index(True)) for d in dialogues]
        assert engine.asked[1]["limits"] == [min(40, 100 - n) for n in used]
        assert 100 - used[1] < 40
        assert dialogues[0].rollout.finish_reason == "length"
        assert len(dialogues[0].turns[1].ids) == min(40, 100 - used[0])

    def test_a_turn_needs_room_for_its_least_tokens(self) -> None:
        scripts = [[turn("call"), turn("x")]]
        (whole,) = lead(scripts, [World([says()])])
        used = len(whole.rollout.response_ids) - 2
        params = SamplingParams(50, min_new_tokens=2)
        (fits,) = lead(scripts, [World([says()])], params=params, max_tokens=used + 2)
        assert fits.rollout.finish_reason == "stop"
        (short,) = lead(scripts, [World([says()])], params=params, max_tokens=used + 1)
        assert short.rollout.finish_reason == "length" and len(short.turns) == 1

    def test_a_truncated_message_is_not_acted_upon(self) -> None:
        world = World([says()])
        (dialogue,) = lead([[turn("a long message")]], [world], params=SamplingParams(5))
        assert (dialogue.rollout.finish_reason, dialogue.rollout.calls, world.heard) == (
            "length",
            0,
            [],
        )

    @pytest.mark.parametrize(("turns", "tokens"), [(0, 5), (5, 0)])
    def test_no_budget_is_refused(self, turns: int, tokens: int) -> None:
        with pytest.raises(ValueError, match="no room"):
            lead([[turn("a")]], [World([])], max_turns=turns, max_tokens=tokens)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.lists(st.text("abé\n", max_size=9), min_size=4, max_size=4), max_size=4),
        st.lists(st.text("xy\n", max_size=6), min_size=3, max_size=3),
        st.integers(1, 4),
        st.integers(1, 400),
        st.sampled_from(["tool_call", "fenced"]),
    )
    def test_whatever_is_said(
        self, texts: list[list[str]], observed: list[str], turns: int, tokens: int, style: Any
    ) -> None:
        scripts = [[turn(text) for text in each] for each in texts]
        worlds = [World([says(text) for text in observed]) for _ in texts]
        dialogues = lead(scripts, worlds, style=style, max_turns=turns, max_tokens=tokens)
        for number, (dialogue, world) in enumerate(zip(dialogues, worlds, strict=True)):
            found = dialogue.rollout
            assert len(found.response_ids) == len(found.observed) == len(found.logprobs) <= tokens
            assert 1 <= len(dialogue.turns) <= turns
            assert (found.finish_reason == "turns") <= (len(dialogue.turns) == turns)
            sampled = [
                i for t in dialogue.turns[:-1] for i in t.ids if style != "fenced" or i != EOS
            ]
            assert found.sampled_ids == sampled + dialogue.turns[-1].ids
            flagged = zip(found.logprobs, found.observed, strict=True)
            assert all((value == 0.0) == seen for value, seen in flagged)
            assert world.closed == 1
            alone = lead(
                scripts[: number + 1],
                [World([says(text) for text in observed]) for _ in scripts],
                style=style,
                max_turns=turns,
                max_tokens=tokens,
            )[number]
            assert replace(alone, seconds=0) == replace(dialogue, seconds=0)


class TestEnvironments:
    def test_they_act_at_the_same_time(self) -> None:
        barrier = threading.Barrier(4, timeout=10)

        class Meeting(World):
            def act(self, message: str) -> Observation:
                barrier.wait()
                return super().act(message)

        worlds = [Meeting([says()]) for _ in range(4)]
        dialogues = lead([[turn("call"), turn("a")]] * 4, worlds)
        assert [dialogue.rollout.finish_reason for dialogue in dialogues] == ["stop"] * 4

    def test_they_act_while_the_engine_still_samples(self) -> None:
        acted = threading.Event()

        class Quick(World):
            def act(self, message: str) -> Observation:
                acted.set()
                return super().act(message)

        scripts = [[turn("a")], [turn("a")]]
        engine = ScriptedEngine(scripts, between=lambda: assert_true(acted.wait(10)))
        lead(scripts, [Quick([]), Quick([])], engine=engine)

    def test_each_is_closed_before_those_who_wait_are_told(self) -> None:
        worlds = [World([says()]), World([]), World([])]
        states: list[list[int]] = []
        scripts = [[turn("call"), turn("a")], [turn("a")], [encode("endless")]]

        def on_finished(place: int, dialogue: Dialogue) -> None:
            states.append([place, worlds[place].closed])

        dialogues = lead(scripts, worlds, on_finished=on_finished)
        assert [d.rollout.finish_reason for d in dialogues] == ["stop", "stop", "length"]
        assert sorted(states) == [[0, 1], [1, 1], [2, 1]]
        assert worlds[2].heard == []

    def test_those_who_wait_are_told_one_at_a_time(self) -> None:
        inside = 0
        told: dict[int, Dialogue] = {}

        def on_finished(place: int, dialogue: Dialogue) -> None:
            nonlocal inside
            inside += 1
            assert inside == 1
            told[place] = dialogue
            threading.Event().wait(0.002)
            inside -= 1

        count = 20
        worlds = [World([]) for _ in range(count)]
        dialogues = lead([[turn("a")]] * count, worlds, on_finished=on_finished)
        assert [told[place] for place in range(count)] == dialogues

    @pytest.mark.parametrize("where", ["act", "make", "outcome"])
    @pytest.mark.parametrize("times", [1, 2, 3])
    def test_a_broken_world_is_made_anew_twice(self, where: str, times: int) -> None:
        """A new one is told all that was said; what it answers to that is not asked again."""
        breaks = times
        made: list[World] = []

        class Fragile(World):
            def act(self, message: str) -> Observation:
                return self.fail() if where == "act" and self.heard else super().act(message)

            def outcome(self) -> float | None:
                return self.fail() if where == "outcome" else 0.25

            def fail(self) -> Any:
                nonlocal breaks
                if breaks:
                    breaks -= 1
                    raise SandboxFailure("no processes left")
                return super().act("again") if where == "act" else 0.25

        def make(place: int) -> World:
            nonlocal breaks
            if where == "make" and place == 0 and breaks:
                breaks -= 1
                raise SandboxFailure("no processes left")
            made.append(Fragile([says("1"), says("2")]) if place == 0 else World([says()] * 2))
            return made[-1]

        scripts = [[turn("one"), turn("two"), turn("a")]] * 2
        first, whole = run_dialogues(
            ScriptedEngine(scripts),  # type: ignore[arg-type]
            TOKENIZER,
            [DialogueRequest(PROMPT, 100), DialogueRequest(PROMPT, 101)],
            SamplingParams(50),
            make,
            style="tool_call",
            max_turns=5,
            max_tokens=1000,
            tool_seconds=60.0,
        )
        assert (whole.rollout.error, whole.rollout.finish_reason) == ("", "stop")
        assert all(world.closed == 1 for world in made)
        found = first.rollout
        assert len(found.response_ids) == len(found.observed) == len(found.logprobs)
        assert found.failed_calls == 0
        if times < 3:
            assert (found.error, found.finish_reason, found.outcome) == ("", "stop", 0.25)
            assert all(found.valid[i] != seen for i, seen in enumerate(found.observed))
            assert found.calls == 2
        else:
            assert (found.error, found.outcome) == ("no processes left", None)
            assert not any(found.valid)
            assert found.calls == {"make": 0, "act": 1, "outcome": 2}[where]

    def test_a_world_that_was_made_anew_has_heard_everything(self) -> None:
        made: list[World] = []

        def make(place: int) -> World:
            breaks: list[Any] = [says("1"), SandboxFailure("gone")]
            made.append(World(breaks if not made else [says("1"), says("2")]))
            return made[-1]

        scripts = [[turn("one"), turn("two"), turn("a")]]
        (dialogue,) = run_dialogues(
            ScriptedEngine(scripts),  # type: ignore[arg-type]
            TOKENIZER,
            [DialogueRequest(PROMPT, 100)],
            SamplingParams(50),
            make,
            style="tool_call",
            max_turns=5,
            max_tokens=1000,
            tool_seconds=60.0,
        )
        assert made[0].heard == ["one", "two"] and made[1].heard == ["one", "two", "a"]
        assert [world.closed for world in made] == [1, 1]
        assert (dialogue.rollout.calls, dialogue.rollout.error) == (2, "")

    @pytest.mark.parametrize("verdict", [None, 0.0, 0.75])
    def test_its_verdict_stands_beside_the_tokens(self, verdict: float | None) -> None:
        worlds = [World([says()] * 9, verdict=verdict) for _ in range(3)]
        scripts = [[turn("call"), encode("endless")], [turn("call")] * 9, [encode("endless")]]
        dialogues = lead(scripts, worlds, max_turns=2)
        assert [d.rollout.finish_reason for d in dialogues] == ["length", "turns", "length"]
        assert [d.rollout.outcome for d in dialogues] == [verdict] * 3

    def test_a_fault_of_an_environment_is_raised_and_all_are_closed(self) -> None:
        worlds = [World([says()] * 3), World([says(), ZeroDivisionError("a bug")])]
        with pytest.raises(ZeroDivisionError, match="a bug"):
            lead([[turn("call")] * 4] * 2, worlds)
        assert all(world.closed for world in worlds)

    def test_all_are_closed_when_the_engine_fails(self) -> None:
        class Dying(ScriptedEngine):
            def generate(self, *args: Any, **named: Any) -> list[Rollout]:
                if self.asked:
                    raise EngineFailure("gone")
                return super().generate(*args, **named)

        worlds = [World([says()] * 3) for _ in range(3)]
        with pytest.raises(EngineFailure, match="gone"):
            lead([[turn("call")] * 4] * 3, worlds, engine=Dying([[turn("call")] * 4] * 3))
        assert all(world.closed for world in worlds)


class TestClock:
    """An environment that does not return in time is left behind."""

    class Stuck(World):
        """Never answers the message "stuck"."""

        released = threading.Event()

        def act(self, message: str) -> Observation:
            if message == "stuck":
                self.released.wait(30)
            return super().act(message)

    @pytest.fixture(autouse=True)
    def release(self) -> Iterator[None]:
        yield
        self.Stuck.released.set()
        self.Stuck.released = threading.Event()

    def test_its_dialogue_ends_and_the_others_go_on(self) -> None:
        """More are stuck than may act at the same time."""
        stuck = THREADS + 3
        worlds = [self.Stuck([says()] * 2) for _ in range(stuck + 2)]
        scripts = [[turn("call"), turn("stuck"), turn("a")]] * stuck
        scripts += [[turn("call"), turn("call"), turn("a")]] * 2
        started = time.perf_counter()
        dialogues = lead(scripts, worlds, tool_seconds=0.2)
        assert time.perf_counter() - started < 5.0
        for dialogue in dialogues[:stuck]:
            found = dialogue.rollout
            assert (found.finish_reason, found.error, found.outcome) == ("seconds", "", None)
            assert found.sampled_ids == turn("call") + turn("stuck") and found.calls == 1
            assert len(found.observed) == len(found.response_ids) == len(found.logprobs)
            assert any(found.valid)
        assert [d.rollout.finish_reason for d in dialogues[stuck:]] == ["stop"] * 2

    def test_what_it_says_too_late_is_not_heard(self) -> None:
        world = self.Stuck([says(), says()])
        (dialogue,) = lead([[turn("call"), turn("stuck"), turn("a")]], [world], tool_seconds=0.1)
        before = copy.deepcopy(dialogue.rollout)
        self.Stuck.released.set()
        deadline = time.perf_counter() + 5.0
        while not world.closed and time.perf_counter() < deadline:
            time.sleep(0.005)
        assert world.closed == 1
        time.sleep(0.02)
        assert dialogue.rollout == before and dialogue.rollout.finish_reason == "seconds"

    def test_the_seconds_of_a_dialogue_add_up(self) -> None:
        class Slow(World):
            def act(self, message: str) -> Observation:
                time.sleep(0.06)
                return super().act(message)

        (dialogue,) = lead([[turn("call")] * 9], [Slow([says()] * 9)], tool_seconds=0.15)
        assert dialogue.rollout.finish_reason == "seconds"
        assert len(dialogue.turns) == 3

    def test_a_stop_does_not_wait_for_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("reopold.dialogues.CLOSE_SECONDS", 0.2)
        worlds = [self.Stuck([says()]), World([says()])]
        asked = time.perf_counter() + 0.1
        with pytest.raises(StopRequested):
            lead(
                [[turn("stuck")], [turn("call"), turn("a")]],
                worlds,
                should_stop=lambda: time.perf_counter() > asked,
            )
        assert time.perf_counter() - asked < 3.0
        assert worlds[1].closed == 1

    @pytest.mark.slow
    def test_a_process_ends_although_one_never_returns(self) -> None:
        code = (
            "from tests.reopold.scripted_dialogues import *\n"
            "import threading\n"
            "class Stuck(World):\n"
            "    def act(self, message):\n"
            "        threading.Event().wait()\n"
            "(found,) = lead([[turn('a')]], [Stuck([])], tool_seconds=0.1)\n"
            "print(found.rollout.finish_reason)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=REPO
        )
        assert (done.returncode, done.stdout) == (0, "seconds\n"), done.stderr


def assert_true(value: bool) -> None:
    assert value
