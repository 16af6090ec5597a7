"""tau2's reward on its own mock tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.benchmarks.base import Row
from evals.benchmarks.tau2 import load_tau2_mock, tau2_gold, tau2_messages
from evals.grading.tau2 import grade_tau2
from evals.grading.verdict import NO_ANSWER, Context
from reopold.config import ConfigError

#: (name, arguments)
Call = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def rows(benchmarks_dir: Path) -> dict[str, Row]:
    folder = benchmarks_dir / "tau_bench" / "tau2" / "mock"
    if not folder.is_dir():
        pytest.skip(f"tau2's mock domain is absent: {folder}")
    return {row["id"]: row for row in load_tau2_mock(folder)}


def as_messages(calls: list[Call], said: str = "Done.") -> str:
    turns: list[dict[str, Any]] = []
    for number, (name, arguments) in enumerate(calls):
        call = {"id": str(number), "name": name, "arguments": arguments}
        turns.append({"role": "assistant", "content": None, "tool_calls": [call]})
        turns.append({"role": "tool", "id": str(number), "content": "ok"})
    return json.dumps([*turns, {"role": "assistant", "content": said}])


def as_openai(calls: list[Call], said: str = "Done.") -> str:
    functions = [{"function": {"name": n, "arguments": json.dumps(a)}} for n, a in calls]
    messages = [{"role": "assistant", "content": said, "tool_calls": functions}]
    return json.dumps({"messages": messages, "termination_reason": "agent_stop"})


def as_blocks(calls: list[Call], said: str = "Done.") -> str:
    blocks = [json.dumps({"name": n, "arguments": a}) for n, a in calls]
    text = "".join(
        f"<think>Next.</think><tool_call>\n{block}\n</tool_call>\n"
        "<tool_response>\n{}\n</tool_response>\n"
        for block in blocks
    )
    return text + said


def as_turns(calls: list[Call], said: str = "Done.") -> str:
    texts = [as_blocks([call], "") for call in calls]
    return json.dumps([{"role": "assistant", "content": text} for text in [*texts, said]])


FORMS = [as_messages, as_openai, as_blocks, as_turns]


def gold(row: Row) -> list[Call]:
    actions = row["evaluation_criteria"].get("actions") or []
    return [(action["name"], action["arguments"]) for action in actions]


def say(row: Row) -> str:
    return "Yes: " + "; ".join(row["evaluation_criteria"].get("communicate_info") or ["done"])


def reward(response: str, row: Row) -> int:
    found = grade_tau2(response, row, Context())
    assert found.correct == (found.status == "ok")
    return int(found.correct)


@pytest.mark.parametrize("form", FORMS)
def test_reference_actions_are_rewarded(rows: dict[str, Row], form: Any) -> None:
    assert len(rows) == 10
    acting = [row for row in rows.values() if gold(row)]
    assert len(acting) == 8
    for row in acting:
        assert reward(form(gold(row), say(row)), row) == 1, row["id"]


@pytest.mark.parametrize("form", FORMS)
def test_further_calls(rows: dict[str, Row], form: Any) -> None:
    """One more write loses the reward, one more read or refused call does not."""
    write: Call = ("create_task", {"user_id": "user_1", "title": "One more"})
    harmless: list[Call] = [
        ("get_users", {}),
        ("check_notifications", {}),
        ("transfer_to_human_agents", {"summary": "x"}),
        ("create_task", {"user_id": "user_9", "title": "x"}),
        ("delete_task", {"task_id": "task_1"}),
        ("update_task_status", {"task_id": "task_1"}),
    ]
    for row in rows.values():
        if gold(row):
            assert reward(form([*gold(row), write], say(row)), row) == 0, row["id"]
            assert reward(form([*harmless, *gold(row), *harmless], say(row)), row) == 1, row["id"]


def test_nothing_done_is_not_rewarded_where_something_is_wanted(rows: dict[str, Row]) -> None:
    rewarded = {name for name, row in rows.items() if reward(as_messages([], say(row)), row)}
    # Neither actions nor assertions state what should be: only a judge could tell.
    assert rewarded == {"create_task_1_nl_eval"}


def test_another_way_to_the_same_state(rows: dict[str, Row]) -> None:
    row = rows["update_task_1"]
    there_and_back: list[Call] = [
        ("update_task_status", {"task_id": "task_1", "status": status})
        for status in ("completed", "pending", "completed")
    ]
    assert reward(as_messages(there_and_back), row) == 1
    assert reward(as_messages(there_and_back[:2]), row) == 0
    wrong_status: Call = ("update_task_status", {"task_id": "task_1", "status": "done"})
    assert reward(as_messages([wrong_status]), row) == 0


def test_required_words(rows: dict[str, Row]) -> None:
    row = rows["update_task_with_initialization_data"]
    first, second = row["evaluation_criteria"]["communicate_info"]
    calls = gold(row)
    assert reward(as_messages(calls, f"{first}. {second.replace(' ', ' not ', 1)}"), row) == 0
    assert reward(as_messages(calls, f"{first.upper()},{second.replace('the', 'the,')}"), row) == 1
    assert reward(as_messages(calls, first), row) == 0
    assert reward(as_blocks(calls, f"<think>{first} {second}</think>Done."), row) == 0
    # In two messages, and the user's words are not the agent's.
    spread = json.loads(as_messages(calls, second))
    assert reward(json.dumps([{"role": "assistant", "content": first}, *spread]), row) == 1
    assert reward(json.dumps([{"role": "user", "content": first}, *spread]), row) == 0


def test_assertions_on_the_environment(rows: dict[str, Row]) -> None:
    row = rows["update_task_with_history_and_env_assertions"]
    finish: Call = ("update_task_status", {"task_id": "task_2", "status": "completed"})
    assert reward(as_messages([finish]), row) == 1
    assert reward(as_messages([]), row) == 0
    # Only the assertion counts here, not the rest of the database.
    more: Call = ("create_task", {"user_id": "user_1", "title": "More"})
    assert reward(as_messages([finish, more]), row) == 1


def test_reference_actions_must_be_called(rows: dict[str, Row]) -> None:
    row = rows["impossible_task_1"]
    assert reward(as_messages([]), row) == 0  # the database is as it should be
    assert (
        reward(as_messages([("transfer_to_human_agents", {"summary": "Other words."})]), row) == 1
    )
    row = {
        **rows["update_task_1"],
        "evaluation_criteria": {**criteria(rows), "reward_basis": ["ACTION"]},
    }
    other: Call = ("update_task_status", {"task_id": "task_1", "status": "pending"})
    assert reward(as_messages([other]), row) == 0
    assert reward(as_messages([other, *gold(row)]), row) == 1


def criteria(rows: dict[str, Row]) -> dict[str, Any]:
    found: dict[str, Any] = rows["update_task_1"]["evaluation_criteria"]
    return found


def test_the_users_own_part(rows: dict[str, Row]) -> None:
    """With a user in the dialogue, the user's notification must be dismissed, by the user."""
    row = rows["update_task_with_user_tools"]
    dismiss = {"name": "dismiss_notification", "arguments": {"notification_id": "notif_1"}}
    by_agent = json.loads(as_messages(gold(row)))
    thanks = {"role": "user", "content": "Thanks."}
    assert reward(json.dumps([*by_agent, thanks]), row) == 0
    assert reward(json.dumps([*by_agent, {**thanks, "tool_calls": [dismiss]}]), row) == 1
    # In another task the user's database must stay as it is.
    other = rows["update_task_1"]
    assert reward(json.dumps([*by_agent, thanks]), other) == 1
    assert reward(json.dumps([*by_agent, {**thanks, "tool_calls": [dismiss]}]), other) == 0


