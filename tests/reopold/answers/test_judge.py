"""Outcome rewards: what counts as a right end of a response, by rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.grading import grade
from reopold.answers.judge import JUDGES, expected_calls
from reopold.answers.thinking import opened_thought
from reopold.config import ConfigError, DataConfig
from reopold.data.prompts import load_mix

WEATHER = {"name": "weather", "arguments": {"city": "Rome", "days": 2}}
CLOCK = {"name": "clock", "arguments": {}}


def tagged(*calls: object) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        (r"<think>hm</think> It is \boxed{\frac{1}{2}}.", "0.5", True),
        (r"<think>hm</think> It is \boxed{\frac{1}{2}}.", r"\dfrac12", True),
        (r"<think>hm</think> The answer is 7.", "7", True),
        (r"<think>first \boxed{7}</think> no, \boxed{8}", "7", False),
        (r"<think>a guess \boxed{7}, and then the budget ended", "7", False),
        ("seven", "7", False),
        (r"\boxed{7", "7", False),
    ],
)
def test_maths(response: str, answer: str, right: bool) -> None:
    assert JUDGES["maths"]([response], [answer]) == [float(right)]
    # The grader of the maths benchmarks says the same.
    assert grade("math500", response, {"answer": answer}).correct == right


def test_an_answer_that_hangs_the_parser_is_wrong() -> None:
    assert JUDGES["maths"]([r"\boxed{10^{10^{10^{10}}}}", r"\boxed{3}"], ["3", "3"]) == [0.0, 1.0]


def test_the_rewards_of_a_batch_are_in_its_order() -> None:
    responses = [rf"\boxed{{{i}}}" for i in range(40)]
    answers = [str(i if i % 3 else i + 1) for i in range(40)]
    assert JUDGES["maths"](responses, answers) == [float(i % 3 > 0) for i in range(40)]
    assert JUDGES["final_answer"](["2+2 # 4", "4"], ["4", "4"]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        (tagged(WEATHER), [WEATHER], True),
        (tagged(CLOCK, WEATHER), [WEATHER, CLOCK], True),
        ("<think>" + tagged(CLOCK) + "</think>" + tagged(WEATHER), [WEATHER], True),
        (tagged(WEATHER, WEATHER), [WEATHER], False),
        (tagged(WEATHER), [WEATHER, CLOCK], False),
        (tagged({**WEATHER, "arguments": {"city": "Rome"}}), [WEATHER], False),
        (tagged({**WEATHER, "arguments": {"days": 2, "city": "Rome"}}), [WEATHER], True),
        ("<tool_call>{oops</tool_call>", [], False),
        (
            f"<tool_call>\n{json.dumps(CLOCK)}\n{json.dumps(WEATHER)}\n</tool_call>",
            [WEATHER, CLOCK],
            True,
        ),
        (f"<tool_call>\n{json.dumps(CLOCK)}\n{{oops\n</tool_call>", [CLOCK], False),
        (tagged({"name": "weather", "parameters": WEATHER["arguments"]}), [WEATHER], True),
        (tagged(7), [], False),
        (tagged({**WEATHER, "arguments": {"city": "Rome", "days": 2.0}}), [WEATHER], True),
        (tagged({**WEATHER, "arguments": {"city": "Rome", "days": True}}), [WEATHER], False),
        ("<tool_call>" + "[" * 5000, [], False),  # round in circles within a call
        ('<tool_call>{"name": "clock", "arguments": ' + '{"a": ' * 5000, [CLOCK], False),
        ('<tool_call>{"name": "clock", "arguments": {"a": NaN}}', [], False),
        ("No tool can do that.", [], True),
        (tagged(CLOCK), [], False),
    ],
)
def test_calls(response: str, gold: list[object], right: bool) -> None:
    assert JUDGES["calls"]([response], [json.dumps(gold)]) == [float(right)]


@pytest.mark.parametrize("answer", ["7", "{", '[{"arguments": {}}]', '["clock"]'])
def test_answers_that_are_no_calls_are_refused_before_any_work(answer: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"call|Expecting"):
        expected_calls(answer)
    line = {"id": "p7", "prompt": [{"role": "user", "content": "?"}], "answer": answer}
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps(line), encoding="utf-8")
    with pytest.raises(ConfigError, match="prompt p7: its answer is no JSON list of calls"):
        load_mix(DataConfig(train=str(file), reward="calls"), "tools", 0)


class Decoder:
    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def test_a_thought_that_the_template_opened_is_part_of_the_response() -> None:
    opened = opened_thought(Decoder(), list(map(ord, "<think>\n")))
    cut = rf"{opened}a guess \boxed{{7}}, and then the budget ended"
    assert JUDGES["maths"]([cut], ["7"]) == [0.0]
    assert JUDGES["maths"]([rf"{opened}so</think>\boxed{{7}}"], ["7"]) == [1.0]
    assert opened_thought(Decoder(), list(map(ord, "Answer:"))) == ""
