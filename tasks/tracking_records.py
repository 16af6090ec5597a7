"""A run directory in MLflow's terms: legal names, finite numbers, batches. Imports no mlflow.

The limits are those of mlflow 3.17, `mlflow/utils/validation.py`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from reopold.config import RunConfig
from reopold.run_dir import Record, RunDir, write_atomic

#: Characters of a parameter, of a tag and of a data set's digest; metrics and parameters a batch.
PARAM_CHARS, TAG_CHARS, DIGEST_CHARS = 6_000, 8_000, 36
METRICS_A_BATCH, PARAMS_A_BATCH = 1_000, 100

#: A manifest's status in MLflow's words.
STATUS = {
    "new": "SCHEDULED",
    "running": "RUNNING",
    "stopped": "KILLED",
    "finished": "FINISHED",
    "failed": "FAILED",
}
_NOT_METRICS = frozenset({"step", "time", "phase"})
_DESCRIPTION = """\
**Study `{study}`**: methods x seeds from one recipe. Open the parent run (+) to see its runs.

Each run is a folder under `{where}` of the home; this page is a copy of what lies there.

- **Runs**: the parent run `{study}` holds the recipe, the report and, as
  `score/BENCHMARK/METRIC/METHOD`, each method's score by checkpoint (mean over seeds). Its
  children are the training runs; group them by the tag `method`, filter by `seed`.
- **Charts**: `train/` optimiser, `rollout/` samples, `teacher/` its reward, `eval/` scores with
  `_low` and `_high` (95 % intervals), `perf/` seconds and speed. `samples` and `tokens` are
  metrics too, so they serve as x axis.
- **Models**: every evaluated checkpoint. Sort by `eval/BENCHMARK/avg_at_K` to find the best one;
  its tag `checkpoint` is the folder. No weights are copied here.
"""


class TrackingUnavailable(Exception):
    """MLflow could not be reached or refused; the run directory keeps everything for next time."""


class ShipReport(BaseModel):
    """What one call sent. `next_step` is the first step (from 0) that MLflow does not have."""

    model_config = ConfigDict(frozen=True)
    experiment_id: str
    run_id: str
    status: str
    next_step: int
    metrics_sent: int
    evaluations_sent: int
    url: str | None = None
    """Page of the run, where MLflow is a server."""


class StudyReport(BaseModel):
    """What `ship_study` sent: the parent run, and a report of each child run."""

    model_config = ConfigDict(frozen=True)
    experiment_id: str
    run_id: str
    status: str
    scores_sent: int
    runs: list[ShipReport]
    url: str | None = None


class BestCheckpoint(BaseModel):
    """A checkpoint and its score with a 95 % interval; `checkpoint` is relative to the home."""

    model_config = ConfigDict(frozen=True)
    model_id: str
    run: str
    method: str
    seed: int
    step: int
    value: float
    low: float | None
    high: float | None
    checkpoint: str
    digest: str


@dataclass
class Cursor:
    """RUN_DIR/tracking.json: what has reached one MLflow. Losing it costs a search, no doubles."""

    file: Path
    tracking_uri: str
    experiment_id: str = ""
    run_id: str = ""
    described: str = ""
    """Manifest status at the last upload; empty until parameters and config.json are there."""
    next_step: int = 0
    evaluations: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the results.json sent, by `step-000075/BENCHMARK`."""
    models: dict[str, str] = field(default_factory=dict)
    """Logged model's id by checkpoint step."""

    @classmethod
    def load(cls, run_dir: Path, uri: str) -> Cursor:
        """The cursor kept in `run_dir`, or a fresh one if it is lost or of another MLflow."""
        file, uri = run_dir / "tracking.json", without_password(uri)
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
        return str(self.results["dataset"]["digest"])[:DIGEST_CHARS]

    def scores(self) -> dict[str, float]:
        """`eval/BENCHMARK/avg_at_4`, `..._low`, `..._high` and the two failure fractions."""
        found: dict[str, Any] = {}
        for score in self.results["scores"]:
            name = score_name(self.benchmark, score["metric"], score["k"])
            for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high")):
                found[name + suffix] = score.get(part)
        for part in ("truncated_fraction", "no_answer_fraction"):
            found[f"eval/{legal(self.benchmark)}/{part}"] = self.results.get(part)
        return {key: float(value) for key, value in found.items() if _is_finite(value)}