def test_a_history_is_not_carried_out_twice(rows: dict[str, Row]) -> None:
    row = rows["update_task_with_message_history"]
    history = row["initial_state"]["message_history"]
    rest = json.loads(as_messages(gold(row)))
    assert reward(json.dumps(rest), row) == reward(json.dumps([*history, *rest]), row) == 1
    # The agent creates the same task once more: the reward is lost.
    assert reward(json.dumps([*history, history[1], *rest]), row) == 0
    assert reward(json.dumps([history[1], *rest]), row) == 0


def test_dialogues_that_did_not_end(rows: dict[str, Row]) -> None:
    row = rows["update_task_1"]
    record = json.loads(as_openai(gold(row)))
    for reason, wanted in (("user_stop", 1), ("max_steps", 0), ("too_many_errors", 0)):
        assert reward(json.dumps({**record, "termination_reason": reason}), row) == wanted


@pytest.mark.parametrize(
    "response",
    ["", " \n", "[]", '[{"role": "user", "content": "Hi."}]', '{"messages": []}'],
)
def test_no_word_of_the_agent_is_no_answer(rows: dict[str, Row], response: str) -> None:
    found = grade_tau2(response, rows["create_task_1_nl_eval"], Context())
    assert found == NO_ANSWER


@pytest.mark.parametrize(
    "response",
    ["[" * 99999, '[{"role": 1}]', '{"messages": 5}', "[1]", "null", '"x"', "\ud800", "NaN",
     '[{"role": "assistant", "content": 5, "tool_calls": [5, {"name": 1}, {"function": {}}]}]',
     '[{"role": "assistant", "tool_calls": {"name": "x"}}]',
     '[{"role": "assistant", "tool_calls": [{"name": "create_task", "arguments": "["}]}]'],
)  # fmt: skip
def test_hostile_transcripts_score_nothing(rows: dict[str, Row], response: str) -> None:
    for name, row in rows.items():
        assert reward(response, row) == (name == "create_task_1_nl_eval")


