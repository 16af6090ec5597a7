"""Alarms of a run on Prefect's pages and in the terminal, as its events.jsonl tells them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from reopold.run_dir import Record, RunDir
from tasks.progress import Progress, show

#: Events that somebody should look at.
KINDS = ("alarm", "rollback", "damaged_checkpoint")


class AlarmWatcher:
    """Tells of each alarm, rollback and damaged checkpoint of a run once, when it comes.

    What was there before is not told again; the artifact lists it all the same.
    """

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.size = self._size()
        self.told = {_identity(event) for event in notable(run)}

    def poll(self) -> None:
        """To be called while the trainer runs, and once after it."""
        size = self._size()
        if size == self.size:
            return
        self.size = size
        events = notable(self.run)
        fresh = [event for event in events if _identity(event) not in self.told]
        for event in fresh:
            self.told.add(_identity(event))
            name, effect = self.run.path.name, str(event.get("policy", event["kind"]))
            get_run_logger().warning("%s, step %d: %s", name, event["step"], _sentence(event))
            show(Progress(name, f"step {event['step']}: {_sentence(event)}", state=effect))
        if fresh:
            publish(self.run, events)

    def _size(self) -> int:
        file = self.run.events_file
        return file.stat().st_size if file.exists() else 0


def notable(run: RunDir) -> list[Record]:
    """The events of a run that are alarms, rollbacks or damaged checkpoints, in order."""
    return [event for event in run.events() if event["kind"] in KINDS]


def publish(run: RunDir, events: Sequence[Record]) -> None:
    """Write the run's alarms as a Markdown artifact; each version lists all of them."""
    rows = [
        f"| {event['step']} | {event['kind'].replace('_', ' ')} | {event.get('policy', '')} "
        f"| {_sentence(event).replace('|', '/')} |"
        for event in events
    ]
    table = "\n".join(["| step | event | policy | what |", "|---|---|---|---|", *rows])
    try:
        create_markdown_artifact(
            table, key=artifact_key(run), description=f"alarms of {run.path.name}"
        )
    except Exception as error:  # a page that cannot be written must not end the training
        get_run_logger().warning("the alarms were not published: %s", error)


def artifact_key(run: RunDir) -> str:
    """`alarms-reopold-s1`; Prefect takes lowercase letters, digits and dashes only."""
    return "alarms-" + re.sub(r"[^a-z0-9]+", "-", run.path.name.lower()).strip("-")


def _identity(event: Record) -> str:
    """What tells two events apart: a step that runs again may raise its alarm again."""
    return f"{event['time']} {event['kind']} {event.get('alarm')}"


def _sentence(event: Record) -> str:
    name = str(event.get("alarm", "")) if event["kind"] == "alarm" else ""
    return f"{name.replace('_', ' ')}: {event['message']}" if name else str(event["message"])