def evaluations(run_dir: RunDir) -> list[Evaluation]:
    """Evaluations of the complete checkpoints, by step; those of other weights are left out."""
    found = []
    for step in run_dir.complete_checkpoints():
        marker = json.loads((run_dir.checkpoint(step) / "COMPLETE").read_text(encoding="utf-8"))
        for file in sorted((run_dir.path / "eval" / f"step-{step:06d}").glob("*/results.json")):
            raw = file.read_bytes()
            results = json.loads(raw)
            if results["checkpoint_digest"] == marker["digest"]:
                content, time = hashlib.sha256(raw).hexdigest(), int(file.stat().st_mtime * 1000)
                found.append(Evaluation(step, file.parent.name, results, content, time))
    return found


def legal(name: str) -> str:
    """`name` in the characters of a metric's name, `@` written as `_at_`."""
    return re.sub(r"[^\w./ -]", "_", name.replace("@", "_at_"))


def score_name(benchmark: str, metric: str, k: int | None = None) -> str:
    """Metric of a score: `avg@4` (or `avg@k` with k=4) is `eval/BENCHMARK/avg_at_4`."""
    if k is not None:
        metric = re.sub(r"@k$", f"@{k}", metric)
    return f"eval/{legal(benchmark)}/{legal(metric)}"


def flatten(raw: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `section.key`, each cut to what a parameter holds."""
    flat: dict[str, str] = {}
    for key, value in raw.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[f"{prefix}{key}"] = text[:PARAM_CHARS]
    return flat


def finite(line: Record) -> dict[str, float]:
    """The numbers of a metrics line that MLflow can hold, `samples` and `tokens` among them."""
    return {legal(k): float(v) for k, v in line.items() if k not in _NOT_METRICS and _is_finite(v)}


def non_finite(lines: Sequence[Record]) -> list[str]:
    """`KEY@STEP` of every NaN and infinity."""
    return [
        f"{key}@{line['step']}"
        for line in lines
        for key, value in line.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]


def step_batches(lines: Sequence[Record], limit: int = METRICS_A_BATCH) -> Iterator[list[Record]]:
    """Consecutive lines, whole steps only, of at most `limit` numbers together."""
    batch: list[Record] = []
    size = 0
    for line in lines:
        if batch and size + len(line) > limit:
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line)
    if batch:
        yield batch


def tags(config: RunConfig, manifest: Record, study: str, where: str) -> dict[str, str]:
    """What a run is, short enough to be columns of a table."""
    commit = str(manifest.get("git_commit") or "")
    hardware = ", ".join(f"{k} {v}" for k, v in (manifest.get("hardware") or {}).items())
    message = str(manifest.get("message") or "")
    note = f"**{config.method}**, seed {config.seed}, {config.family}. Folder `{where}`."
    return {
        "method": config.method,
        "seed": str(config.seed),
        "family": config.family,
        "study": study,
        "git_commit": commit,
        "reopold.run_dir": where,
        "reopold.message": message,
        "mlflow.source.name": "reopold.train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
        "mlflow.note.content": "\n\n".join(filter(None, (note, hardware, message))),
    }


def model_tags(config: RunConfig, study: str, digest: str, where: str) -> dict[str, str]:
    """What a checkpoint is; `where` is its folder."""
    return {
        "run": config.name,
        "method": config.method,
        "seed": str(config.seed),
        "family": config.family,
        "study": study,
        "digest": digest,
        "checkpoint": where,
    }


def mean_scores(file: Path) -> list[tuple[str, float, int]]:
    """`score/BENCHMARK/METRIC/METHOD`, mean over seeds and checkpoint step, of a scores.csv."""
    groups: dict[tuple[str, int], list[float]] = defaultdict(list)
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            metric = re.sub(r"@k$", f"@{row['k']}", row["metric"])
            name = legal(f"score/{row['benchmark']}/{metric}/{row['method']}")
            try:
                groups[name, int(row["checkpoint_step"])].append(float(row["value"]))
            except ValueError:  # an empty cell: that run has no such score
                continue
    means = {group: sum(values) / len(values) for group, values in groups.items()}
    return [(name, mean, step) for (name, step), mean in sorted(means.items()) if _is_finite(mean)]


def study_status(statuses: Sequence[str]) -> str:
    """A study runs while any run does or has yet to; then the worst of its runs' ends."""
    if not statuses or {"RUNNING", "SCHEDULED"} & set(statuses):
        return "RUNNING"
    return next((s for s in ("FAILED", "KILLED") if s in statuses), "FINISHED")


def without_password(uri: str) -> str:
    """`uri` as it may be shown and stored."""
    return re.sub(r"//[^@/]*@", "//", uri)


def page(uri: str, experiment_id: str, run_id: str) -> str | None:
    """Address of a run's page; None where MLflow is a database and no server."""
    base = without_password(uri).rstrip("/")
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}" if uri.startswith("http") else None


def description(study: str, where: str) -> str:
    """What one sees on the experiment's page, as Markdown."""
    return _DESCRIPTION.format(study=study, where=where)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
