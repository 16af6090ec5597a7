"""Environments by name, for training and evaluation alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from reopold.config import ConfigError
from reopold.environments.base import Environment
from reopold.environments.python import Form, PythonEnvironment
from reopold.environments.tau2_mock import Tau2Mock
from reopold.sandbox.interpreter import TOOL_LIMITS

StyleName = Literal["fenced", "tool_call"]


@dataclass(frozen=True)
class Budget:
    """What one dialogue may ask of its environment."""

    calls: int
    seconds: float
    """Wall-clock, over all of them."""


@dataclass(frozen=True)
class Kind:
    """An environment that prompts and benchmarks may name."""

    style: StyleName
    """How calls and observations stand in the dialogue (:mod:`reopold.dialogues`)."""
    make: Callable[[Mapping[str, Any], Budget], Environment]
    """A new world of a task: the fields that this environment reads of a prompt's `task`.

    Raises ConfigError: a field is missing or malformed."""


def _python(form: Form) -> Callable[[Mapping[str, Any], Budget], Environment]:
    def make(task: Mapping[str, Any], budget: Budget) -> Environment:
        seconds = min(TOOL_LIMITS.seconds, budget.seconds)
        return PythonEnvironment(
            form, calls=budget.calls, limits=replace(TOOL_LIMITS, seconds=seconds)
        )

    return make


def _calculator(task: Mapping[str, Any], budget: Budget) -> Environment:
    from reopold.environments.functions import CALCULATOR, FunctionEnvironment

    return FunctionEnvironment([CALCULATOR], calls=budget.calls)


def _tau2(task: Mapping[str, Any], budget: Budget) -> Environment:
    """`db` and `policy`, and a record of the domain's tasks.json."""
    if not isinstance(task.get("db"), Mapping):
        raise ConfigError("environment tau2_mock needs the domain's database as 'db' in 'task'")
    return Tau2Mock(task["db"], str(task.get("policy", "")), task)


ENVIRONMENTS: dict[str, Kind] = {
    "python": Kind("fenced", _python("fenced")),
    "python_call": Kind("tool_call", _python("tool_call")),
    "calculator": Kind("tool_call", _calculator),
    "tau2_mock": Kind("tool_call", _tau2),
}


def find_environment(name: str) -> Kind:
    """Raises ConfigError: there is none of that name."""
    if name not in ENVIRONMENTS:
        raise ConfigError(f"no environment '{name}'; there are: {', '.join(ENVIRONMENTS)}")
    return ENVIRONMENTS[name]


def check_task(name: str, task: Mapping[str, Any]) -> None:
    """Raises ConfigError: no such environment, or a task that it cannot be made for."""
    if task:
        find_environment(name).make(task, _ANY).close()
    else:
        _check_without_task(name)


_ANY = Budget(calls=1, seconds=1.0)


@cache
def _check_without_task(name: str) -> None:
    find_environment(name).make({}, _ANY).close()


def opening(
    name: str, task: Mapping[str, Any], budget: Budget
) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """What stands before the model's first word beside the prompt: messages that the environment
    begins with, and the schemas of its functions.

    Raises:
        ConfigError: as :func:`check_task`.
    """
    with closing(find_environment(name).make(task, budget)) as world:
        said, schemas = world.observe(), list(world.schemas)
    return ([{"role": "user", "content": said}] if said else []), schemas
