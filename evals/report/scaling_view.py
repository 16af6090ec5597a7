"""The test-time scaling experiment as people see it: sentences, a table, a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from evals.report.scaling import Scaling, ScalingRow
from evals.report.styles import RC, SOFT, Drawing, Style, drawn
from evals.report.tables import NOTHING, Cell, Table
from evals.report.words import interval_words, percent
from evals.scaling.speedup import Ratio, SpeedUp
from reopold.study_config import REFERENCES

#: Dashes and marker of the curves that no training made.
_REFERENCES: dict[str, tuple[tuple[float, ...], str]] = {
    "student": ((1, 2), "x"),
    "teacher": ((7, 2), "+"),
}
_COSTS = {"seconds": "time", "tokens": "tokens", "flops": "FLOPs"}


def scaling_reading(found: Scaling) -> list[str]:
    """What the experiment allows to be said of each student."""
    if not found.speed_ups:
        return [
            "The teacher was not sampled: there is nothing to hold the students' votes against."
        ]
    target = next(iter(found.speed_ups.values())).target
    sentences = [
        f"The teacher scores {percent(target)} % with one sample a question "
        f"({found.n} questions). To this a vote among k samples of a student is compared:"
    ]
    sentences += [_student(method, each) for method, each in found.speed_ups.items()]
    return [text.replace(" %", "\u00a0%") for text in sentences]


def _student(method: str, found: SpeedUp) -> str:
    scores = (
        f"{percent(found.start)} % with one sample, {percent(found.best)} % with a vote among "
        f"{found.largest_k}"
    )
    name = "the student before" if method == REFERENCES[0] else method
    costs = ", ".join(
        f"{_ratio(getattr(found, cost), found)} in {words}" for cost, words in _COSTS.items()
    )
    if found.k is None:
        return (
            f"{name}: {scores}. It does not reach the teacher's score by k = {found.largest_k}; "
            f"the speed-up is below {costs}."
        )
    text = (
        f"{name}: {scores}. It reaches the teacher's score at k = {found.k:.1f} "
        f"({_k_limits(found)}); the speed-up, the teacher's cost over its own there, is {costs}."
    )
    if found.reached < 1.0:
        missed = 100 * (1 - found.reached)
        share = "less than 1" if missed < 1 else f"{missed:.0f}"
        text += f" In {share} % of the resamples it is not reached."
    return text


def _k_limits(found: SpeedUp) -> str:
    high = f"{found.k_high:.1f}" if math.isfinite(found.k_high) else f"beyond {found.largest_k}"
    return f"{found.k_low:.1f} to {high}"


def _ratio(ratio: Ratio, found: SpeedUp) -> str:
    return f"{ratio.value:.2f}× ({ratio.low:.2f} to {ratio.high:.2f})"


def scaling_view_table(found: Scaling) -> Table:
    """A row a curve: scores at one and at all samples, and the speed-up over the teacher."""
    columns = ["method", "parameters", "one sample", f"maj@{found.k}", f"pass@{found.k}"]
    columns += ["k needed", *(f"speed-up, {words}" for words in _COSTS.values())]
    rows = [_table_row(row, found.speed_ups.get(row.method)) for row in found.rows]
    name = f"scaling-{found.benchmark}"
    return Table(name, "Test-time scaling", _caption(found), columns, rows)


def _table_row(row: ScalingRow, found: SpeedUp | None) -> list[Cell]:
    first, last = row.points[0], row.points[-1]
    scores = [
        Cell(percent(each.value), interval_words(each))
        for each in (first.maj, last.maj, last.pass_)
    ]
    cells = [Cell(row.method), Cell(f"{row.parameters:,}"), *scores]
    if found is None:
        return [*cells, *[NOTHING] * (1 + len(_COSTS))]
    if found.k is None:
        cells.append(Cell(f"not reached by {found.largest_k}"))
    else:
        cells.append(Cell(f"{found.k:.1f}", _k_limits(found)))
    bound = "" if found.k is not None else "< "
    for cost in _COSTS:
        ratio: Ratio = getattr(found, cost)
        cells.append(Cell(f"{bound}{ratio.value:.2f}×", f"{ratio.low:.2f} to {ratio.high:.2f}"))
    return cells


def _caption(found: Scaling) -> str:
    return (
        f"{found.k} samples of each of {found.n} questions of {found.benchmark}, the last "
        "checkpoints, every seed; all k are expectations over subsets of the same samples. "
        "The k needed is the smallest, interpolated in log k, whose maj@k reaches the teacher's "
        "score with one sample; speed-up: cost of that sample over the cost of so many of the "
        "student's, a bound where the score is not reached. Time: wall-clock, student and teacher "
        "in turn in one process with the same batch size, a batch's seconds shared out evenly "
        "among its samples. Tokens: the prompt with its images as the model reads it, once for all "
        "samples, and every response. "
        "FLOPs: 2 × parameters × tokens. 95 % intervals resample questions and seeds; how a time "
        "differs from one measurement to the next is not in them."
    )


def scaling_figure(found: Scaling, looks: Mapping[str, Style]) -> Drawing:
    """maj@k against the FLOPs of a question (method.md section 9, figure b)."""
    with rc_context({**RC, "font.size": 8.5}):
        figure = Figure(figsize=(5.4, 3.5), layout="constrained")
        axes = figure.add_subplot()
        for row in found.rows:
            _curve(axes, row, looks)
        teacher = found.row(REFERENCES[1])
        if teacher is not None:
            axes.axhline(
                100 * teacher.points[0].maj.value, color=SOFT, linewidth=0.8, dashes=(1, 3)
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("FLOPs a question (2 × parameters × tokens), k doubling along each curve")
        axes.set_ylabel("maj@k, %")
        axes.margins(y=0.1)
        figure.legend(loc="outside lower center", ncols=min(4, len(found.rows)), handlelength=3.2)
        title = f"Score on {found.benchmark} against inference compute. {_ends(found.rows)}."
        return drawn(figure, f"scaling-figure-{found.benchmark}", title)


def _curve(axes: Axes, row: ScalingRow, looks: Mapping[str, Style]) -> None:
    if row.method in _REFERENCES:
        color, (dashes, marker) = SOFT, _REFERENCES[row.method]
    else:
        style = looks[row.method]
        color, dashes, marker = style.color, style.dashes, style.marker
    flops = [point.flops for point in row.points]
    low, high = ([100 * getattr(p.maj, end) for p in row.points] for end in ("low", "high"))
    axes.fill_between(flops, low, high, color=color, alpha=0.14, linewidth=0)
    scores = [100 * point.maj.value for point in row.points]
    (line,) = axes.plot(
        flops, scores, color=color, linewidth=1.6, marker=marker, markersize=4.5, label=row.method
    )
    if dashes:
        line.set_dashes(dashes)


def _ends(rows: Sequence[ScalingRow]) -> str:
    return "; ".join(
        f"{row.method} {100 * row.points[0].maj.value:.1f} % at k = 1, "
        f"{100 * row.points[-1].maj.value:.1f} % at k = {row.points[-1].k}"
        for row in rows
    )
