"""Code in a model's messages, and what it is answered."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from reopold.environments.base import Environment, Observation
from reopold.environments.python import NO_OUTPUT, RESTARTED, USED_UP, PythonEnvironment
from reopold.sandbox import Limits, SandboxFailure, child, modes

LIMITS = Limits(seconds=20.0, memory_bytes=500 << 20)


@pytest.fixture
def fenced() -> Iterator[PythonEnvironment]:
    environment = PythonEnvironment(calls=100, limits=LIMITS)
    yield environment
    environment.close()


@pytest.fixture
def tagged() -> Iterator[PythonEnvironment]:
    environment = PythonEnvironment("tool_call", calls=100, limits=LIMITS)
    yield environment
    environment.close()


def block(code: str) -> str:
    return f"Let me see.\n```python\n{code}\n```\n"


def call(code: str, name: str = "python") -> str:
    text = json.dumps({"name": name, "arguments": {"code": code}})
    return f"<tool_call>\n{text}\n</tool_call>"


def output(text: str) -> str:
    return f"```output\n{text}\n```"


def test_it_is_an_environment(fenced: PythonEnvironment) -> None:
    environment: Environment = fenced
    assert environment.act("no code") == Observation("", done=True)


def test_a_dialogue_in_fences(fenced: PythonEnvironment) -> None:
    error = "ZeroDivisionError: division by zero"
    says = [
        (block("x = 3\nprint(x)"), Observation(output("3"), False, 1, 0)),
        (block("x ** 2"), Observation(output("9"), False, 1, 0)),
        (block("print(1)\nx"), Observation(output("1\n3"), False, 1, 0)),
        (block("y = 2"), Observation(output(NO_OUTPUT), False, 1, 0)),
        (block("print(4)\n1/0"), Observation(output(f"4\n{error}"), False, 1, 1)),
        ("The answer is \\boxed{9}.", Observation("", True, 0, 0)),
    ]
    for message, observation in says:
        assert fenced.act(message) == observation


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("```python\nprint(1)\n```", "1"),
        ("```py\nprint(1)\n```", "1"),
        ("```Python3  \nprint(1)\n```", "1"),
        ("  ```python\n  print(1) if 1 else 2\n  ```", None),
        (block("print(1)") + block("print(2)"), "2"),
        (block("print(1)") + "```output\n5\n```", "1"),
        (block("print(1)") + "```output", "1"),
        (block("print(1)") + "Now I run it.", "1"),
        ("First \\boxed{3}.\n" + block("print(1)"), "1"),
        ("<think>\n" + block("print(1)") + "</think>" + block("print(2)"), "2"),
        (block("print('```')"), "```"),
    ],
)
def test_the_last_fenced_block_is_run(
    fenced: PythonEnvironment, message: str, text: str | None
) -> None:
    observation = fenced.act(message)
    assert not observation.done and observation.calls == 1
    if text is not None:
        assert observation.text == output(text)


@pytest.mark.parametrize(
    "message",
    [
        "",
        "The answer is 5.",
        "```python\nprint(1)\n",
        "```cpp\nint x;\n```",
        "```\nprint(1)\n```",
        "`python print(1)`",
        block("print(1)") + "So it is \\boxed{1}.",
        "<think>\n" + block("print(1)") + "</think>\nIt is 1.",
        "<think>\n" + block("print(1)"),
        call("print(1)"),
    ],
)
def test_a_message_without_a_call_is_an_answer(fenced: PythonEnvironment, message: str) -> None:
    assert fenced.act(message) == Observation("", done=True)
    assert (fenced.calls, fenced.failed) == (0, 0)


@pytest.mark.parametrize(
    ("message", "text", "calls", "failed"),
    [
        (call("6 * 7"), "42", 1, 0),
        ("Hm. " + call("print(1)") + call("2") + " and so on", "1\n2", 2, 0),
        (call("z = 1"), NO_OUTPUT, 1, 0),
        (call("print(1)\n[][0]"), "1\nIndexError: list index out of range", 1, 1),
        (call("1").removesuffix("</tool_call>"), "1", 1, 0),
        (call("1", "bash"), "Error: there is no tool 'bash', only 'python'", 1, 1),
        (call("1") + call("1", "bash"), "1\nError: there is no tool 'bash', only 'python'", 2, 1),
        (call("3").replace('{"code": "3"}', json.dumps('{"code": "3"}')), "3", 1, 0),
        ("<think>" + call("1") + "</think>" + call("2"), "2", 1, 0),
    ],
)
def test_every_tool_call_is_run_in_order(
    tagged: PythonEnvironment, message: str, text: str, calls: int, failed: int
) -> None:
    assert tagged.act(message) == Observation(text, False, calls, failed)
    assert (tagged.calls, tagged.failed) == (calls, failed)


@pytest.mark.parametrize(
    "inner",
    [
        "",
        "print(1)",
        "[]",
        "3",
        '{"name": "python"}',
        '{"name": "python", "arguments": {}}',
        '{"name": "python", "arguments": "x"}',
        '{"name": "python", "arguments": ["code"]}',
        '{"arguments": {"code": "1"}}',
        "[" * 100_000,
    ],
)
def test_a_malformed_call_is_the_models_mistake(tagged: PythonEnvironment, inner: str) -> None:
    observation = tagged.act(f"<tool_call>{inner}</tool_call>")
    assert "not of the form" in observation.text
    assert (observation.done, observation.calls, observation.failed) == (False, 1, 1)


def test_code_that_is_no_text_is_the_models_mistake(tagged: PythonEnvironment) -> None:
    message = '<tool_call>{"name": "python", "arguments": {"code": 3}}</tool_call>'
    assert tagged.act(message) == Observation("Error: 'code' must be a text", False, 1, 1)


def test_the_namespace_is_the_dialogues_own(tagged: PythonEnvironment) -> None:
    tagged.act(call("x = 1"))
    assert tagged.act(call("x + 1")).text == "2"
    other = PythonEnvironment("tool_call", limits=LIMITS)
    assert other.act(call("x")).text == "NameError: name 'x' is not defined"
    other.close()


def test_an_observation_is_cut_to_both_ends() -> None:
    environment = PythonEnvironment("tool_call", characters=256, limits=LIMITS)
    found = environment.act(call("print('a' * 500 + 'b' * 500)"))
    assert found.text == "a" * 128 + "b" * 128
    failed = environment.act(call("print('a' * 500)\n1/0"))
    assert failed.text.endswith("\nZeroDivisionError: division by zero")
    assert len(failed.text) == 256
    environment.close()


def test_a_budget_of_calls_is_kept_and_a_second_call_beyond_it_ends_the_dialogue() -> None:
    environment = PythonEnvironment(calls=2, limits=LIMITS)
    assert environment.act(block("x = 1; print(x)")).text == output("1")
    assert environment.act(block("1/0")).failed == 1
    third = environment.act(block("print(x)"))
    assert third == Observation(output(USED_UP.format(2)), False, 1, 0)
    assert environment.act(block("print(x)")) == Observation("", True, 1, 0)
    assert (environment.calls, environment.failed) == (4, 1)
    environment.close()


def test_calls_of_one_message_beyond_the_budget_are_not_run() -> None:
    environment = PythonEnvironment("tool_call", calls=1, limits=LIMITS)
    found = environment.act(call("1") + call("2"))
    assert found == Observation("1\n" + USED_UP.format(1), False, 2, 0)
    assert environment.act("So it is 1.").done
    environment.close()


def test_a_call_that_takes_too_long_is_a_failure_and_loses_the_names() -> None:
    environment = PythonEnvironment("tool_call", limits=Limits(seconds=0.5))
    environment.act(call("x = 1"))
    found = environment.act(call("while True: pass"))
    assert found.text == f"TimeoutError: the cell took longer than 0.5 seconds\n{RESTARTED}"
    assert (found.done, found.calls, found.failed) == (False, 1, 1)
    assert environment.act(call("x")).text == "NameError: name 'x' is not defined"
    environment.close()


def test_a_failure_of_the_sandbox_is_never_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    modes.mode()
    monkeypatch.setattr(child, "_PYTHON", ("/nowhere/python",))
    environment = PythonEnvironment(limits=LIMITS)
    with pytest.raises(SandboxFailure):
        environment.act(block("1"))
    assert environment.failed == 0
    environment.close()


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="no form 'xml'"):
        PythonEnvironment("xml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be positive: 0 calls"):
        PythonEnvironment(calls=0)
    with pytest.raises(ValueError, match="0 characters"):
        PythonEnvironment(characters=0)
