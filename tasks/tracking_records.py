"""A run directory in MLflow's terms: legal names, finite numbers, batches. Imports no mlflow.

The limits are those of mlflow 3.17, `mlflow/utils/validation.py`.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from reopold.changes import Change
from reopold.config import RunConfig
from reopold.run_dir import Record
from reopold.study_config import ChampionConfig, StudyConfig, is_reference

if TYPE_CHECKING:
    from tasks.tracking.state import Evaluation, Snapshot

#: Characters of a parameter, of a tag and of a data set's digest; metrics and parameters a batch.
PARAM_CHARS, TAG_CHARS, DIGEST_CHARS = 6_000, 8_000, 36
METRICS_A_BATCH, PARAMS_A_BATCH = 1_000, 100

#: A manifest's status in MLflow's words. Paused is KILLED as stopped is: nobody works on the run,
#: and SCHEDULED would promise that somebody will. The tag `reopold.status` has our own word.
STATUS = {
    "new": "SCHEDULED",
    "running": "RUNNING",
    "stopped": "KILLED",
    "paused": "KILLED",
    "finished": "FINISHED",
    "failed": "FAILED",
}
#: What an error's text says, and how we say it.
_REASONS = {
    r"Connection refused": "connection refused",
    r"database or disk is full|No space left": "the disk is full",
    r"disk I/O error": "disk I/O error (the disk may be full)",
    r"database is locked": "its database is locked by another process",
    r"timed out|timeout exception": "timeout: no answer in time",
    r"Remote end closed|Connection (reset|aborted)|Broken pipe": "the connection broke",
}
_NOT_METRICS = frozenset({"step", "time", "phase"})
_DESCRIPTION = """\
**Study `{study}`**: methods x seeds from one recipe{links}.

Each run is a folder under `{where}` of the home; this page is a copy of what lies there.

- **Views** (the button above, or the links): *Methods over samples* has a line a method, the mean
  over its seeds; *Runs by score* ranks the runs. Other pages open as MLflow sees fit: a chart a
  metric, the newest run first.
- **Runs**: the parent run `{study}` holds the recipe, the report, a table of the best checkpoints
  and, as `score/BENCHMARK/METRIC/METHOD`, each method's score by checkpoint (mean over seeds). Its
  children (+) are the training runs; group them by the tag `arm`, filter by `seed`.
- **Charts**: `train/` optimiser, `rollout/` samples, `teacher/` its reward, `eval/` scores with
  `_low` and `_high` (95 % intervals), `perf/` seconds and speed. For an x axis in samples take
  `samples`, and `eval/samples` for scores.
- **Models**: every evaluated checkpoint, and published numbers as external models, which nobody
  has made again here (`role` is `published`; tags name source, origin and caveat). The tag
  `checkpoint` is the folder: no weights are copied. MLflow's page of models sorts them by date
  only, so the ranking is in the parent run. The registered model of the same name has an alias
  (`{alias}`) on the checkpoint that the study's rule chose.
"""


class TrackingUnavailable(Exception):
    """MLflow could not be reached or refused; the run directory keeps everything for next time.

    Args:
        where: the tracking address, without a password.
        why: the reason in a line.
    """

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"MLflow at {where}: {why}")
        self.where, self.why = where, why


class ShipReport(BaseModel):
    """What one call sent. `next_step` is the first step (from 0) that MLflow does not have."""

    model_config = ConfigDict(frozen=True)
    experiment_id: str
    run_id: str
    name: str
    status: str
    next_step: int
    steps_sent: int
    metrics_sent: int
    evaluations_sent: int
    dialogues_sent: int
    url: str | None = None
    """Page of the run, where MLflow is a server."""


class StudyReport(BaseModel):
    """What `ship_study` sent: the parent run, and a report of each child run."""

    model_config = ConfigDict(frozen=True)
    experiment_id: str
    run_id: str
    status: str
    scores_sent: int
    champion: str
    """Folder of the checkpoint that the study's rule chose; "" if there is none to choose from."""
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


def study_of(run_dir: Path) -> str:
    """The study that a run belongs to, by where it lies: STUDY/runs/RUN; elsewhere `runs`."""
    place = run_dir.absolute().parent
    return place.parent.name if place.name == "runs" else "runs"


def reason(text: str) -> str:
    """Why MLflow did not take it, in a line."""
    for pattern, said in _REASONS.items():
        if re.search(pattern, text, re.IGNORECASE):
            return said
    if code := re.search(r"too many (\d+) error responses|error code (\d+)", text):
        return f"HTTP {code[1] or code[2]}"
    return without_password(next(iter(text.splitlines()), "no reason given"))[:200]


