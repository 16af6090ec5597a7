"""Recipe fields that were changed on purpose while a run was under way. Importable without torch.

A run goes on with the recipe that it began with. Where somebody changes it, by accepting a field by
name, or a rollback does (reopold/health.py), RUN_DIR/changes.json says who, when and what.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reopold.config import ConfigError


@dataclass(frozen=True)
class Change:
    """One change of a recipe.

    Args:
        time: Unix seconds.
        step: completed steps of the newest checkpoint at that time.
        by: `user`, whose new recipe stands in config.json; or `health`, whose changes lie over it.
        reason: the alarm that led to it.
        set: the old and the new value by field, as `optimizer.lr`.
    """

    time: float
    step: int
    by: Literal["user", "health"]
    reason: str
    set: dict[str, list[Any]]


def settings(raw: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name; a list is one value."""
    flat: dict[str, Any] = {}
    for key, value in raw.items():
        name = f"{prefix}{key}"
        flat |= settings(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Old and new value of every field that differs between two flat recipes."""
    names = sorted(old.keys() | new.keys())
    return {n: [old.get(n), new.get(n)] for n in names if old.get(n) != new.get(n)}


def accepted(
    old: Mapping[str, Any], new: Mapping[str, Any], accept: Sequence[str], refusal: str
) -> dict[str, list[Any]]:
    """What differs between two flat recipes, all of it accepted by field or section.

    Args:
        refusal: what to say where something else differs, before the difference.

    Raises:
        ConfigError: something differs that was not named.
    """
    changed = differences(old, new)
    refused = {n: v for n, v in changed.items() if not any(_covers(a, n) for a in accept)}
    if refused:
        raise ConfigError(f"{refusal}:\n{explain(refused)}")
    return changed


def explain(changed: Mapping[str, Sequence[Any]]) -> str:
    """A readable diff of fields, and how to accept it."""
    width = max(len(name) for name in changed)
    rows = [f"  {name:<{width}}  {old!r} -> {new!r}" for name, (old, new) in changed.items()]
    accept = " ".join(f"--accept {name}" for name in changed)
    return "\n".join([*rows, f"to go on with the new values: {accept}"])


def overlay(raw: Mapping[str, Any], changes: Iterable[Change]) -> dict[str, Any]:
    """A recipe with what rollbacks have changed; a field that the user set later is the user's."""
    values: dict[str, Any] = {}
    for change in changes:
        for name, (_, new) in change.set.items():
            if change.by == "health":
                values[name] = new
            else:
                values.pop(name, None)
    result = copy.deepcopy(dict(raw))
    for name, value in values.items():
        *sections, leaf = name.split(".")
        node = result
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return result


def _covers(accept: str, name: str) -> bool:
    return name == accept or name.startswith(f"{accept}.")
