"""What went wrong in the runs: alarms, rollbacks and damaged checkpoints, from their events."""

from __future__ import annotations

from dataclasses import dataclass, field

from evals.report.study import Run, Study
from evals.report.tables import NOTHING, Cell, Table
from evals.report.words import listed
from reopold.health import TRENDS
from reopold.run_dir import Record

DAMAGED = "damaged_checkpoint"
#: Where an alarm is marked: the metric that it watches.
_METRICS = {
    *((trend.name, trend.metric) for trend in TRENDS),
    ("gradient_spike", "train/grad_norm"),
}


@dataclass
class AlarmRow:
    """One alarm of one run, or its damaged checkpoints (which have no policy)."""

    run: str
    method: str
    alarm: str
    policy: str = ""
    steps: list[int] = field(default_factory=list)
    """Steps at which it began; of a damaged checkpoint, its completed steps."""
    value: float | None = None
    """What was seen when it first began, and the limit."""
    limit: float | None = None
    rollbacks: list[int] = field(default_factory=list)
    """Checkpoints that it sent the run back to."""
    set: dict[str, list[str]] = field(default_factory=dict)
    """The values that each changed setting has had since the start."""


def alarm_rows(study: Study) -> list[AlarmRow]:
    """All alarms of the study's runs: in study order, then as they first began."""
    return [row for run in study.everyone for row in _of_run(run)]


def alarm_steps(study: Study, method: str, metric: str) -> list[int]:
    """Steps at which an alarm on `metric` began in the runs of `method`."""
    rows = [row for run in study.of(method) for row in _of_run(run)]
    return sorted({step for row in rows if (row.alarm, metric) in _METRICS for step in row.steps})


def _of_run(run: Run) -> list[AlarmRow]:
    rows: dict[str, AlarmRow] = {}
    for event in run.events or []:
        kind = event.get("kind")
        if kind in ("alarm", "rollback", DAMAGED):
            name = DAMAGED if kind == DAMAGED else str(event.get("alarm", "unknown"))
            row = rows.setdefault(name, AlarmRow(run.name, run.arm, name))
            if kind == "rollback":
                _add_rollback(row, event)
            else:
                _add_start(row, event)
    return list(rows.values())


def _add_start(row: AlarmRow, event: Record) -> None:
    row.steps.append(int(event.get("step", 0)))
    row.policy = str(event.get("policy", row.policy))
    if row.value is None and "value" in event and "limit" in event:
        row.value, row.limit = float(event["value"]), float(event["limit"])


def _add_rollback(row: AlarmRow, event: Record) -> None:
    """A rollback cuts the event of its own alarm back, with the steps that are to run again."""
    step = int(event.get("step", 0))
    if row.steps[-1:] != [step]:
        row.steps.append(step)
    row.policy = "rollback"
    row.rollbacks.append(int(event.get("to_step", 0)))
    for key, (old, new) in event.get("set", {}).items():
        row.set.setdefault(key, [_short(old)]).append(_short(new))


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def alarm_table(rows: list[AlarmRow]) -> Table | None:
    """A row an alarm and run; None where there is nothing to show."""
    if not rows:
        return None
    columns = ["run", "alarm", "policy", "first at step", "times", "value", "rollbacks"]
    caption = (
        "When a value passed its limit (docs/health.md): windowed values are means, and an alarm "
        "counts once for as long as it lasts. Steps count from 0. A rollback goes on from the last "
        "healthy checkpoint with a changed setting."
    )
    return Table("alarms", "Alarms", caption, columns, [_cells(row) for row in rows])


def _cells(row: AlarmRow) -> list[Cell]:
    value = NOTHING
    if row.value is not None and row.limit is not None:
        value = Cell(f"{row.value:.3g}", f"limit {row.limit:.3g}")
    changes = [f"{key} {' → '.join(values)}" for key, values in row.set.items()]
    back = ", ".join(str(step) for step in row.rollbacks)
    detail = "; ".join([f"to step {back}", *changes])
    return [
        Cell(row.run),
        Cell(row.alarm.replace("_", " ")),
        Cell(row.policy) if row.policy else NOTHING,
        Cell(str(row.steps[0])),
        Cell(str(len(row.steps))),
        value,
        Cell(str(len(row.rollbacks)), detail) if row.rollbacks else NOTHING,
    ]


def alarm_words(study: Study, rows: list[AlarmRow]) -> list[str]:
    """In sentences: which runs raised alarms, which did not, and of which it is not known."""
    trained = [run for run in study.everyone if not run.given]
    known = [run.name for run in trained if run.events is not None]
    unknown = [run.name for run in trained if run.events is None]
    loud = list(dict.fromkeys(row.run for row in rows if row.alarm != DAMAGED))
    damaged = [row.run for row in rows if row.alarm == DAMAGED]
    sentences = []
    if known and not loud:
        sentences.append(f"No alarms: none of {len(known)} runs raised one.")
    elif loud:
        rest = "" if len(loud) == len(known) else " No alarms in the others."
        sentences.append(f"Alarms in {len(loud)} of {len(known)} runs: {listed(loud)}.{rest}")
    if damaged:
        sentences.append(f"Damaged checkpoints, set aside and made again: {listed(damaged)}.")
    if unknown:
        sentences.append(f"No events were found of {listed(unknown)}: alarms are not known.")
    return sentences
