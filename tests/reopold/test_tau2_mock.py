"""The mock domain's tools, one at a time, on a database written down here."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reopold.config import ConfigError
from reopold.environments.calls import ToolCall, read_calls, without_calls
from reopold.environments.tau2_mock import AGENT_TOOLS, USER_TOOLS, Tau2Mock

DB: dict[str, Any] = {
    "tasks": {"task_1": {"task_id": "task_1", "title": "Old", "status": "pending"}},
    "users": {"ann": {"user_id": "ann", "name": "Ann", "tasks": ["task_1"]}},
}
USER_DB = {"notifications": {"n1": {"notification_id": "n1", "message": "Hello."}}}


def world(task: dict[str, Any] | None = None, solo: bool = True) -> Tau2Mock:
    return Tau2Mock(DB, "Be kind.", {**(task or {"id": "t"}), "user_db": USER_DB}, solo)


def block(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_create_task() -> None:
    env = world()
    seen = env.act("I will. " + block("create_task", user_id="ann", title="New"))
    made = {"task_id": "task_2", "title": "New", "description": None, "status": "pending"}
    assert (seen.done, seen.calls, seen.failed) == (False, 1, 0)
    assert json.loads(seen.text) == made
    state = json.loads(env.agent_state)
    assert state["tasks"]["task_2"] == made
    assert state["users"]["ann"]["tasks"] == ["task_1", "task_2"]
    env.act(block("create_task", user_id="ann", title="Third", description="Why."))
    assert json.loads(env.agent_state)["tasks"]["task_3"]["description"] == "Why."
    assert "task_2" not in DB["tasks"]  # what was handed over stays as it was


def test_update_task_status() -> None:
    env = world()
    seen = env.act(block("update_task_status", task_id="task_1", status="completed"))
    assert json.loads(seen.text)["status"] == "completed"
    assert json.loads(env.agent_state)["tasks"]["task_1"]["status"] == "completed"


@pytest.mark.parametrize("solo", [True, False])
def test_reading_changes_nothing(solo: bool) -> None:
    env = world(solo=solo)
    before = env.agent_state, env.user_state
    users = json.loads(env.act(block("get_users")).text)
    assert users == [{"user_id": "ann", "name": "Ann", "tasks": ["task_1"]}]
    assert env.act(block("transfer_to_human_agents", summary="x")).text == "Transfer successful"
    inbox, worked = env.call(ToolCall("check_notifications"), "user")
    assert worked and json.loads(inbox) == [
        {"notification_id": "n1", "message": "Hello.", "status": "unread", "task_id": None}
    ]
    assert (env.agent_state, env.user_state) == before


def test_whose_tools_are_whose() -> None:
    dismiss = ToolCall("dismiss_notification", {"notification_id": "n1"})
    alone, together = world(), world(solo=False)
    assert alone.call(dismiss) == ("Notification n1 dismissed", True)
    assert together.call(dismiss) == ("Error: Tool 'dismiss_notification' not found.", False)
    assert json.loads(together.user_state)["notifications"]["n1"]["status"] == "unread"
    assert together.call(dismiss, "user") == ("Notification n1 dismissed", True)
    assert json.loads(together.user_state)["notifications"]["n1"]["status"] == "read"
    assert not together.call(ToolCall("get_users"), "user")[1]
    # Helpers of task records are nobody's tools.
    assert not alone.call(ToolCall("assert_task_status", {}))[1]
    assert not alone.call(ToolCall("add_notification", {}))[1]


@pytest.mark.parametrize(
    "call",
    [
        block("delete_task", task_id="task_1"),
        block("create_task", user_id="bob", title="x"),
        block("create_task", user_id=["ann"], title="x"),
        block("create_task", user_id="ann"),
        block("create_task", user_id="ann", title=5),
        block("create_task", user_id="ann", title="x", description=5),
        block("create_task", user_id="ann", title="x", priority=1),
        block("create_task", self=1),
        block("update_task_status", task_id="task_9", status="completed"),
        block("update_task_status", task_id="task_1", status={"a": 1}),
        block("get_users", limit=1),
        block("dismiss_notification", notification_id="n2"),
        "<tool_call>\n{\n</tool_call>",
        "<tool_call>\n[]\n</tool_call>",
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "get_users", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "get_users", "arguments": "["}</tool_call>',
        "<tool_call>" + "[" * 99999 + "</tool_call>",
        '<tool_call>{"name": "create_task", "arguments": {"user_id": ' + "[" * 900 + "]" * 900
        + "}}</tool_call>",
    ],
)  # fmt: skip
def test_mistakes_are_answered_and_change_nothing(call: str) -> None:
    env = world()
    before = env.agent_state, env.user_state
    seen = env.act(call)
    assert seen.text.startswith("Error: ") and len(seen.text) < 400
    assert (seen.done, seen.calls, seen.failed) == (False, 1, 1)
    assert (env.agent_state, env.user_state) == before


def test_several_calls_in_order() -> None:
    env = world()
    seen = env.act(
        block("create_task", user_id="ann", title="New")
        + block("nothing")
        + block("update_task_status", task_id="task_2", status="completed")
    )
    assert (seen.calls, seen.failed) == (3, 1)
    first, second, third = seen.text.split("\n")
    assert json.loads(first)["status"] == "pending"
    assert second == "Error: Tool 'nothing' not found."
    assert json.loads(third)["status"] == "completed"


def test_a_message_without_a_call_ends_the_dialogue() -> None:
    for message in (
        "Done.",
        "",
        f"<think>{block('get_users')}",
        f"{block('get_users')}</think>No.",
    ):
        seen = world().act(message)
        assert (seen.text, seen.done, seen.calls) == ("", True, 0)
    world().close()


def test_reading_messages() -> None:
    call = block("get_users")
    wanted = [ToolCall("get_users")]
    assert read_calls(f"<think>{block('create_task')}</think>Look: {call}") == wanted
    assert read_calls(f"thought {block('create_task')}</think>{call}") == wanted
    assert read_calls(f"{call}<tool_response>{block('create_task')}</tool_response>") == wanted
    assert read_calls(call.removesuffix("</tool_call>")) == wanted
    assert read_calls('<tool_call>{"function": {"name": "get_users"}}</tool_call>') == wanted
    assert without_calls(f"<think>a</think>Look: {call} there.") == "Look:  there."


def test_initial_state() -> None:
    task = {
        "id": "t",
        "initial_state": {
            "initialization_data": {
                "agent_data": {"users": {"ann": {"tasks": ["task_1", "task_7"]}}},
                "user_data": {"notifications": {"n3": {"notification_id": "n3", "message": "3"}}},
            },
            "initialization_actions": [
                {"env_type": "user", "func_name": "add_notification",
                 "arguments": {"notification_id": "n2", "message": "Two.", "task_id": "task_1"}},
                {"env_type": "assistant", "func_name": "create_task",
                 "arguments": {"user_id": "ann", "title": "Begun"}},
            ],
            "message_history": [
                {"role": "user", "content": "Hi."},
                {"role": "assistant", "tool_calls": [
                    {"id": "1", "name": "update_task_status",
                     "arguments": {"task_id": "task_2", "status": "completed"}}]},
                {"role": "tool", "id": "1", "content": "..."},
                {"role": "user", "tool_calls": [
                    {"id": "2", "name": "dismiss_notification",
                     "arguments": {"notification_id": "n2"}}]},
            ],
        },
    }  # fmt: skip
    env = world(task)
    state, inbox = json.loads(env.agent_state), json.loads(env.user_state)["notifications"]
    assert state["users"]["ann"] == {
        "user_id": "ann",
        "name": "Ann",
        "tasks": ["task_1", "task_7", "task_2"],
    }
    assert state["tasks"]["task_2"]["status"] == "completed"
    assert (inbox["n2"]["status"], inbox["n3"]["status"]) == ("read", "unread")


@pytest.mark.parametrize(
    ("function", "arguments", "met"),
    [
        ("assert_task_status", {"task_id": "task_1", "expected_status": "pending"}, True),
        ("assert_task_status", {"task_id": "task_1", "expected_status": "completed"}, False),
        ("assert_task_status", {"task_id": "task_2", "expected_status": "pending"}, False),
        ("assert_number_of_tasks", {"user_id": "ann", "expected_number": 1}, True),
        ("assert_number_of_tasks", {"user_id": "ann", "expected_number": 2}, False),
        (
            "assert_notification_status",
            {"notification_id": "n1", "expected_status": "unread"},
            True,
        ),
        ("assert_notification_status", {"notification_id": "n2", "expected_status": "read"}, False),
        ("no_such_assertion", {}, False),
    ],
)
def test_assertions(function: str, arguments: dict[str, Any], met: bool) -> None:
    env = world()
    assertion = {"func_name": function, "arguments": arguments}
    assert env.holds(assertion) == met
    if function.startswith("assert") and "_2" not in str(arguments) and "n2" not in str(arguments):
        assert env.holds({**assertion, "assert_value": False}) == (not met)


@pytest.mark.parametrize(
    ("db", "task"),
    [
        ({"tasks": {}}, {"id": "t"}),
        ({"tasks": [], "users": {}}, {"id": "t"}),
        ({"tasks": {}, "users": {"a": {}}}, {"id": "t"}),
        (DB, {"id": "t", "initial_state": {"initialization_actions": [{"func_name": "x"}]}}),
        (DB, {"id": "t", "initial_state": {"initialization_actions": [
            {"func_name": "no_such", "arguments": {}}]}}),
        (DB, {"id": "t", "initial_state": {"initialization_data": {"agent_data": {"users": 1}}}}),
    ],
)  # fmt: skip
def test_malformed_worlds_are_named(db: Any, task: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="task 't': database or initial_state"):
        Tau2Mock(db, "", task)


def test_schemas_agree_with_the_tools() -> None:
    for tool in [*AGENT_TOOLS, *USER_TOOLS]:
        function = tool["function"]
        parameters = function["parameters"]
        given = dict.fromkeys(parameters["required"], "x")
        text, _ = world().call(ToolCall(function["name"], given))
        assert "argument" not in text and "Tool" not in text
        for missing in parameters["required"]:
            less = {name: value for name, value in given.items() if name != missing}
            assert (
                "missing a required argument" in world().call(ToolCall(function["name"], less))[0]
            )
        everything = dict.fromkeys(parameters["properties"], "x")
        assert "argument" not in world().call(ToolCall(function["name"], everything))[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "arguments", "title", "user_id"]), inner)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from([t["function"]["name"] for t in [*AGENT_TOOLS, *USER_TOOLS]])


@settings(deadline=None)
@given(st.lists(JSON | st.fixed_dictionaries({"name": NAMES, "arguments": JSON}), max_size=4))
def test_hostile_calls_never_raise(calls: list[Any]) -> None:
    env = world()
    seen = env.act("".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls))
    assert (seen.calls, seen.done) == (len(calls), not calls)
    assert json.loads(env.agent_state)["users"].keys() == {"ann"}


@settings(deadline=None)
@given(st.text(alphabet='<>/tool_calthink{}[]":nameg, \n\ud800\x00', max_size=80))
def test_hostile_text_never_raises(text: str) -> None:
    assert world().act("<tool_call>" + text).calls >= 0
