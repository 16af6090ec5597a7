"""The cache key of a stage: its name and version, the config digest, and what it is built on.

Never Prefect's INPUTS alone: that ignores which task asks, and gave one benchmark another's result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from prefect.context import TaskRunContext

from tasks.stages import Done

#: Raise a stage's number when the task should run again. What it finds on disk is still judged by
#: the disk: by config and checkpoint digests, and by the benchmark's own version.
VERSIONS = {"micro": "1", "train": "1", "evaluate": "1"}


def stage_key(stage: str) -> Callable[[TaskRunContext, dict[str, Any]], str]:
    """A Prefect `cache_key_fn` for tasks that take `digest`, `parents` and simple values."""

    def key(context: TaskRunContext, inputs: dict[str, Any]) -> str:
        return compute_key(stage, inputs)

    return key


def compute_key(stage: str, inputs: dict[str, Any]) -> str:
    """`digest` names the config, `parents` what lies below; the rest is told apart by value."""
    parents = [parent.digest for parent in inputs.get("parents", []) if isinstance(parent, Done)]
    rest = {name: value for name, value in inputs.items() if name != "parents"}
    parts = [stage, VERSIONS[stage], *parents, *(f"{name}={rest[name]}" for name in sorted(rest))]
    return f"{stage}-{hashlib.sha256('|'.join(parts).encode()).hexdigest()}"