def test_the_state_is_what_is_voted_on(rows: dict[str, Row]) -> None:
    row = rows["update_task_1"]
    right, again, wrong = (
        grade_tau2(as_messages(calls), row, Context()).extracted
        for calls in (gold(row), [("get_users", {}), *gold(row)], [])
    )
    assert right == again != wrong


def test_rewards_that_need_a_judge_are_refused(rows: dict[str, Row]) -> None:
    row = {**rows["update_task_1"], "evaluation_criteria": {"reward_basis": ["DB", "NL_ASSERTION"]}}
    with pytest.raises(ConfigError, match="rewarded by NL_ASSERTION, which no rule can check"):
        grade_tau2("x", row, Context())


def test_rows_without_a_database_are_refused(rows: dict[str, Row]) -> None:
    row = {key: value for key, value in rows["update_task_1"].items() if key != "db"}
    with pytest.raises(ConfigError, match="no field 'db'"):
        grade_tau2("x", row, Context())
    with pytest.raises(ConfigError, match="'db' must be an object"):
        grade_tau2("x", {**row, "db": []}, Context())


def test_prompts(rows: dict[str, Row]) -> None:
    for row in rows.values():
        first, *_, last = tau2_messages(row)
        assert first["role"] == "system" and last["role"] == "user"
        assert row["policy"].strip() in first["content"]
        assert "create_task" in first["content"] and "dismiss_notification" in first["content"]
        assert (row.get("ticket") or row["user_scenario"]["instructions"]) in last["content"]
        assert json.loads(tau2_gold(row))["actions"] == [
            {"name": name, "arguments": arguments} for name, arguments in gold(row)
        ]
    roles = [m["role"] for m in tau2_messages(rows["update_task_with_message_history"])]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"db\.json cannot be read"):
        load_tau2_mock(tmp_path)
    (tmp_path / "db.json").write_text("{}")
    (tmp_path / "policy.md").write_text("Be kind.")
    (tmp_path / "tasks.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tasks\.json is not JSON"):
        load_tau2_mock(tmp_path)
    (tmp_path / "tasks.json").write_text("{}")
    with pytest.raises(ConfigError, match="must be a list of tasks"):
        load_tau2_mock(tmp_path)
    (tmp_path / "tasks.json").write_text('[{"id": "a"}]')
    (row,) = load_tau2_mock(tmp_path)
    assert row == {"id": "a", "db": {}, "policy": "Be kind.", "user_db": {"notifications": {}}}
