"""Sweeps, the ablation grid and other teachers, in tables and figures (method.md section 9, f-i).

A sweep over one number is a line, sweeps over the same number share a figure; anything else is a
row of dots a combination.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evals.report.analysis import Analysis, SweepRow, TeacherRow
from evals.report.statistics import FloatArray
from evals.report.styles import INK, RC, SOFT, Drawing, drawn
from evals.report.tables import Cell, Table, difference_cell, score_cell
from evals.report.words import percent
from evals.stats import Interval

#: Lines of sweeps that share a figure.
_LINES: tuple[tuple[tuple[float, ...], str], ...] = (
    ((), "o"), ((5, 2), "s"), ((1.5, 1.5), "^"), ((5, 2, 1.5, 2), "D"),
)  # fmt: skip


def sweep_csv(found: Sequence[Analysis]) -> pd.DataFrame:
    """sweeps.csv: a row a point, benchmark and key; and a row a teacher, under the sweep
    `teacher`."""
    rows: list[tuple[object, ...]] = []
    for each in found:
        for row in each.sweeps:
            point = ", ".join(f"{k}={v}" for k, v in zip(row.keys, row.values, strict=True))
            score = (row.score.value, row.score.low, row.score.high)
            rows.append((each.benchmark, row.sweep, point, row.arm, len(row.seeds), *score))
        for teacher in each.teachers:
            score = (teacher.score.value, teacher.score.low, teacher.score.high)
            rows.append((each.benchmark, "teacher", teacher.teacher, teacher.arm, None, *score))
    columns = ["benchmark", "sweep", "point", "arm", "seeds", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def sweep_tables(analysis: Analysis) -> list[Table]:
    """A table a sweep, then one of the teachers."""
    tables = [
        _sweep_table(analysis, name, list(rows))
        for name, rows in groupby(analysis.sweeps, key=lambda row: row.sweep)
    ]
    return [*tables, _teacher_table(analysis)] if analysis.teachers else tables


def _sweep_table(analysis: Analysis, name: str, rows: Sequence[SweepRow]) -> Table:
    own = any(row.versus is not None for row in rows)
    others = ["over the method's own settings"] if own else []
    columns = ["point", *rows[0].keys, "seeds", f"avg@{analysis.k}", "over student", *others]
    cells = [
        [
            Cell(row.arm),
            *map(Cell, row.values),
            Cell(str(len(row.seeds))),
            score_cell(row.score),
            difference_cell(row.gain),
            *([difference_cell(row.versus)] if own else []),
        ]
        for row in rows
    ]
    caption = (
        f"{' and '.join(rows[0].keys)} on {analysis.benchmark}: last checkpoints, {analysis.n} "
        f"questions, {analysis.k} samples each, 95 % intervals over questions and seeds."
    )
    return Table(f"sweep-{name}-{analysis.benchmark}", f"Sweep: {name}", caption, columns, cells)


def _teacher_table(analysis: Analysis) -> Table:
    columns = ["arm", "teacher", "its parameters", "its score", f"avg@{analysis.k}", "over student"]
    cells = [
        [
            Cell(row.arm),
            Cell(row.teacher),
            Cell(f"{row.parameters:,}"),
            score_cell(row.teacher_score),
            score_cell(row.score),
            difference_cell(row.gain),
        ]
        for row in analysis.teachers
    ]
    caption = f"The same student on {analysis.benchmark} after teachers of different size."
    name = f"teachers-{analysis.benchmark}"
    return Table(name, "Other teachers", caption, columns, cells)


def sweep_figures(analysis: Analysis) -> list[Drawing]:
    """One figure for all sweeps over the same keys, then one of the teachers."""
    together: dict[tuple[str, ...], list[SweepRow]] = {}
    for row in analysis.sweeps:
        together.setdefault(tuple(row.keys), []).append(row)
    drawings = []
    for keys, rows in together.items():
        shown_as = _line_figure if len(keys) == 1 and _numeric(rows) else _dot_figure
        drawings.append(shown_as(analysis, keys, rows))
    if analysis.teachers:
        drawings.append(_teacher_figure(analysis, analysis.teachers))
    return drawings


def _numeric(rows: Sequence[SweepRow]) -> bool:
    try:
        return all(float(value) is not None for row in rows for value in row.values)
    except ValueError:
        return False


def _line_figure(analysis: Analysis, keys: Sequence[str], rows: Sequence[SweepRow]) -> Drawing:
    key = keys[0]
    with rc_context({**RC, "font.size": 8.5}):
        figure = Figure(figsize=(4.2, 3.0), layout="constrained")
        axes = figure.add_subplot()
        sweeps = {name: list(each) for name, each in groupby(rows, key=lambda row: row.sweep)}
        for (name, each), (dashes, marker) in zip(sweeps.items(), _LINES * 4, strict=False):
            x = np.array([float(row.values[0]) for row in each])
            order = np.argsort(x, kind="stable")
            y, low, high = _ends([each[i].score for i in order])
            axes.fill_between(x[order], low, high, color=SOFT, alpha=0.15, linewidth=0)
            (line,) = axes.plot(
                x[order], y, color=INK, linewidth=1.4, marker=marker, markersize=4.5, label=name
            )
            if dashes:
                line.set_dashes(dashes)
        axes.set_xlabel(key)
        _finish(figure, axes, analysis, len(sweeps))
        said = "; ".join(f"{row.arm} {percent(row.score.value)} %" for row in rows)
        title = f"Score on {analysis.benchmark} against {key}: {said}."
        return drawn(figure, f"sweep-{key}-{analysis.benchmark}", title)


def _dot_figure(analysis: Analysis, keys: Sequence[str], rows: Sequence[SweepRow]) -> Drawing:
    labels = [" · ".join(map(_said, row.keys, row.values)) for row in rows]
    said = "; ".join(
        f"{label} {percent(row.score.value)} %" for label, row in zip(labels, rows, strict=True)
    )
    name = " × ".join(key.rpartition(".")[2] for key in keys)
    title = f"Score on {analysis.benchmark} by {name}: {said}."
    figure = _dots(analysis, labels, [row.score for row in rows], name)
    slug = "-".join(key.rpartition(".")[2] for key in keys)
    return drawn(figure, f"sweep-{slug}-{analysis.benchmark}", title)


def _teacher_figure(analysis: Analysis, rows: Sequence[TeacherRow]) -> Drawing:
    labels = [f"{row.arm} ← {row.teacher} ({percent(row.teacher_score.value)} %)" for row in rows]
    said = "; ".join(
        f"{label}: {percent(row.score.value)} %" for label, row in zip(labels, rows, strict=True)
    )
    title = f"Score on {analysis.benchmark} by teacher, smallest first: {said}."
    figure = _dots(analysis, labels, [row.score for row in rows], "arm ← teacher (its score)")
    return drawn(figure, f"teachers-{analysis.benchmark}", title)


def _dots(
    analysis: Analysis, labels: Sequence[str], scores: Sequence[Interval], name: str
) -> Figure:
    with rc_context({**RC, "font.size": 8.5}):
        figure = Figure(figsize=(5.4, 0.8 + 0.26 * len(labels)), layout="constrained")
        axes = figure.add_subplot()
        value, low, high = _ends(scores)
        y = np.arange(len(labels))[::-1]
        axes.hlines(y, low, high, color=SOFT, linewidth=1.4)
        axes.plot(value, y, linestyle="none", marker="o", markersize=5, color=INK)
        axes.set_yticks(y, labels)
        axes.set_ylim(-0.7, len(labels) - 0.3)
        axes.set_xlabel(f"avg@{analysis.k}, %")
        axes.set_title(name, fontsize=9, loc="left")
        _student_line(axes.axvline, analysis)
    return figure


def _finish(figure: Figure, axes: Axes, analysis: Analysis, lines: int) -> None:
    axes.set_ylabel(f"avg@{analysis.k}, %")
    _student_line(axes.axhline, analysis)
    axes.margins(y=0.1)
    if lines > 1:
        figure.legend(loc="outside lower center", ncols=min(4, lines), handlelength=3.2)


def _student_line(draw: Callable[..., object], analysis: Analysis) -> None:
    """A dotted line where the untaught student stands."""
    student = analysis.row("student")
    if student is not None:
        draw(100 * student.score.value, color=SOFT, linewidth=1.0, dashes=(1, 2))


def _ends(scores: Sequence[Interval]) -> tuple[FloatArray, FloatArray, FloatArray]:
    rows = np.array([[100 * s.value, 100 * s.low, 100 * s.high] for s in scores])
    return rows[:, 0], rows[:, 1], rows[:, 2]


def _said(key: str, value: str) -> str:
    """A setting in a label: a switch by its name, any other by its value."""
    switch = key.rpartition(".")[2]
    return {"true": switch, "false": f"no {switch}"}.get(value, value)
