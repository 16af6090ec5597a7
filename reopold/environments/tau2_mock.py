"""tau2-bench's mock domain between a model's turns: tasks and users, and an inbox of the user's.

Our own implementation of the rules of sierra-research/tau2-bench (src/tau2/domains/mock and
src/tau2/environment): what each tool does to the database, what it answers, and how a task's
initial state is made.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from typing import Any, Literal

from reopold.config import ConfigError
from reopold.environments.base import Environment, Observation
from reopold.environments.calls import ToolCall, read_call, read_calls

Requestor = Literal["assistant", "user"]


def _tool(
    name: str, description: str, parameters: Mapping[str, Any], optional: Collection[str] = ()
) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": parameters,
        "required": [name for name in parameters if name not in optional],
    }
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


#: What the agent may call, as JSON schemas for its prompt.
AGENT_TOOLS: list[dict[str, Any]] = [
    _tool(
        "create_task",
        "Create a task for a user. Returns the task.",
        {
            "user_id": _text("Id of the user."),
            "title": _text("Title of the task."),
            "description": _text("What the task is about."),
        },
        optional={"description"},
    ),
    _tool("get_users", "List all users.", {}),
    _tool(
        "update_task_status",
        "Set the status of a task. Returns the task.",
        {
            "task_id": _text("Id of the task."),
            "status": _text("The new status.", enum=["pending", "completed"]),
        },
    ),
    _tool(
        "transfer_to_human_agents",
        "Hand over to a human agent: because the user asks for one, or because policy and tools do "
        "not allow what the user wants.",
        {"summary": _text("Summary of what the user wants.")},
    ),
]
#: What the user may call; the agent too, where it works alone on a ticket (solo).
USER_TOOLS: list[dict[str, Any]] = [
    _tool("check_notifications", "List the notifications in the user's inbox.", {}),
    _tool(
        "dismiss_notification",
        "Mark a notification in the user's inbox as read.",
        {"notification_id": _text("Id of the notification.")},
    ),
]
_NAMES: dict[Requestor, set[str]] = {
    "assistant": {tool["function"]["name"] for tool in AGENT_TOOLS},
    "user": {tool["function"]["name"] for tool in USER_TOOLS},
}


class ToolError(Exception):
    """A call cannot be carried out; the text is what the caller is told."""


class Tau2Mock(Environment):
    """One task's world, in the state in which its dialogue begins.

    Args:
        db: `{"tasks": {id: ...}, "users": {id: ...}}`; it is copied.
        policy: what the agent must keep to; for its prompt, nothing here enforces it.
        task: a record of the domain's tasks.json; its `initial_state` is applied. A field `user_db`
            beside the published ones is the user's database, `{"notifications": {id: ...}}`.
        solo: the agent works alone and may call the user's tools as well.

    Raises:
        ConfigError: database or initial state are not in the published form.
    """

    def __init__(
        self,
        db: Mapping[str, Any],
        policy: str,
        task: Mapping[str, Any],
        solo: bool = True,
    ) -> None:
        self.policy = policy
        self.solo = solo
        self._db: dict[str, Any] = deepcopy(dict(db))
        self._user_db: dict[str, Any] = deepcopy(dict(task.get("user_db") or {"notifications": {}}))
        try:
            self._begin(task.get("initial_state") or {})
        except (AttributeError, KeyError, TypeError, ToolError) as error:
            raise ConfigError(
                f"task '{task.get('id')}': database or initial_state is not in the form of "
                f"tau2-bench's mock domain ({type(error).__name__}: {error})"
            ) from error

    def _begin(self, initial: Mapping[str, Any]) -> None:
        data = initial.get("initialization_data") or {}
        _merge(self._db, data.get("agent_data") or {})
        _merge(self._user_db, data.get("user_data") or {})
        self._complete()
        for action in initial.get("initialization_actions") or []:
            self.run(action["func_name"], action["arguments"])
        for message in initial.get("message_history") or []:
            for call in message.get("tool_calls") or []:
                self.call(read_call(call), message["role"])

    def _complete(self) -> None:
        """Fill in what records may leave out, so that equal states have equal texts."""
        for task in self._db["tasks"].values():
            task.setdefault("description", None)
        for user in self._db["users"].values():
            user["tasks"] = list(user["tasks"])
        for notification in self._user_db["notifications"].values():
            notification.setdefault("status", "unread")
            notification.setdefault("task_id", None)

    def act(self, message: str) -> Observation:
        """Carry out the calls in a message's `<tool_call>` blocks, in order.

        A message without a call is an answer and ends the dialogue.
        """
        calls = read_calls(message)
        answers = [self.call(call) for call in calls]
        failed = sum(not worked for _, worked in answers)
        text = "\n".join(text for text, _ in answers)
        return Observation(text, done=not calls, calls=len(calls), failed=failed)

    def call(self, call: ToolCall, requestor: str = "assistant") -> tuple[str, bool]:
        """Carry out a call; its answer as text, and whether it worked."""
        try:
            if call.fault:
                raise ToolError(call.fault)
            if call.name not in self._callable(requestor):
                raise ToolError(f"Tool '{call.name[:64]}' not found.")
            answer = self.run(call.name, call.arguments)
        except ToolError as error:
            return f"Error: {error}", False
        return (answer if isinstance(answer, str) else json.dumps(answer)), True

    def _callable(self, requestor: str) -> set[str]:
        if requestor == "user":
            return _NAMES["user"]
        return _NAMES["assistant"] | (_NAMES["user"] if self.solo else set())

    def run(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Run a function of the domain, tools and the helpers of task records alike.

        Raises:
            ToolError: there is none of that name, or it refuses.
        """
        function: Callable[..., Any] | None = _FUNCTIONS.get(name)
        if function is None:
            raise ToolError(f"Function '{name[:64]}' not found.")
        try:
            bound = inspect.signature(function).bind(self, **arguments)
        except TypeError as error:
            raise ToolError(f"{name}: {str(error)[:200]}") from error
        return function(*bound.args, **bound.kwargs)

    def holds(self, assertion: Mapping[str, Any]) -> bool:
        """Whether an environment assertion of a task record is met; one that cannot be evaluated
        (a task that was never made) is not."""
        try:
            outcome = self.run(assertion["func_name"], assertion["arguments"])
        except ToolError:
            return False
        return bool(outcome == assertion.get("assert_value", True))

    @property
    def agent_state(self) -> str:
        """The agent's database as canonical JSON."""
        return json.dumps(self._db, sort_keys=True)

    @property
    def user_state(self) -> str:
        """The user's database as canonical JSON."""
        return json.dumps(self._user_db, sort_keys=True)

    def _create_task(self, user_id: Any, title: Any, description: Any = None) -> dict[str, Any]:
        user = _find(self._db["users"], user_id, "User")
        if not isinstance(title, str):
            raise ToolError("title must be a string")
        if description is not None and not isinstance(description, str):
            raise ToolError("description must be a string")
        key = f"task_{len(self._db['tasks']) + 1}"
        record = {"task_id": key, "title": title, "description": description, "status": "pending"}
        self._db["tasks"][key] = record
        user["tasks"].append(key)
        return record

    def _get_users(self) -> list[Any]:
        return list(self._db["users"].values())

    def _update_task_status(self, task_id: Any, status: Any) -> dict[str, Any]:
        """Any text is taken for a status, as the authors' tool does: to keep to the policy is the
        agent's business."""
        task = _find(self._db["tasks"], task_id, "Task")
        if not isinstance(status, str):
            raise ToolError("status must be a string")
        task["status"] = status
        return task

    def _transfer_to_human_agents(self, summary: Any) -> str:
        return "Transfer successful"

    def _check_notifications(self) -> list[Any]:
        return list(self._user_db["notifications"].values())

    def _dismiss_notification(self, notification_id: Any) -> str:
        _find(self._user_db["notifications"], notification_id, "Notification")["status"] = "read"
        return f"Notification {notification_id} dismissed"

    def _add_notification(self, notification_id: str, message: str, task_id: Any = None) -> None:
        record = {"notification_id": notification_id, "message": message, "task_id": task_id}
        self._user_db["notifications"][notification_id] = {**record, "status": "unread"}

    def _assert_number_of_tasks(self, user_id: Any, expected_number: Any) -> bool:
        return bool(len(_find(self._db["users"], user_id, "User")["tasks"]) == expected_number)

    def _assert_task_status(self, task_id: Any, expected_status: Any) -> bool:
        return bool(_find(self._db["tasks"], task_id, "Task")["status"] == expected_status)

    def _assert_notification_status(self, notification_id: Any, expected_status: Any) -> bool:
        found = _find(self._user_db["notifications"], notification_id, "Notification")
        return bool(found["status"] == expected_status)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "create_task": Tau2Mock._create_task,
    "get_users": Tau2Mock._get_users,
    "update_task_status": Tau2Mock._update_task_status,
    "transfer_to_human_agents": Tau2Mock._transfer_to_human_agents,
    "check_notifications": Tau2Mock._check_notifications,
    "dismiss_notification": Tau2Mock._dismiss_notification,
    "add_notification": Tau2Mock._add_notification,
    "assert_number_of_tasks": Tau2Mock._assert_number_of_tasks,
    "assert_task_status": Tau2Mock._assert_task_status,
    "assert_notification_status": Tau2Mock._assert_notification_status,
}


def _find(table: dict[str, Any], key: Any, kind: str) -> dict[str, Any]:
    if not isinstance(key, str):
        raise ToolError(f"the id of a {kind.lower()} must be a string")
    if key not in table:
        raise ToolError(f"{kind} {key[:64]} not found")
    record: dict[str, Any] = table[key]
    return record


def _merge(base: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Objects are merged key by key, everything else is replaced."""
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = deepcopy(value)
