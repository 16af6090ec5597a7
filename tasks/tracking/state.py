"""What a run directory holds, and what of it has reached MLflow. Imports no mlflow."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reopold.changes import Change
from reopold.provenance import checkpoint_digest
from reopold.run_dir import Record, RunDir, write_atomic
from tasks import home
from tasks import tracking_records as records
from tasks.tracking.traces import Episodes, episodes


@dataclass
class Cursor:
    """RUN_DIR/tracking.json: what has reached one MLflow. Losing it costs a search, no doubles."""

    file: Path
    tracking_uri: str
    experiment_id: str = ""
    run_id: str = ""
    attempt: int = 0
    status: str = ""
    """In MLflow's words."""
    described: str = ""
    """Manifest status at the last upload of the manifest."""
    recipe: str = ""
    """Of the recipe uploaded, :func:`recipe_digest`."""
    next_step: int = 0
    sending: list[Record] = field(default_factory=list)
    """Lines of metrics.jsonl that were sent and whose arrival was never confirmed."""
    evaluations: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the results.json sent, by `step-000075/BENCHMARK`."""
    models: dict[str, str] = field(default_factory=dict)
    """Logged model's id by checkpoint step."""
    traces: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the rollouts whose dialogues were sent, by checkpoint step."""

    @classmethod
    def load(cls, run_dir: Path, uri: str) -> Cursor:
        """The cursor kept in `run_dir`, or a fresh one if it is lost or of another MLflow."""
        file, uri = run_dir / "tracking.json", records.without_password(uri)
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            return cls(file, **kept) if kept["tracking_uri"] == uri else cls(file, uri)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return cls(file, uri)

    def save(self, **fields: Any) -> None:
        """Set `fields` and write the file in one piece."""
        for name, value in fields.items():
            setattr(self, name, value)
        kept = {name: value for name, value in vars(self).items() if name != "file"}
        write_atomic(self.file, json.dumps(kept, indent=2))


@dataclass(frozen=True)
class Evaluation:
    """A results.json of a complete checkpoint: its SHA-256, and its file's time in ms."""

    step: int
    benchmark: str
    results: Record
    content: str
    time: int

    @property
    def key(self) -> str:
        return f"step-{self.step:06d}/{self.benchmark}"

    @property
    def model_digest(self) -> str:
        return str(self.results["checkpoint_digest"])

    @property
    def dataset_digest(self) -> str:
        return str(self.results["dataset"]["digest"])[: records.DIGEST_CHARS]

    def scores(self) -> dict[str, float]:
        """The finite ones of :meth:`numbers`."""
        return {
            key: float(value) for key, value in self.numbers().items() if records.is_finite(value)
        }

    def numbers(self) -> dict[str, Any]:
        """`eval/BENCHMARK/avg_at_4`, `..._low`, `..._high` and the two failure fractions."""
        found: dict[str, Any] = {}
        for score in self.results["scores"]:
            name = records.score_name(self.benchmark, score["metric"], score["k"])
            for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high")):
                found[name + suffix] = score.get(part)
        for part in ("truncated_fraction", "no_answer_fraction"):
            found[f"eval/{records.legal(self.benchmark)}/{part}"] = self.results.get(part)
        return found


def evaluations(run_dir: RunDir) -> list[Evaluation]:
    """Evaluations of checkpoints, by step; those of other weights are left out."""
    found = []
    for step in run_dir.passed_checkpoints():
        digest = checkpoint_digest(run_dir.checkpoint(step))
        for file in sorted((run_dir.path / "eval" / f"step-{step:06d}").glob("*/results.json")):
            raw = file.read_bytes()
            results = json.loads(raw)
            if results["checkpoint_digest"] == digest:
                content, time = hashlib.sha256(raw).hexdigest(), int(file.stat().st_mtime * 1000)
                found.append(Evaluation(step, file.parent.name, results, content, time))
    return found


