"""Grading dialogues in tau2-bench's mock domain by their effect.

The rule is that of sierra-research/tau2-bench (docs/evaluation.md, src/tau2/evaluator): the reward
is 1 if every component in the task's `reward_basis` (by default DB and COMMUNICATE) is met.

DB: after the dialogue's calls the databases equal those after the reference actions.
ENV_ASSERTION: the assertions hold after the dialogue. ACTION: every reference action was called.
COMMUNICATE: every required text occurs in a message of the agent, without case and commas.
NL_ASSERTION needs a model as a judge and is refused.

One task cannot be passed by the authors' code: `update_task_with_user_tools` asserts a change of
the user's database that its reference actions do not make. Here the user's database is compared
only where no assertion is about it, and such assertions only where a user took part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.benchmarks.base import Row, pick
from evals.grading.verdict import NO_ANSWER, Context, Verdict, verdict
from reopold.config import ConfigError
from reopold.environments.calls import ToolCall, read_call, read_calls, said, without_calls
from reopold.environments.tau2_mock import Tau2Mock

_DEFAULT_BASIS = ("DB", "COMMUNICATE")
_CHECKED = ("DB", "ENV_ASSERTION", "ACTION", "COMMUNICATE")
_FINISHED = ("agent_stop", "user_stop")


@dataclass(frozen=True)
class _Message:
    role: str
    text: str
    calls: Sequence[ToolCall]


@dataclass(frozen=True)
class _Dialogue:
    messages: Sequence[_Message]
    finished: bool
    """It came to an end by itself."""

    @property
    def with_user(self) -> bool:
        """Whether a user took part: one spoke after the agent did, or called a tool."""
        begun = False
        for message in self.messages:
            begun = begun or message.role == "assistant"
            if message.role == "user" and (message.calls or (begun and message.text)):
                return True
        return False


def grade_tau2(response: str, row: Row, context: Context) -> Verdict:
    """The verdict on a dialogue: its reward is 1. What is extracted is the state that it left.

    Args:
        response: the dialogue after the task's own message history, in one of these forms: a JSON
            list of messages, each with `role`, `content` and optionally `tool_calls` (`name` and
            `arguments`, or those under `function`); an object with such `messages` and a
            `termination_reason`, as the authors record simulations (any but agent_stop and
            user_stop scores 0); or the agent's words as plain text. Where an agent's message has no
            `tool_calls`, calls are read from its `<tool_call>` blocks. A history at the beginning
            is recognised and not carried out twice.

    Raises:
        ConfigError: the row lacks `db`, is malformed, or its reward needs a judge.
    """
    criteria = row.get("evaluation_criteria") or {}
    basis = criteria.get("reward_basis", _DEFAULT_BASIS)
    beyond = sorted(set(basis) - set(_CHECKED))
    if beyond:
        raise ConfigError(
            f"task '{row.get('id')}' is rewarded by {', '.join(beyond)}, which no rule can check"
        )
    dialogue = _read_dialogue(response, _history(row))
    if not any(message.role == "assistant" for message in dialogue.messages):
        return NO_ANSWER
    world = _world(row, solo=not dialogue.with_user)
    for message in dialogue.messages:
        for call in message.calls:
            world.call(call, message.role)
    checks = {
        "DB": lambda: _same_state(world, criteria, row),
        "ENV_ASSERTION": lambda: all(
            world.holds(assertion)
            for assertion in criteria.get("env_assertions") or []
            if assertion.get("env_type") != "user" or dialogue.with_user
        ),
        "ACTION": lambda: _acted(criteria, [*_history(row), *dialogue.messages]),
        "COMMUNICATE": lambda: _communicated(criteria, [*_history(row), *dialogue.messages]),
    }
    reward = dialogue.finished and all(checks[part]() for part in basis)
    return verdict(reward, f"{world.agent_state} {world.user_state}")


def _world(row: Row, solo: bool) -> Tau2Mock:
    db = pick(row, "db")
    if not isinstance(db, Mapping):
        raise ConfigError(f"task '{row.get('id')}': 'db' must be an object")
    return Tau2Mock(db, str(row.get("policy", "")), row, solo)


def _same_state(world: Tau2Mock, criteria: Mapping[str, Any], row: Row) -> bool:
    if criteria.get("actions") is None and criteria.get("env_assertions") is None:
        return True  # nothing says what the state should be
    wanted = _world(row, solo=True)
    for action in criteria.get("actions") or []:
        wanted.call(read_call(action), action.get("requestor", "assistant"))
    asserted = any(
        assertion.get("env_type") == "user" for assertion in criteria.get("env_assertions") or []
    )
    same_user = asserted or world.user_state == wanted.user_state
    return same_user and world.agent_state == wanted.agent_state


def _acted(criteria: Mapping[str, Any], messages: Sequence[_Message]) -> bool:
    """Every reference action has a call of its name with equal arguments: those in its
    `compare_args`, or else those that the call gives."""
    calls = [call for message in messages for call in message.calls]
    return all(
        any(_matches(action, call) for call in calls) for action in criteria.get("actions") or []
    )


def _matches(action: Mapping[str, Any], call: ToolCall) -> bool:
    if call.name != action["name"]:
        return False
    compared = action.get("compare_args")
    names = call.arguments if compared is None else compared
    absent = object()
    wanted = action["arguments"]
    return all(call.arguments.get(n, absent) == wanted.get(n, absent) for n in names)


def _communicated(criteria: Mapping[str, Any], messages: Sequence[_Message]) -> bool:
    words = [_plain(message.text) for message in messages if message.role == "assistant"]
    required = criteria.get("communicate_info") or []
    return all(any(_plain(text) in said_ for said_ in words) for text in required)


def _plain(text: str) -> str:
    return text.lower().replace(",", "")


def _history(row: Row) -> list[_Message]:
    return _read_messages((row.get("initial_state") or {}).get("message_history") or [])


def _read_dialogue(response: str, history: Sequence[_Message]) -> _Dialogue:
    try:
        record = json.loads(response)
    except (ValueError, RecursionError):
        record = None
    finished = True
    if isinstance(record, dict) and isinstance(record.get("messages"), list):
        finished = record.get("termination_reason", _FINISHED[0]) in _FINISHED
        record = record["messages"]
    if not isinstance(record, list) or not all(_is_message(item) for item in record):
        record = [{"role": "assistant", "content": response}] if response.strip() else []
    messages = _read_messages(record)
    if history and messages[: len(history)] == list(history):
        messages = messages[len(history) :]
    return _Dialogue(messages, finished)


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("role"), str)


def _read_messages(items: Sequence[Mapping[str, Any]]) -> list[_Message]:
    return [_read_message(item) for item in items if item["role"] in ("assistant", "user")]


def _read_message(item: Mapping[str, Any]) -> _Message:
    content = item.get("content")
    text = content if isinstance(content, str) else ""
    given = item.get("tool_calls")
    if isinstance(given, list) and given:
        return _Message(item["role"], said(text).strip(), [read_call(call) for call in given])
    calls = read_calls(text) if item["role"] == "assistant" else []
    return _Message(item["role"], without_calls(text), calls)
