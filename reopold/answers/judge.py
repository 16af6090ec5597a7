"""Outcome rewards: whether responses end with the right answer, by the rule that a recipe names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from reopold.answers.marked import answer_reward
from reopold.answers.thinking import answer_text
from reopold.config import Reward
from reopold.environments.calls import ToolCall, call_blocks, parsed, read_call

Judge = Callable[[Sequence[str], Sequence[str]], list[float]]


def judge_marked(responses: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Of the embedded suite: the text after the last `#` is the answer."""
    return [answer_reward(*pair) for pair in zip(responses, answers, strict=True)]


def judge_maths(responses: Sequence[str], answers: Sequence[str]) -> list[float]:
    r"""The clearly stated answer after the thought (`\boxed{}` first), equal as mathematics.

    A thought that is never closed has no answer. What cannot be judged within a worker's limits
    (:mod:`reopold.answers.workers`) is wrong.
    """
    from reopold.answers.workers import call_in_workers  # sympy and its like stay in them

    calls = list(zip(responses, answers, strict=True))
    results = call_in_workers("reopold.answers.judge:maths_is_right", calls)
    return [float(result.status == "ok" and result.value) for result in results]


def maths_is_right(response: str, answer: str) -> bool:
    """One response of :func:`judge_maths`; may hang or take the memory."""
    from reopold.answers.equality import equal
    from reopold.answers.extract import final_answer

    text = answer_text(response)
    stated = final_answer(text) if text is not None else None
    return stated is not None and equal(answer, stated)


def judge_calls(responses: Sequence[str], answers: Sequence[str]) -> list[float]:
    """The calls are those of the answer, in any order, with the same arguments.

    An answer is a JSON list of `{"name", "arguments"}`; of an empty one, no call is right.
    """
    pairs = zip(responses, answers, strict=True)
    return [float(_counted(_said_calls(said)) == expected_calls(gold)) for said, gold in pairs]


def expected_calls(answer: str) -> Counter[str]:
    """Raises ValueError: the answer is no JSON list of well-formed calls."""
    calls = json.loads(answer)
    if not isinstance(calls, list):
        raise ValueError("the answer must be a JSON list of calls")
    read = [read_call(call) for call in calls]
    if faults := [call.fault for call in read if call.fault]:
        raise ValueError(faults[0])
    return _counted(read)


def _said_calls(response: str) -> list[ToolCall]:
    """The calls of all `<tool_call>` blocks. A block holds a call, or one on each line (ToolRL),
    with `arguments` or `parameters`."""
    written = (call for block in call_blocks(response) for call in _in_block(block))
    return [read_call(_with_arguments(call)) for call in written]


def _in_block(block: str) -> list[Any]:
    """The JSON of a block, as a whole or by lines; None for a block that is neither."""
    for texts in ([block], block.splitlines()):
        with suppress(ValueError, RecursionError):
            return [parsed(text) for text in texts if text.strip()]
    return [None]


def _with_arguments(call: Any) -> Any:
    if isinstance(call, dict) and "parameters" in call and "arguments" not in call:
        return {"name": call.get("name"), "arguments": call["parameters"]}
    return call


def _counted(calls: Sequence[ToolCall]) -> Counter[str]:
    return Counter(map(_written, calls))


def _written(call: ToolCall) -> str:
    """Equal for equal calls; 1.0 is 1."""
    try:
        return json.dumps([call.name, _whole(call.arguments), call.fault], sort_keys=True)
    except RecursionError:
        return "nested too deep"


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


JUDGES: dict[Reward, Judge] = {
    "final_answer": judge_marked,
    "maths": judge_maths,
    "calls": judge_calls,
}
