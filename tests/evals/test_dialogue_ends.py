"""Dialogues: budgets, environments that act at once, and faults."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_dialogues import (
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

from evals.harness.dialogue import Dialogue, DialogueRequest, run_dialogues
from reopold.engines.base import EngineFailure
from reopold.environments.base import Observation
from reopold.rollouts import Rollout, SamplingParams
from reopold.sandbox import SandboxFailure


class TestBudgets:
    def test_turns(self) -> None:
        worlds = [World([says()] * 9), World([says()])]
        scripts = [[turn("call")] * 9, [turn("call"), turn("answer")]]
        endless, answered = lead(scripts, worlds, max_turns=2)
        assert endless.finish_reason == "turns" and len(endless.turns) == 2
        assert worlds[0].heard == ["call", "call"] and endless.calls == 2
        assert endless.ids[-1] == EOS and not endless.observed[-1]
        assert answered.finish_reason == "stop" and answered.answer == "answer"

    @pytest.mark.parametrize("style", ["tool_call", "fenced"])
    def test_tokens(self, style: Any) -> None:
        scripts = [[turn("call")] * 3]
        (whole,) = lead(scripts, [World([says()] * 2)], style=style)
        assert whole.finish_reason == "stop"
        second = whole.observed.index(False, whole.observed.index(True))  # where turn 2 begins
        for budget in range(1, len(whole.ids) + 2):
            (cut,) = lead(scripts, [World([says()] * 2)], style=style, max_tokens=budget)
            assert len(cut.ids) <= budget
            assert cut.ids[: second - 1] == whole.ids[: min(len(cut.ids), second - 1)] or (
                len(cut.turns) == 1 and cut.turns[0].ids == turn("call")[:budget]
            )
            if budget >= len(whole.ids):
                assert replace(cut, seconds=0) == replace(whole, seconds=0)
            else:
                assert cut.finish_reason == "length"
            if second < budget < second + len(turn("call")):  # within the second turn
                assert cut.ids == whole.ids[:budget] and len(cut.turns) == 2
                assert [t.finish_reason for t in cut.turns] == ["stop", "length"]
            elif len(turn("call")) <= budget <= second:  # the observation leaves no room
                assert cut.ids == turn("call") and [t.finish_reason for t in cut.turns] == ["stop"]
                assert (cut.calls, True in cut.observed) == (1, False)

    def test_a_turn_has_its_own_limit_and_the_rest_of_the_budget(self) -> None:
        engine = ScriptedEngine([[turn("call"), turn("a" * 50)], [turn("call, longer"), turn("b")]])
        worlds = [World([says()]), World([says()])]
        params = SamplingParams(40)
        dialogues = lead([[], []], worlds, engine=engine, params=params, max_tokens=100)
        assert engine.asked[0]["limits"] == [40, 40]
        used = [d.observed.index(False, d.observed.index(True)) for d in dialogues]
        assert engine.asked[1]["limits"] == [min(40, 100 - n) for n in used]
        assert 100 - used[1] < 40
        assert dialogues[0].finish_reason == "length"
        assert len(dialogues[0].turns[1].ids) == min(40, 100 - used[0])

    def test_a_turn_needs_room_for_its_least_tokens(self) -> None:
        scripts = [[turn("call"), turn("x")]]
        (whole,) = lead(scripts, [World([says()])])
        used = len(whole.ids) - 2
        params = SamplingParams(50, min_new_tokens=2)
        (fits,) = lead(scripts, [World([says()])], params=params, max_tokens=used + 2)
        assert fits.finish_reason == "stop"
        (short,) = lead(scripts, [World([says()])], params=params, max_tokens=used + 1)
        assert short.finish_reason == "length" and len(short.turns) == 1

    def test_a_truncated_message_is_not_acted_upon(self) -> None:
        world = World([says()])
        (dialogue,) = lead([[turn("a long message")]], [world], params=SamplingParams(5))
        assert (dialogue.finish_reason, dialogue.calls, world.heard) == ("length", 0, [])

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
            assert len(dialogue.ids) == len(dialogue.observed) <= tokens
            assert 1 <= len(dialogue.turns) <= turns
            assert (dialogue.finish_reason == "turns") <= (len(dialogue.turns) == turns)
            said = [i for i, o in zip(dialogue.ids, dialogue.observed, strict=True) if not o]
            sampled = [
                i for t in dialogue.turns[:-1] for i in t.ids if style != "fenced" or i != EOS
            ]
            assert said == sampled + dialogue.turns[-1].ids
            assert world.closed <= 1 + 1 and (world.closed > 0) == bool(world.heard)
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
        assert [dialogue.finish_reason for dialogue in dialogues] == ["stop"] * 4

    def test_they_act_while_the_engine_still_samples(self) -> None:
        acted = threading.Event()

        class Quick(World):
            def act(self, message: str) -> Observation:
                acted.set()
                return super().act(message)

        scripts = [[turn("a")], [turn("a")]]
        engine = ScriptedEngine(scripts, between=lambda: assert_true(acted.wait(10)))
        lead(scripts, [Quick([]), Quick([])], engine=engine)

    def test_each_is_made_when_it_is_needed_and_closed_when_it_is_not(self) -> None:
        worlds = [World([says()]), World([]), World([])]
        states: list[list[int]] = []
        scripts = [[turn("call"), turn("a")], [turn("a")], [encode("endless")]]

        def on_finished(place: int, dialogue: Dialogue) -> None:
            states.append([place, worlds[place].closed])

        dialogues = lead(scripts, worlds, on_finished=on_finished)
        assert [d.finish_reason for d in dialogues] == ["stop", "stop", "length"]
        assert sorted(states) == [[0, 1], [1, 1], [2, 0]]  # the last one was never made

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

    @pytest.mark.parametrize("where", ["act", "make"])
    def test_a_broken_sandbox_ends_its_own_dialogue_alone(self, where: str) -> None:
        worlds = [World([says(), SandboxFailure("no processes left")]), World([says(), says()])]
        scripts = [[turn("call"), turn("call"), turn("a")]] * 2
        made = 0

        def make(place: int) -> World:
            nonlocal made
            made += 1
            if where == "make" and place == 0:
                raise SandboxFailure("no processes left")
            return worlds[place]

        broken, whole = run_dialogues(
            ScriptedEngine(scripts),  # type: ignore[arg-type]
            TOKENIZER,
            [DialogueRequest(PROMPT, 100), DialogueRequest(PROMPT, 101)],
            SamplingParams(50),
            make,
            style="tool_call",
            max_turns=5,
            max_tokens=1000,
        )
        assert (broken.status, broken.error) == ("sandbox_failure", "no processes left")
        assert broken.calls == (1 if where == "act" else 0) and broken.failed_calls == 0
        assert broken.ids[-1] == EOS and len(broken.ids) == len(broken.observed)
        assert (whole.status, whole.finish_reason) == ("ok", "stop")
        assert worlds[1].closed >= 1 and (worlds[0].closed >= 1) == (where == "act")

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


def assert_true(value: bool) -> None:
    assert value
