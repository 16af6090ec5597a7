"""Dialogues: what an engine is asked, and where observations stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reopold.config import ConfigError
from reopold.data.images import Image
from reopold.dialogue_styles import STYLES, Fenced, ToolCalls, given_dialogue
from reopold.dialogues import Dialogue, DialogueRequest, run_dialogues, turn_seed
from reopold.engines.base import SEED_LIMIT
from reopold.rollouts import Rollout, SamplingParams
from tests.reopold.scripted_dialogues import (
    EOS,
    LONG,
    OUTPUT,
    PROMPT,
    TOKENIZER,
    ScriptedEngine,
    World,
    byte_tokenizer,
    encode,
    lead,
    logprob,
    says,
    spelt,
    turn,
)


class TestToolCalls:
    def test_a_dialogue_reads_as_the_template_renders_it(self) -> None:
        world = World([says("4\n", failed=1), says("ü <|x|>")])
        script = [
            turn("<tool_call>a</tool_call>"),
            turn("<tool_call>b</tool_call>"),
            turn("It is 4"),
        ]
        (dialogue,) = lead([script], [world])
        chat = [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "<tool_call>a</tool_call>"},
            {"role": "tool", "content": "4\n"},
            {"role": "assistant", "content": "<tool_call>b</tool_call>"},
            {"role": "tool", "content": "ü <|x|>"},
            {"role": "assistant", "content": "It is 4"},
        ]
        rendered = TOKENIZER.apply_chat_template(chat, tokenize=False)
        found = dialogue.rollout
        assert [*found.prompt_ids, *found.response_ids] == encode(rendered)[:-1]  # up to EOS
        flagged = zip(found.response_ids, found.observed, strict=True)
        assert [i for i, seen in flagged if not seen] == [i for ids in script for i in ids]
        assert found.sampled_ids == [i for ids in script for i in ids]
        assert found.last_message_ids == script[-1]
        assert world.heard == ["<tool_call>a</tool_call>", "<tool_call>b</tool_call>", "It is 4"]
        assert dialogue.answer == "It is 4" and found.finish_reason == "stop"
        assert (found.calls, found.failed_calls, found.error) == (2, 1, "")
        assert [t.finish_reason for t in dialogue.turns] == ["stop"] * 3
        assert "<tool_response>\n4\n\n</tool_response>" in dialogue.text
        assert "<|im_" not in dialogue.text and dialogue.seconds > 0

    def test_each_turn_is_asked_for_with_all_that_went_before(self) -> None:
        engine = ScriptedEngine([[turn("a"), turn("b")]])
        (dialogue,) = lead([[]], [World([says()])], engine=engine)
        first, second = engine.asked
        assert first["prompts"] == [PROMPT]
        assert second["prompts"] == [PROMPT + dialogue.rollout.response_ids[: -len(turn("b"))]]
        assert dialogue.rollout.observed[: len(turn("a"))] == [False] * len(turn("a"))

    def test_images_are_shown_at_every_turn_and_stay_with_the_rollout(self) -> None:
        engine = ScriptedEngine([[turn("a"), turn("b")], [turn("a")]])
        images = (Image("a.png", "1"), Image("b.png", "2"))
        seeing, blind = run_dialogues(
            engine,  # type: ignore[arg-type]
            TOKENIZER,
            [DialogueRequest(PROMPT, 100, images), DialogueRequest(PROMPT, 101)],
            SamplingParams(50),
            lambda place: World([says()] if place == 0 else []),
            style="tool_call",
            max_turns=3,
            max_tokens=1000,
            tool_seconds=60.0,
        )
        assert [asked["images"] for asked in engine.asked] == [[images, ()], [images]]
        assert (seeing.rollout.images, blind.rollout.images) == (images, ())

    def test_an_image_token_that_the_model_says_asks_for_no_image(self) -> None:
        said = [*encode("ab"), EOS]
        engine = ScriptedEngine([[said, turn("c")]], image_token_id=said[1])
        (dialogue,) = lead([[]], [World([says()])], engine=engine)
        assert dialogue.rollout.response_ids[:3] == said
        prompt = engine.asked[1]["prompts"][0]
        assert prompt[len(PROMPT) :][:3] == [said[0], 0, EOS] and prompt[: len(PROMPT)] == PROMPT

    def test_an_end_of_turn_that_the_template_does_not_know_makes_way(self) -> None:
        style = ToolCalls(TOKENIZER)
        other = encode("#")
        rollout = Rollout([], [*encode("a"), *other], [], "stop")
        kept, shown = style.join(style.turn(rollout), "4")
        assert kept == encode("a")
        assert kept + shown == encode(
            "a<|im_end|>\n<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    @pytest.mark.parametrize(
        ("template", "words"),
        [
            ("{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}", "'tool'"),
            ("{% for m in messages if m.role == 'tool' %}{{ m.content }}{% endfor %}", "assistant"),
            ("{{ raise_exception('only users') }}", "only users"),
        ],
    )
    def test_a_template_without_tools_is_refused(self, template: str, words: str) -> None:
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = template
        with pytest.raises(ConfigError, match=words):
            ToolCalls(tokenizer)


class TestFenced:
    CODE = "I compute.\n```python\n2+2\n```"

    @pytest.mark.parametrize(
        ("sampled", "kept", "heard"),
        [
            # The model says the mark and imagines what follows.
            (
                spelt(CODE, "\n", "```", "output", "\n7\n```\nIt is 7"),
                spelt(CODE, "\n", "```", "output"),
                CODE + "\n",
            ),
            # It stops there, as an engine that knows the mark lets it.
            (spelt(CODE, "\n", "```output"), spelt(CODE, "\n", "```output"), CODE + "\n"),
            # One token holds the end of the line and the fence.
            (
                spelt(CODE, "\n```", "output", "\n7"),
                spelt(CODE, "\n```", "output"),
                CODE + "\n",
            ),
            # The last token reaches beyond the mark: it is the environment's to say.
            (spelt(CODE, "\n", "``", "`ou", "tput\n"), spelt(CODE, "\n"), CODE + "\n"),
            (spelt(CODE, "x```ou", "tput\n", "7"), spelt(CODE), CODE + "x"),
            # An end of turn instead.
            ([*spelt(CODE), EOS], spelt(CODE), CODE),
            ([*spelt(CODE, "\n"), EOS], spelt(CODE, "\n"), CODE + "\n"),
        ],
    )
    def test_the_turn_is_cut_where_the_mark_ends(
        self, sampled: list[int], kept: list[int], heard: str
    ) -> None:
        world = World([says("4")])
        (dialogue,) = lead([[sampled, turn("So 4.")]], [world], style="fenced")
        found = dialogue.rollout
        assert world.heard == [heard, "So 4."]
        assert dialogue.turns[0].finish_reason == "stop"
        newline = "" if heard != self.CODE else "\n"
        assert dialogue.text == heard + newline + OUTPUT + "So 4."
        last = turn("So 4.")
        said = [False] * len(kept) + [True] * (len(found.observed) - len(kept) - len(last))
        assert found.response_ids[: len(kept)] == kept
        assert found.observed == said + [False] * len(last)
        assert EOS not in found.response_ids[:-1] and found.response_ids[-1] == EOS
        seeds = [turn_seed(100, 0), turn_seed(100, 1)]
        assert found.logprobs == [
            *(logprob(seeds[0], i) for i in range(len(kept))),
            *[0.0] * (len(found.observed) - len(kept) - len(last)),
            *(logprob(seeds[1], i) for i in range(len(last))),
        ]

    def test_the_engine_is_asked_to_stop_at_the_mark(self) -> None:
        engine = ScriptedEngine([[turn("a")]])
        params = SamplingParams(50, stop_strings=("Observation:",))
        lead([[]], [World([])], engine=engine, style="fenced", params=params)
        assert engine.asked[0]["params"].stop_strings == ("Observation:", "```output")

    def test_a_block_of_the_environment_is_not_fenced_again(self) -> None:
        world = World([says("```output\n4\n```")])
        script = [turn(self.CODE + "\n"), turn("4")]
        (dialogue,) = lead([script], [world], style="fenced")
        assert dialogue.text == self.CODE + "\n" + OUTPUT + "4"

    def test_a_mark_within_a_turn_that_ran_out_of_tokens_still_ends_it(self) -> None:
        sampled = spelt(self.CODE, "\n", "```", "output", "\n7\n7\n7")
        params = SamplingParams(len(sampled) - 2)
        world = World([says()])
        script = [sampled, turn("4")]
        (dialogue,) = lead([script], [world], style="fenced", params=params)
        assert dialogue.rollout.finish_reason == "stop" and len(dialogue.turns) == 2

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.sampled_from([*LONG, "a", "é", "\n", "`", "€"]), max_size=12), st.booleans())
    def test_whole_tokens_up_to_the_mark_are_kept(self, parts: list[str], ends: bool) -> None:
        ids = [*spelt(*parts), *([EOS] if ends else [])]
        style = Fenced(TOKENIZER)
        found = style.turn(Rollout([], ids, [], "stop" if ends else "length"))
        text = "".join(parts)
        before, mark, _ = text.partition("```output")
        assert found.text == before
        if not mark:
            assert (found.ids, found.lead, found.marked) == (ids, "", False)
            return
        assert found.ids == ids[: len(found.ids)]
        whole = TOKENIZER.decode(found.ids)
        if found.marked:
            assert whole == before + mark and found.lead == ""
        else:
            assert whole + found.lead == before
            # One token more reaches into the mark, and no number of tokens ends with it.
            assert len(TOKENIZER.decode(ids[: len(found.ids) + 1])) > len(before)
            assert before + mark not in [TOKENIZER.decode(ids[:n]) for n in range(len(ids))]
        kept, shown = style.join(found, "4")
        joined = TOKENIZER.decode(kept + shown, skip_special_tokens=True)
        assert joined == before + OUTPUT


class TestGiven:
    """Worked dialogues, for supervised fine-tuning."""

    @pytest.mark.parametrize("style", ["tool_call", "fenced"])
    def test_one_is_the_rollout_of_a_model_that_says_just_that(self, style: Any) -> None:
        code = "```python\n2+2\n```"
        said = [code, "4", f"{code}\n", "ü", "So 4."]
        found = given_dialogue(TOKENIZER, style, PROMPT, said)
        asked = STYLES[style](TOKENIZER)
        script = [*(asked.given(text) for text in said[:-1:2]), turn("So 4.")]
        (sampled,) = lead([script], [World([says("4"), says("ü")])], style=style)
        assert sampled.turns[0].text.rstrip("\n") == code
        assert replace(sampled.rollout, logprobs=[], calls=0) == found
        assert (found.logprobs, found.finish_reason, found.prompt_ids) == ([], "stop", PROMPT)
        assert found.sampled_ids == [i for ids in script for i in ids]

    def test_a_single_message_has_no_flags(self) -> None:
        found = given_dialogue(TOKENIZER, None, PROMPT, ["So 4."])
        assert (found.response_ids, found.observed) == (turn("So 4."), [])


class TestSeeds:
    def test_every_turn_of_every_dialogue_has_its_own(self) -> None:
        seeds = {turn_seed(seed, k) for seed in (0, 1, 2**61) for k in range(50)}
        assert len(seeds) == 150 and all(0 <= seed < SEED_LIMIT for seed in seeds)

    def test_it_never_changes(self) -> None:
        # printf '7/turn 2' | sha256sum begins with 5b83883cc018670d; the seed is below 2**62.
        assert turn_seed(7, 2) == 0x1B83883CC018670D


class TestRealModel:
    STOPS = tuple(range(0, 256, 6))  # an untrained model hardly ever says EOS

    @pytest.fixture(scope="class")
    def engine(self) -> Any:
        from reopold.engines.hf import HFEngine
        from reopold.micro.models import build_model

        model = build_model(TOKENIZER, width=32, layers=1, seed=5)
        return HFEngine(model, TOKENIZER)

    def lead(self, engine: Any, seeds: Sequence[int], style: Any) -> list[Dialogue]:
        return run_dialogues(
            engine,
            TOKENIZER,
            [DialogueRequest(PROMPT + encode("x" * (seed % 3)), seed) for seed in seeds],
            SamplingParams(12, stop_ids=self.STOPS),
            lambda place: World([says(f"seen {place * 0}")] * 2),
            style=style,
            max_turns=3,
            max_tokens=120,
            tool_seconds=60.0,
        )

    @pytest.mark.parametrize("style", ["tool_call", "fenced"])
    def test_a_turn_is_what_the_engine_samples_after_all_before_it(
        self, engine: Any, style: Any
    ) -> None:
        seeds = [3, 4, 5, 6, 7, 8]
        together = self.lead(engine, seeds, style)
        assert len({len(dialogue.turns) for dialogue in together}) > 1
        for seed, dialogue in zip(seeds, together, strict=True):
            (alone,) = self.lead(engine, [seed], style)
            found = dialogue.rollout
            assert alone.rollout.logprobs == pytest.approx(found.logprobs, abs=1e-5)
            assert replace(alone.rollout, logprobs=[]) == replace(found, logprobs=[])
            place = 0
            for number, sampled in enumerate(dialogue.turns):
                (rollout,) = engine.generate(
                    [found.prompt_ids + found.response_ids[:place]],
                    SamplingParams(12, stop_ids=self.STOPS),
                    seeds=[turn_seed(seed, number)],
                    limits=[min(12, 120 - place)],
                )
                assert rollout.response_ids == sampled.ids
                place += len(sampled.ids)
                if style == "tool_call" and number + 1 < len(dialogue.turns):
                    place -= 1  # the template's end of turn in its place
                while place < len(found.observed) and found.observed[place]:
                    place += 1
