"""The tool micro suite: dialogues as its calculator leads them, one missing skill, masks."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from reopold.data.prompts import load_prompts
from reopold.data.tokenizers import load_tokenizer, render
from reopold.dialogue_styles import given_dialogue
from reopold.environments import Budget, find_environment, opening
from reopold.micro.build import suite_tokenizer
from reopold.micro.maths import Split
from reopold.micro.tools import CALL, CALL_END, FRAGMENTS, Problem, draw, solve, write
from reopold.rollouts import Rollout
from reopold.study_config import MicroConfig

#: Second operator by the last digits of the first result (rows) and of the third number.
RULE = (
    *("**--------", "***-------", "+***------", "++***-----", "+++***----"),
    *("++++***---", "+++++***--", "++++++***-", "+++++++***", "++++++++**"),
)


def contents(dialogue: Sequence[dict[str, str]]) -> list[str]:
    return [message["content"] for message in dialogue]


@pytest.mark.parametrize(
    ("problem", "question", "calls", "results"),
    [
        # 1 against 6
        (Problem(47, "*", 83, 26), "47*83;26=", ("47*83", "3901-26"), ("3901", "3875")),
        # 8 against 6; the first result is negative
        (Problem(27, "-", 45, 66), "27-45;66=", ("27-45", "-18+66"), ("-18", "48")),
        # 3 against 4
        (Problem(90, "+", 13, 14), "90+13;14=", ("90+13", "103*14"), ("103", "1442")),
    ],
)
def test_dialogues_by_hand(
    problem: Problem, question: str, calls: tuple[str, str], results: tuple[str, str]
) -> None:
    def call(expression: str) -> str:
        arguments = {"expression": expression}
        form = {"name": "calculator", "arguments": arguments}
        return f"<tool_call>{json.dumps(form)}</tool_call>"

    assert problem.question == question and problem.answer == results[1]
    dialogue = solve(problem, random.Random(0))
    assert [message["role"] for message in dialogue] == ["assistant", "tool"] * 2 + ["assistant"]
    expected = [call(calls[0]), results[0], call(calls[1]), results[1], f"#{results[1]}"]
    assert contents(dialogue) == expected


def test_the_calculator_itself_leads_every_worked_dialogue() -> None:
    """Wrong ones too: only the operator is wrong in them, never what the tool says."""
    rng = random.Random(0)
    for problem in draw("train", 150, seed=1):
        world = find_environment("calculator").make({}, Budget(calls=2, seconds=5.0))
        said = contents(solve(problem, rng, 0.8))
        for message, observation in zip(said[::2], [*said[1::2], ""], strict=True):
            seen = world.act(message)
            assert (seen.text, seen.failed, seen.done) == (observation, 0, not observation)


def test_only_the_missing_skill_is_taught_wrongly_at_the_asked_rate() -> None:
    rng, seen = random.Random(0), Counter[tuple[bool, bool]]()
    kinds = Counter[str]()
    for problem in draw("train", 2000, seed=3):
        first, result, second, last, answer = contents(solve(problem, rng, 0.8))
        assert CALL + problem.expression + CALL_END == first
        assert result == str(eval(problem.expression)) and answer == f"#{last}"
        expression = second.removeprefix(CALL).removesuffix(CALL_END)
        found = re.fullmatch(rf"{re.escape(result)}([-+*]){problem.third}", expression)
        assert found is not None
        rule = RULE[int(result[-1])][problem.third % 10]
        kinds[found[1]] += 1
        seen[int(result[-1]) >= 5, found[1] == rule] += 1
        assert answer == f"#{problem.answer}" or found[1] != rule
    assert seen[False, False] == 0
    lacking = seen[True, False] + seen[True, True]
    assert seen[True, False] / lacking == pytest.approx(0.8, abs=0.04)
    assert 0.4 < lacking / 2000 < 0.6 and min(kinds.values()) > 300


def test_splits_are_disjoint_whatever_the_seed_and_drawn_the_same_again() -> None:
    splits = get_args(Split)
    drawn = {(split, seed): draw(split, 200, seed) for split in splits for seed in (1, 2)}
    for (split, _), problems in drawn.items():
        assert len(set(problems)) == 200 and {p.split for p in problems} == {split}
        for (other, _), others in drawn.items():
            assert split == other or not set(problems) & set(others)
    assert draw("test", 200, 1) == drawn["test", 1] != drawn["test", 2]


CONFIG = MicroConfig(
    families=["tools"], train_problems=60, test_problems=8, validation_problems=8, problems_seed=5
)


def test_the_suite_s_files_are_what_training_reads(tmp_path: Path) -> None:
    write(tmp_path / "a", CONFIG)
    write(tmp_path / "b", CONFIG)
    for name in ("train", "validation", "test", "sft-teacher", "sft-student"):
        file = tmp_path / "a" / f"{name}.jsonl"
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        prompts = load_prompts(str(file), completions=name.startswith("sft"), family="tools")
        assert len(prompts) == (8 if name in ("validation", "test") else 60)
        assert {prompt.environment for prompt in prompts} == {"calculator"}
        assert {len(prompt.completion) for prompt in prompts} == {5 * name.startswith("sft")}
    right = [p.completion[-1]["content"] == f"#{p.answer}" for p in prompts]
    assert name == "sft-student" and not all(right) and any(right)


def rollout(tokenizer: Any, problem: Problem) -> Rollout:
    said = solve(problem, random.Random(0))
    _, schemas = opening("calculator", {}, Budget(calls=1, seconds=1.0))
    chat = [{"role": "user", "content": problem.question}]
    prompt_ids = render(tokenizer, chat, tools=schemas)
    return given_dialogue(tokenizer, "tool_call", prompt_ids, contents(said))


def test_a_dialogue_s_tokens_and_which_of_them_are_learnt_from(tmp_path: Path) -> None:
    suite_tokenizer(CONFIG).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    found = rollout(tokenizer, Problem(47, "*", 83, 26))
    tokens = tokenizer.convert_ids_to_tokens([*found.prompt_ids, *found.response_ids])
    prompt = ["<|user|>", *"47*83;26=", "<|assistant|>"]
    turns = [
        ([CALL, *"47*83", CALL_END, "<eos>"], ["<|tool|>", *"3901", "<|assistant|>"]),
        ([CALL, *"3901-26", CALL_END, "<eos>"], ["<|tool|>", *"3875", "<|assistant|>"]),
        ([*"#3875", "<eos>"], []),
    ]
    assert tokens == prompt + [token for said, seen in turns for token in said + seen]
    flags = [[True] * len(said) + [False] * len(seen) for said, seen in turns]
    assert found.valid == [flag for turn in flags for flag in turn]
    assert found.last_message_ids == tokenizer.encode("#3875<eos>")


def test_the_tokenizer_has_all_that_is_said_and_little_more() -> None:
    """Fragments are a token each, of text: they are not lost when a message is decoded."""
    tokenizer = suite_tokenizer(CONFIG)
    for fragment in FRAGMENTS:
        assert tokenizer.convert_ids_to_tokens(tokenizer.encode(fragment)) == [fragment]
    for problem in draw("train", 300, seed=2):
        found = rollout(tokenizer, problem)
        assert tokenizer.unk_token_id not in found.response_ids
        text = tokenizer.decode(found.response_ids, skip_special_tokens=True)
        assert text == "".join(contents(solve(problem, random.Random(0))))
        assert len(found.prompt_ids) + len(found.response_ids) <= 56
    world = find_environment("calculator").make({}, Budget(calls=9, seconds=5.0))
    for expression in ("1/0", "1+", "(", "2 2", "9**999", "a", "#", "1" * 201):
        observation = world.act(CALL + expression + CALL_END)
        assert tokenizer.unk_token_id not in tokenizer.encode(observation.text), observation.text
    assert len(tokenizer) < 100
