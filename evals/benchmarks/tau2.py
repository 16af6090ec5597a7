"""Rows of tau2-bench's mock domain: files, prompts, golds.

A row is a record of tasks.json with the domain's `db`, `user_db` and `policy` beside its fields.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evals.benchmarks.base import Row, pick
from reopold.config import ConfigError

_SYSTEM = """\
You look after a small system of users and their tasks, and you work alone: nobody answers your \
questions. Do what the ticket asks with the tools, as far as the policy allows it.

<policy>
{policy}
</policy>

These are the tools, in JSON:
{tools}

To call a tool, write this and stop; what it returns is shown to you:
<tool_call>
{{"name": "tool_name", "arguments": {{"parameter": "value"}}}}
</tool_call>

When nothing is left to do, say in a message without a call what you did."""


def load_tau2_mock(folder: Path) -> list[Row]:
    """The tasks of the mock domain, from the folder of its tasks.json, db.json and policy.md.

    Raises:
        ConfigError: a file is missing or not in that form.
    """
    shared: Row = {"db": _read(folder / "db.json"), "policy": _text(folder / "policy.md")}
    users = folder / "user_db.json"
    shared["user_db"] = _read(users) if users.is_file() else {"notifications": {}}
    tasks = _read(folder / "tasks.json")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise ConfigError(f"{folder / 'tasks.json'} must be a list of tasks")
    return [{**task, **shared} for task in tasks]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _read(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error


def tau2_messages(row: Row) -> list[dict[str, str]]:
    """The chat up to where the agent acts alone (solo): policy and tools, what was said before, and
    the ticket, or where a task has none, what its user would have been told to want."""
    from reopold.environments.tau2_mock import AGENT_TOOLS, USER_TOOLS

    tools = "\n".join(json.dumps(tool) for tool in [*AGENT_TOOLS, *USER_TOOLS])
    system = _SYSTEM.format(policy=str(pick(row, "policy")).strip(), tools=tools)
    history = (row.get("initial_state") or {}).get("message_history") or []
    want = row.get("ticket")
    if not want:
        scenario = (row.get("user_scenario") or {}).get("instructions")
        want = f"This is what the user was told to want: {scenario}"
    messages = [{"role": "system", "content": system}, *map(_rendered, history)]
    return [*messages, {"role": "user", "content": f"Ticket: {want}"}]


def _rendered(message: dict[str, Any]) -> dict[str, str]:
    calls = [
        json.dumps({"name": call["name"], "arguments": call["arguments"]})
        for call in message.get("tool_calls") or []
    ]
    blocks = [f"<tool_call>\n{call}\n</tool_call>" for call in calls]
    parts = [message.get("content") or "", *blocks]
    return {"role": message["role"], "content": "\n".join(part for part in parts if part)}


def tau2_gold(row: Row) -> str:
    """The reference actions and what must be said, for people to read."""
    criteria = row.get("evaluation_criteria") or {}
    actions = [
        {"name": action["name"], "arguments": action["arguments"]}
        for action in criteria.get("actions") or []
    ]
    return json.dumps({"actions": actions, "say": criteria.get("communicate_info") or []})