@dataclass(frozen=True)
class Snapshot:
    """A run directory as it was at one moment."""

    manifest: Record
    held: bool
    """Whether a trainer holds the run directory."""
    lines: list[Record]
    events: list[Record]
    evaluations: list[Evaluation]
    episodes: list[Episodes]
    changes: list[Change]

    @property
    def rollbacks(self) -> list[Change]:
        return _rollbacks(self.changes)

    @property
    def attempt(self) -> int:
        return len(self.rollbacks)

    @property
    def start_time(self) -> int | None:
        """In ms; None before the first start."""
        started = self.manifest.get("started_at")
        return int(started * 1000) if started else None

    @property
    def ended(self) -> float:
        """Unix seconds of the last sign of life."""
        last = self.lines[-1]["time"] if self.lines else 0.0
        return max(float(self.manifest.get("updated_at", 0.0)), float(last))

    def identity(self, run_dir: RunDir) -> str:
        """Names this run among all; the digest will not do: a recipe may be changed on the way."""
        made = f"{run_dir.digest()}@{self.manifest.get('started_at')}"
        return str(self.manifest.get("identity") or made)

    def status(self, under_way: bool) -> str:
        """In MLflow's words. A manifest that says running without a trainer was left by a dead one.

        Args:
            under_way: a flow goes on with the run, so neither that nor a stop ends it.
        """
        word = str(self.manifest["status"])
        if under_way and word in ("running", "stopped"):
            return "RUNNING"
        return "KILLED" if word == "running" and not self.held else records.STATUS[word]

    def events_of(self, kind: str) -> list[Record]:
        return [event for event in self.events if event["kind"] == kind]

    def rolled_back(self, attempt: int) -> str:
        """How an attempt before this one ended."""
        change = self.rollbacks[attempt]
        return f"rolled back to step {change.step}: {change.reason}"


def snapshot(run_dir: RunDir) -> Snapshot:
    """Read a run directory while others write to it.

    The manifest comes before the files: what it calls finished is complete in them. The changes are
    read first and once more at the end: a rollback is there first, its lines are cut thereafter, so
    lines of two attempts are told apart by it alone.
    """
    while True:
        changes = run_dir.changes()
        manifest = run_dir.manifest()
        lines = [n for n in run_dir.metrics() if _stands(n["step"] + 1, n["time"], changes)]
        found = Snapshot(
            manifest=manifest,
            held=manifest["status"] == "running" and run_dir.holder() is not None,
            lines=lines,
            events=run_dir.events(),
            evaluations=[
                e for e in evaluations(run_dir) if _stands(e.step, e.time / 1000, changes)
            ],
            episodes=episodes(run_dir, {line["step"]: line["time"] for line in lines}),
            changes=changes,
        )
        if run_dir.changes() == changes:
            return found


def _rollbacks(changes: Sequence[Change]) -> list[Change]:
    return [change for change in changes if change.by == "health"]


def _stands(steps_done: int, made: float, changes: Sequence[Change]) -> bool:
    """Whether what was made after so many steps at that time is not about to be rolled back."""
    back = _rollbacks(changes)[-1:]
    return not back or steps_done <= back[0].step or made > back[0].time


@dataclass(frozen=True)
class Waiting:
    """What of a run directory has not reached MLflow.

    Args:
        status: how the run stands, where MLflow does not know it; else empty.
    """

    run_dir: Path
    steps: int
    evaluations: int
    dialogues: int
    status: str

    def __str__(self) -> str:
        parts = [
            records.counted(self.steps, "step"),
            records.counted(self.evaluations, "evaluation"),
            records.counted(self.dialogues, "dialogue"),
            f"that it is {self.status}" if self.status else "",
        ]
        return f"{self.run_dir.name}: {', '.join(filter(None, parts))}"


def waiting_run(run_dir: Path) -> Waiting | None:
    """What waits in one run directory by its tracking.json, no server being asked; None: nothing.

    Raises:
        ConfigError: the folder holds no run.
    """
    home.configure_mlflow()
    run = RunDir(run_dir)
    found = snapshot(run)
    cursor = Cursor.load(run_dir, os.environ["MLFLOW_TRACKING_URI"])
    if cursor.attempt != found.attempt:
        cursor = Cursor(cursor.file, cursor.tracking_uri)
    sent = cursor.evaluations
    told = (cursor.status, cursor.described, cursor.recipe) == (
        found.status(under_way=False),
        found.manifest["status"],
        recipe_digest(run),
    )
    waits = Waiting(
        run_dir=run_dir,
        steps=sum(line["step"] >= cursor.next_step for line in found.lines),
        evaluations=sum(sent.get(each.key) != each.content for each in found.evaluations),
        dialogues=sum(
            len(each.dialogues)
            for each in found.episodes
            if cursor.traces.get(str(each.step)) != each.content
        ),
        status="" if told else str(found.manifest["status"]),
    )
    new = found.manifest["status"] == "new"
    some = waits.steps or waits.evaluations or waits.dialogues or waits.status
    return waits if not new and some else None


def waiting(study_dir: Path) -> list[Waiting]:
    """What waits in each run of a study; :func:`tasks.tracking.ship_study` sends it."""
    runs = (file.parent for file in sorted(study_dir.glob("runs/*/config.json")))
    return [waits for run in runs if (waits := waiting_run(run))]


def recipe_digest(run_dir: RunDir) -> str:
    """SHA-256 over the recipe and what was changed of it."""
    files = (run_dir.config_file, run_dir.changes_file)
    return hashlib.sha256(b"".join(f.read_bytes() for f in files if f.exists())).hexdigest()
