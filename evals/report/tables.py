"""The report's tables, once: HTML, Markdown and the terminal only print them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evals.published import STATUS, published_on
from evals.report.analysis import EFFICIENCY_UNITS, Analysis, EfficiencyRow, MethodRow, SeedRow
from evals.report.statistics import Efficiency, verdict
from evals.report.words import (
    UNIT_NAMES,
    amount,
    duration,
    efficiency_caption,
    factor,
    factor_interval,
    interval_words,
    percent,
    points,
    score_caption,
)
from evals.stats import Interval
from reopold.study_config import StudyConfig, is_reference, teacher_role


@dataclass(frozen=True)
class Cell:
    """A number as text, its interval or detail below it, and what a difference amounts to."""

    text: str
    detail: str = ""
    tone: str = ""
    """"above", "below" or "undecided" for a difference, else empty."""

    def __str__(self) -> str:
        return f"{self.text} ({self.detail})" if self.detail else self.text


@dataclass(frozen=True)
class Table:
    """`rows` hold a cell a column; the first one heads its row. `name` is unique in the report."""

    name: str
    title: str
    caption: str
    columns: list[str]
    rows: list[list[Cell]]


NOTHING = Cell("–")


def arm_table(study: StudyConfig) -> Table | None:
    """What the variants are; None where all arms are methods as they come."""
    if not study.variants:
        return None
    rows = [
        [
            Cell(arm.name),
            Cell(arm.method),
            Cell(", ".join(arm.settings) or "the study's own"),
            Cell(teacher_role(arm.teacher)),
            Cell(arm.label or NOTHING.text),
        ]
        for arm in study.compared
    ]
    columns = ["arm", "method", "settings", "teacher", "in words"]
    caption = "What is compared. Settings are those of the study where none are named."
    return Table("arms", "Arms", caption, columns, rows)


def published_table(benchmarks: Sequence[str]) -> Table | None:
    """Published numbers on the benchmarks, as references; None where there are none."""
    scores = published_on(benchmarks)
    if not scores:
        return None
    rows = [
        [
            Cell(each.method),
            Cell(each.title),
            Cell(f"{each.value:.2f}", f"{each.metric}{f', k = {each.k}' if each.k else ''}"),
            Cell(each.model, f"from {each.teacher}" if each.teacher else ""),
            Cell(each.source, each.origin),
            Cell(each.caveat),
        ]
        for each in scores
    ]
    columns = ["published as", "benchmark", "score, %", "model", "source", "caveat"]
    caption = f"Numbers of others, for reference: {STATUS}. Their protocols are not this study's."
    return Table("published", "Published numbers", caption, columns, rows)


def final_table(analysis: Analysis) -> Table:
    """Each method's final score, in study order: the table to read first."""
    others = list(dict.fromkeys(other for row in analysis.methods for other in row.versus))
    k = analysis.k
    columns = ["method", f"avg@{k}", "by seed", "over student", *(f"over {x}" for x in others)]
    rows = [_final_row(row, others) for row in analysis.methods]
    columns += ["gap closed, %", f"pass@{k}", f"maj@{k}"]
    name = f"final-{analysis.benchmark}"
    return Table(name, "Final scores", score_caption(analysis), columns, rows)


def _final_row(row: MethodRow, others: list[str]) -> list[Cell]:
    reference = is_reference(row.method)
    return [
        Cell(row.method),
        score_cell(row.score),
        NOTHING if reference else Cell(" · ".join(percent(value) for value in row.per_seed)),
        difference_cell(row.gain),
        *(difference_cell(row.versus.get(other)) for other in others),
        NOTHING if row.gap is None else _gap(row.gap),
        score_cell(row.pass_k),
        score_cell(row.maj_k),
    ]


def score_cell(interval: Interval | None) -> Cell:
    """A score in %, above its interval."""
    if interval is None:
        return NOTHING
    return Cell(percent(interval.value), interval_words(interval))


def _gap(gap: Interval) -> Cell:
    return Cell(f"{100 * gap.value:.0f}", f"{100 * gap.low:.0f} to {100 * gap.high:.0f}")


def difference_cell(interval: Interval | None) -> Cell:
    """A difference in points, above its interval."""
    if interval is None:
        return NOTHING
    detail = interval_words(interval, signed=True)
    return Cell(points(interval.value), detail, verdict(interval))


