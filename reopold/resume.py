"""Where a run goes on: the newest checkpoint that is whole, of the recipe of today.

Importable without torch. Whoever calls these holds the run directory's lock.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reopold.changes import Change, accepted, differences, settings
from reopold.config import ConfigError, RunConfig
from reopold.integrity import COMPLETE, PRUNED, faults, quarantine
from reopold.recipes import changed, parse
from reopold.run_dir import RunDir, step_of

if TYPE_CHECKING:
    from reopold.health import Alarm, Health


def resume_point(run: RunDir) -> Path | None:
    """The checkpoint to go on from; None starts from the student.

    A damaged or half-written one is named in an event, set aside, and the one before it is taken.
    One of steps that a rollback has undone is removed.
    """
    for folder in run.checkpoints.glob("step-*"):
        if not (folder / COMPLETE).exists() and not (folder / PRUNED).exists():
            print(f"warning: {set_aside(run, folder)}", flush=True)
    for folder in reversed(run.resume_points()):
        if faults(folder):
            print(f"warning: {set_aside(run, folder)}", flush=True)
        elif _undone(run, folder):
            shutil.rmtree(folder)
        else:
            return folder
    return None


def set_aside(run: RunDir, folder: Path) -> str:
    """Rename a damaged checkpoint, and say so in an event; returns what that says."""
    wrong = faults(folder)
    place = quarantine(folder)
    message = f"{folder.name} is damaged ({'; '.join(wrong[:3])}) and set aside as {place.name}"
    run.event("damaged_checkpoint", step_of(folder), message)
    return message


def check_recipe(run: RunDir, point: Path, accept: Sequence[str] = ()) -> None:
    """Compare the recipe of today with that of the checkpoint.

    Args:
        accept: fields, or sections, that may differ from now on.

    Raises:
        ConfigError: a field differs that nobody has accepted; the difference is shown.
    """
    raw = json.loads((point / "trainer" / "config.json").read_text(encoding="utf-8"))
    there = parse(raw, RunConfig, str(point / "trainer" / "config.json"))
    old, new = _flat(there), _flat(run.recipe())
    known = [
        name
        for name, (_, now) in differences(old, new).items()
        if any(change.set.get(name, [None, None])[1] == now for change in run.changes())
    ]
    change = accepted(
        old,
        new,
        [*known, *accept],
        f"the recipe of {run.path} is not that of its checkpoint {point.name}",
    )
    fresh = {name: values for name, values in change.items() if name not in known}
    if fresh:
        run.add_change(Change(time.time(), step_of(point), "user", "", fresh))
    if change:
        what = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in change.items())
        run.event("config_changed", step_of(point), f"goes on with {what}", set=change)


def roll_back(run: RunDir, config: RunConfig, health: Health, alarm: Alarm) -> bool:
    """Undo the steps since the last healthy checkpoint, and change what the recipe says to.

    The change is on disk first: a trainer that is killed on the way undoes the rest when it starts.

    Returns:
        False if the run has used up its rollbacks, or the change cannot be made once more.
    """
    if run.attempt() >= config.health.rollback_limit:
        return False
    # At least one step with the change lies before the step that raised the alarm: from the
    # checkpoint right before it, the same weights would give the same gradient.
    earlier = [k for k in run.complete_checkpoints() if k < alarm.step]
    step = max([0, *(k for k in earlier if health.is_healthy_after(k))])
    try:
        _, change = changed(run.recipe(), config.health.rollback_set)
    except ConfigError:
        return False
    run.add_change(Change(time.time(), step, "health", alarm.name, change))
    what = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in change.items())
    run.event(
        "rollback",
        alarm.step,
        f"{alarm.name}: back to step {step}, with {what}",
        alarm=alarm.name,
        to_step=step,
        set=change,
        value=alarm.value,
        limit=alarm.limit,
    )
    return True


def _undone(run: RunDir, folder: Path) -> bool:
    """Whether a rollback went back to before this checkpoint after it was made."""
    state = json.loads((folder / "trainer" / "state.json").read_text(encoding="utf-8"))
    rollbacks = [change for change in run.changes() if change.by == "health"]
    middle = folder.name.endswith("-mid")
    return any(step_of(folder) + middle > each.step for each in rollbacks[state["attempt"] :])


def _flat(recipe: RunConfig) -> dict[str, Any]:
    return settings(recipe.model_dump(mode="json"))
