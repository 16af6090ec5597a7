"""Functions between a model's turns: what a call must be, and that no message breaks anything."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reopold.environments import ENVIRONMENTS, Budget
from reopold.environments.base import Environment, Observation
from reopold.environments.functions import CALCULATOR, USED_UP, Function, FunctionEnvironment
from reopold.environments.schemas import check_schema, fault_of


def call(arguments: Any, name: str = "calculator") -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def ask(expression: str) -> str:
    return call({"expression": expression})


def calculator(**budgets: Any) -> FunctionEnvironment:
    return FunctionEnvironment([CALCULATOR], **budgets)


@pytest.mark.parametrize(
    ("message", "text", "calls", "failed"),
    [
        (ask("6*7"), "42", 1, 0),
        ("Hm. " + ask("6*7") + ask("1/8") + " and so on", "42\n0.125", 2, 0),
        (ask("6*7").removesuffix("</tool_call>"), "42", 1, 0),
        (call(json.dumps({"expression": "3"})), "3", 1, 0),
        ("<think>" + ask("1") + "</think>" + ask("2"), "2", 1, 0),
        (ask("1/0"), "Error: division by zero", 1, 1),
        (ask("1") + ask("1+"), "1\nError: a number is missing at the end", 2, 1),
        (
            call({}, "bash"),
            "Error: there is no function 'bash'; there are: calculator",
            1,
            1,
        ),
        (call({}), "Error: 'expression' is missing", 1, 1),
        (call({"expression": 3}), "Error: 'expression' must be of type string", 1, 1),
        (call({"expression": "3", "precision": 2}), "Error: there is no 'precision'", 1, 1),
        (call([3]), "Error: the arguments are not a JSON object", 1, 1),
        (
            '<tool_call>{"name": "calculator"}</tool_call>',
            "Error: 'expression' is missing",
            1,
            1,
        ),
        (
            '<tool_call>{"expression": "3"}</tool_call>',
            'Error: the call is not of the form {"name": ..., "arguments": {...}}',
            1,
            1,
        ),
    ],
)
def test_every_call_is_carried_out_in_order(
    message: str, text: str, calls: int, failed: int
) -> None:
    environment = calculator()
    assert environment.act(message) == Observation(text, False, calls, failed)
    assert (environment.calls, environment.failed) == (calls, failed)


NAN = '{"name": "calculator", "arguments": {"expression": NaN}}'


@pytest.mark.parametrize("inner", ["", "6*7", "{", "[" * 100_000, NAN, "1" * 5000])
def test_a_call_that_is_no_json_is_the_models_mistake(inner: str) -> None:
    observation = calculator().act(f"<tool_call>{inner}</tool_call>")
    assert observation.text.startswith("Error: the call is no")
    assert (observation.done, observation.calls, observation.failed) == (False, 1, 1)


@pytest.mark.parametrize(
    "message", ["", "#42", "<think>" + ask("1"), "<tool_response>" + ask("1") + "</tool_response>"]
)
def test_a_message_without_a_call_is_an_answer(message: str) -> None:
    assert calculator().act(message) == Observation("", done=True)


PIECES = st.one_of(
    st.sampled_from(
        [
            *("<tool_call>", "</tool_call>", "<think>", "</think>", "<tool_response>"),
            *('{"name": "calculator", "arguments": {"expression": "', '"}}', '"', "{", "}", "\\"),
            *("**", "9", "(", "-", "/", "0", "calculator"),
        ]
    ),
    st.text(max_size=8),
)


@settings(max_examples=100, deadline=2000)
@given(st.lists(PIECES, max_size=24).map("".join))
@example(ask("9**9**9**9"))
@example(ask("(" * 200))
@example(ask("\ud800"))
def test_no_message_raises_or_hangs(message: str) -> None:
    environment = calculator()
    seen = environment.act(message)
    assert seen.failed <= seen.calls and seen.done == (seen.calls == 0)
    assert bool(seen.text) != seen.done and len(seen.text) <= 2001 * max(seen.calls, 1)


def test_a_budget_of_calls_is_kept_and_a_message_beyond_it_ends_the_dialogue() -> None:
    environment = calculator(calls=2)
    assert environment.act(ask("1")).text == "1"
    assert environment.act(ask("2") + ask("3")) == Observation("2\n" + USED_UP.format(2), False, 2)
    assert environment.act(ask("4")) == Observation("", True, 1)
    assert (environment.calls, environment.failed) == (4, 0)


def test_a_function_that_raises_or_returns_what_is_no_json_is_told() -> None:
    def broken(how: str) -> Any:
        if how == "raise":
            raise RuntimeError("the data base is away")
        if how == "silent":
            raise LookupError
        return {"a": {1, 2}} if how == "set" else {"a": [1, None]}

    schema = {
        "type": "object",
        "properties": {"how": {"type": "string", "enum": ["raise", "silent", "set", "object"]}},
        "required": ["how"],
    }
    environment = FunctionEnvironment([Function("f", "", schema, broken)])
    told = [environment.act(call({"how": how}, "f")).text for how in ("raise", "silent", "object")]
    assert told == ["Error: the data base is away", "Error: LookupError", '{"a": [1, null]}']
    assert environment.act(call({"how": "set"}, "f")).failed == 1
    refused = environment.act(call({"how": "x"}, "f")).text
    assert refused == "Error: 'how' must be one of 'raise', 'silent', 'set', 'object'"


def test_a_function_that_takes_too_long_is_answered_for() -> None:
    release = threading.Event()

    def late() -> str:
        release.wait(20)
        return "at last"

    function = Function("late", "", {"type": "object", "properties": {}}, late)
    environment = FunctionEnvironment([function, CALCULATOR], seconds=0.1)
    started = time.perf_counter()
    found = environment.act(call({}, "late") + ask("6*7"))
    assert time.perf_counter() - started < 2
    assert found == Observation("Error: late took longer than 0.1 seconds\n42", False, 2, 1)
    release.set()


def test_a_long_result_is_cut_to_both_ends() -> None:
    function = Function("f", "", {"type": "object"}, lambda: "a" * 3000 + "b" * 3000)
    text = FunctionEnvironment([function]).act(call({}, "f")).text
    assert text == "a" * 1000 + "b" * 1000


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(ValueError, match="pattern, which is not checked"):
        Function("f", "", {"type": "object", "properties": {"a": {"pattern": "x"}}}, str)
    with pytest.raises(ValueError, match="must be one of object"):
        check_schema({"type": ["string", "null"]})
    with pytest.raises(ValueError, match="true or false"):
        check_schema({"additionalProperties": {"type": "string"}})
    with pytest.raises(ValueError, match="one name"):
        FunctionEnvironment([CALCULATOR, CALCULATOR])
    with pytest.raises(ValueError, match="positive"):
        calculator(calls=0)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([1.0, 2.5]), st.sampled_from("ab")
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=6,
)
TYPES = st.sampled_from(["object", "array", "string", "number", "integer", "boolean", "null"])
SCHEMAS = st.recursive(
    st.fixed_dictionaries(
        {}, optional={"type": TYPES, "enum": st.lists(SCALARS, min_size=1, max_size=3)}
    ),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
        st.fixed_dictionaries(
            {"properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=3)},
            optional={
                "type": st.just("object"),
                "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
                "additionalProperties": st.booleans(),
            },
        ),
    ),
    max_leaves=5,
)


@settings(max_examples=80, deadline=None)
@given(SCHEMAS, VALUES)
def test_schemas_mean_what_they_mean_elsewhere(schema: dict[str, Any], value: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    check_schema(schema)
    assert (fault_of(value, schema, "it") == "") == jsonschema.Draft202012Validator(
        schema
    ).is_valid(value)


def test_the_calculator_is_an_environment_whose_schema_the_prompt_shows() -> None:
    world = ENVIRONMENTS["calculator"].make({}, Budget(calls=1, seconds=5.0))
    assert isinstance(world, Environment)
    (schema,) = world.schemas
    check_schema(schema["function"]["parameters"])
    assert schema["type"] == "function" and schema["function"]["name"] == "calculator"
    assert world.act(ask("1") + ask("2")).text == "1\n" + USED_UP.format(1)
    world.close()