def seed_table(analysis: Analysis) -> Table:
    """Each run's final score: what the means of the first table hide."""
    k = analysis.k
    columns = ["run", "seed", "at step", f"avg@{k}", "over student", f"pass@{k}", f"maj@{k}"]
    caption = (
        "Each run's last evaluated checkpoint. 95 % intervals resample questions; the gain over "
        "the student is paired over questions. Truncated: responses that hit the length limit; no "
        "answer: responses without one, which count as wrong."
    )
    rows = [_seed_row(row) for row in analysis.seeds]
    columns += ["truncated, %", "no answer, %"]
    return Table(f"seeds-{analysis.benchmark}", "Run by run", caption, columns, rows)


def _seed_row(row: SeedRow) -> list[Cell]:
    partial = f"of {row.steps}" if row.checkpoint_step < row.steps else ""
    return [
        Cell(row.run),
        Cell(str(row.seed)),
        Cell(str(row.checkpoint_step), partial),
        score_cell(row.score),
        difference_cell(row.gain),
        NOTHING if row.pass_k is None else Cell(percent(row.pass_k)),
        NOTHING if row.maj_k is None else Cell(percent(row.maj_k)),
        Cell(percent(row.truncated_fraction)),
        Cell(percent(row.no_answer_fraction)),
    ]


def budget_table(analysis: Analysis) -> Table | None:
    """Scores where all have cost the same, in each unit; None where there is nothing."""
    if not analysis.budgets:
        return None
    columns = ["method"]
    for budget in analysis.budgets:
        columns.append(f"at {amount(budget.amount, budget.unit)}")
        columns.append(f"over {analysis.baseline}")
    methods = [row.method for row in analysis.methods if not is_reference(row.method)]
    rows = [[Cell(name), *_at_budgets(analysis, name)] for name in methods]
    caption = (
        f"avg@{analysis.k} in % where each curve has cost what the cheapest method spent in all, "
        "linear between checkpoints, and the difference in points. A method without such a cost "
        "(worked solutions are not sampled) has no score there. 95 % intervals as above."
    )
    name = f"budgets-{analysis.benchmark}"
    return Table(name, "At equal budgets", caption, columns, rows)


def _at_budgets(analysis: Analysis, method: str) -> list[Cell]:
    cells = []
    for budget in analysis.budgets:
        cells += [score_cell(budget.scores.get(method)), difference_cell(budget.versus.get(method))]
    return cells


def efficiency_table(analysis: Analysis) -> Table | None:
    """Efficiency against the baseline, in each unit of cost; None where there is nothing."""
    if not analysis.efficiency:
        return None
    columns = [
        "method",
        *(f"{UNIT_NAMES[unit]}" for unit in EFFICIENCY_UNITS),
        "to the target",
        "baseline",
    ]
    rows = [_efficiency_row(row) for row in analysis.efficiency]
    name = f"efficiency-{analysis.benchmark}"
    return Table(name, "Sample efficiency", efficiency_caption(analysis), columns, rows)


def efficiency_cell(found: Efficiency, unit: str) -> Cell:
    """`3.0×` above its interval; a bound with what it means."""
    value, interval = factor(found.value), factor_interval(found)
    if found.value.bound == "<":
        text = f"{value}, not reached in {amount(found.cost, unit)}"
        return Cell(text, "" if found.high.bound == "<" else interval)  # "never" says it all
    return Cell(value, interval)


def _efficiency_row(row: EfficiencyRow) -> list[Cell]:
    """A bound is explained once, beside the samples; the other units show the factor alone."""
    cells = [Cell(row.method)]
    for unit in EFFICIENCY_UNITS:
        found = row.units.get(unit)
        if found is None:
            cells.append(Cell("not logged"))
        elif unit == "samples":
            cells.append(efficiency_cell(found, unit))
        else:
            cells.append(Cell(factor(found.value), factor_interval(found)))
    samples, seconds = row.units.get("samples"), row.units.get("seconds")
    if samples is None:
        return [*cells, NOTHING, NOTHING]
    own = duration(seconds.cost) if seconds else ""
    other = duration(seconds.baseline_cost) if seconds else ""
    reached = NOTHING if samples.value.bound == "<" else Cell(amount(samples.cost, "samples"), own)
    return [*cells, reached, Cell(amount(samples.baseline_cost, "samples"), other)]