def counted(count: int, noun: str) -> str:
    """`1 step`, `2 steps`, and nothing for none."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}" if count else ""


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
    return {legal(k): float(v) for k, v in line.items() if k not in _NOT_METRICS and is_finite(v)}


def non_finite(lines: Sequence[Record], evaluations: Sequence[Evaluation]) -> list[str]:
    """`KEY@STEP` of every NaN and infinity."""
    scores = [(each.step, each.numbers()) for each in evaluations]
    return [
        f"{key}@{step}"
        for step, numbers in [*((line["step"], line) for line in lines), *scores]
        for key, value in numbers.items()
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


def tags(config: RunConfig, found: Snapshot, study: str, where: str) -> dict[str, str]:
    """What a run is and how it fared, short enough to be columns of a table."""
    manifest = found.manifest
    commit = str(manifest.get("git_commit") or "")
    hardware = ", ".join(f"{k} {v}" for k, v in (manifest.get("hardware") or {}).items())
    message = str(manifest.get("message") or "")
    note = f"**{config.method}**, seed {config.seed}, {config.family}. Folder `{where}`."
    alarms = (f"{each.get('alarm')}@{each['step']}" for each in found.events_of("alarm"))
    return {
        **_place(config),
        "method": config.method,
        "seed": str(config.seed),
        "family": config.family,
        "study": study,
        "phase": str(found.lines[-1]["phase"]) if found.lines else config.phase(0),
        "attempt": str(found.attempt + 1),
        "alarms": ", ".join(alarms),
        "config_changed": ", ".join(map(_shown, found.changes)),
        "git_commit": commit,
        "reopold.run_dir": where,
        "reopold.status": str(manifest["status"]),
        "reopold.message": message,
        "mlflow.source.name": "reopold.train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
        "mlflow.note.content": "\n\n".join(filter(None, (note, hardware, message))),
    }


def _shown(change: Change) -> str:
    """`optimizer.lr 0.001 -> 0.0005 @40`"""
    return ", ".join(
        f"{key} {old} -> {new} @{change.step}" for key, (old, new) in change.set.items()
    )


def _place(config: RunConfig) -> dict[str, str]:
    """Its arm, and whether it is one or what arms start from and learn from."""
    if is_reference(config.name):
        return {"arm": config.name, "role": "reference"}
    return {"arm": re.sub(r"-s\d+$", "", config.name), "role": "arm"}


def champion_note(best: BestCheckpoint, rule: ChampionConfig, metric: str) -> str:
    """Why a checkpoint has the alias, as Markdown."""
    interval = "" if best.low is None else f" [{best.low:.4f}, {best.high:.4f}]"
    which = "last checkpoints" if rule.checkpoints == "last" else "all checkpoints"
    return (
        f"**{best.run}**, step {best.step}: {metric} {best.value:.4f}{interval}, the best of "
        f"{which}. Folder `{best.checkpoint}`; no weights are copied."
    )


def registry_note(study: StudyConfig, benchmark: str, metric: str) -> str:
    """Of the study's registered model: the rule that moves its alias."""
    rule = study.champion
    which = "last checkpoints" if rule.checkpoints == "last" else "all checkpoints"
    arms = ", ".join(rule.arms or [arm.name for arm in study.compared])
    return (
        f"Checkpoints of the study {study.name}. The alias `{rule.alias}` is on the one with the "
        f"best {metric} on `{benchmark}` among the {which} of {arms}; each version says why."
    )


def model_tags(config: RunConfig, study: str, digest: str, where: str) -> dict[str, str]:
    """What a checkpoint is; `where` is its folder."""
    return {
        "run": config.name,
        **_place(config),
        "method": config.method,
        "seed": str(config.seed),
        "family": config.family,
        "study": study,
        "digest": digest,
        "checkpoint": where,
        # Its page shows the description and no tags.
        "mlflow.note.content": f"**{config.method}**, seed {config.seed}. Folder `{where}`.",
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
    return [(name, mean, step) for (name, step), mean in sorted(means.items()) if is_finite(mean)]


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
    return f"{base}/{run_page(experiment_id, run_id)}" if uri.startswith("http") else None


def run_page(experiment_id: str, run_id: str) -> str:
    """Of MLflow's page; without `workflowType` it opens as that of a chat application."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def model_page(experiment_id: str, model_id: str) -> str:
    return f"#/experiments/{experiment_id}/models/{model_id}?workflowType=machine_learning"


def registry_page(name: str) -> str:
    return f"#/models/{name}?workflowType=machine_learning"


def description(
    study: str, where: str, links: Mapping[str, str] | None = None, alias: str = "champion"
) -> str:
    """What one sees on the experiment's page, as Markdown; shut, only its first line shows."""
    shown = [f"[{name}]({address})" for name, address in (links or {}).items()]
    said = f" — {' · '.join(shown)}" if shown else ""
    return _DESCRIPTION.format(study=study, where=where, links=said, alias=alias)


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
