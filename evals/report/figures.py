"""Learning curves and training panels of a study."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import CARETUPBASE
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from evals.published import one_a_method, published_on
from evals.report.alarms import alarm_steps
from evals.report.analysis import curve_table
from evals.report.statistics import FloatArray
from evals.report.study import Study
from evals.report.styles import RC, SOFT, Drawing, Style, drawn, styles
from evals.report.words import UNIT_NAMES
from reopold.study_config import REFERENCES

#: Points along a line beyond which neighbouring steps are averaged: keeps the page small.
MAX_POINTS = 34


PANELS = {
    "rollout/entropy": "student entropy, nats",
    "train/grad_norm": "gradient norm",
    "train/kept_fraction": "kept tokens, fraction",
    "train/clip_fraction": "clipped tokens, fraction",
    "rollout/length": "response length, tokens",
    "rollout/truncated_fraction": "truncated, fraction",
    "teacher/reward": "teacher reward, mean R in nats",
    "rollout/reward": "outcome reward, mean",
    "rollout/turns": "turns a dialogue",
    "rollout/calls": "tool calls a dialogue",
    "rollout/failed_calls": "failed tool calls a dialogue",
    "rollout/broken": "broken dialogues, fraction",
}
#: Of the metrics that a run of several families logs as `family/FAMILY/...`.
FAMILY_PANELS = {"reward": "outcome reward", "teacher_reward": "teacher reward", "length": "length"}


def learning_curves(study: Study, benchmark: str) -> Drawing | None:
    """avg@k against samples; None before anything but references was evaluated."""
    table = _curves_of(study, benchmark)
    if not (table["checkpoint_step"] > 0).any():
        return None
    methods = [name for name in study.compared if (table["method"] == name).any()]
    with rc_context({**RC, "font.size": 8.5}):
        figure = Figure(figsize=(5.4, 3.5), layout="constrained")
        axes = figure.add_subplot()
        _curve_lines(axes, study, table, methods, "samples")
        axes.set_xlabel("samples (optimiser-visible rollouts)")
        axes.set_ylabel(f"avg@{_k(study, benchmark)}, %")
        axes.set_xlim(0, float(table["samples"].max()) * 1.02)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        _reference_lines(axes, study, benchmark)
        _published_lines(axes, benchmark)
        for samples in sorted({run.switch_samples for run in study.switching}):
            _switch_line(axes, samples, "refinement")
        figure.legend(
            loc="outside lower center", ncols=min(4, max(1, len(methods))), handlelength=3.2
        )
        means = ", ".join(f"{name} {_last(table, name):.1f} %" for name in methods)
        title = f"Score on {benchmark} against samples. Last checkpoints, mean over seeds: {means}."
        return drawn(figure, f"curves-{benchmark}", title)


def cost_curves(study: Study, benchmark: str) -> list[Drawing]:
    """avg@k against each other unit of cost, a panel each; a method without such a cost is not in
    it."""
    table = _curves_of(study, benchmark)
    drawings = []
    for unit, label in UNIT_NAMES.items():
        if unit in ("samples", "steps"):
            continue
        known = table.groupby("method")[unit].agg(lambda x: bool(x.notna().all() and x.max() > 0))
        methods = [name for name in study.compared if known.get(name, False)]
        if methods:
            drawings.append(_cost_panel(study, table, methods, unit, label))
    return drawings


def _cost_panel(
    study: Study, table: pd.DataFrame, methods: list[str], unit: str, label: str
) -> Drawing:
    benchmark = str(table["benchmark"].iloc[0])
    with rc_context({**RC, "font.size": 10.0}):
        figure = Figure(figsize=(3.4, 2.5), layout="constrained")
        axes = figure.add_subplot()
        _curve_lines(axes, study, table, methods, unit)
        axes.set_title(f"avg@{_k(study, benchmark)}, %", fontsize=10.5, loc="left")
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlim(left=0)
        title = f"Score on {benchmark} against {label}: {', '.join(methods)}."
        return drawn(figure, f"cost-{benchmark}-{unit}", title)


def _curves_of(study: Study, benchmark: str) -> pd.DataFrame:
    table = curve_table(study)
    wanted = (table["benchmark"] == benchmark) & (table["metric"] == "avg@k")
    return table[wanted & table["method"].isin(study.compared)]


def _curve_lines(
    axes: Axes, study: Study, table: pd.DataFrame, methods: list[str], unit: str
) -> None:
    """A line a method: at checkpoints that all its seeds were evaluated at, since a mean whose
    members change would jump; costs are means over seeds."""
    looks = styles(study.config)
    for name in methods:
        own = table[table["method"] == name]
        scores = own.pivot_table(index="checkpoint_step", columns="seed", values="value").dropna()
        costs = own.astype({unit: "float64"}).groupby("checkpoint_step")[unit].mean()
        x = costs.loc[scores.index].to_numpy(float)
        _line(axes, name, looks[name], x, 100 * scores, markers=True)


def training_panels(study: Study) -> list[Drawing]:
    """A panel for each diagnostic that any method logs, one line a method."""
    drawings = []
    for metric, label in (PANELS | _family_panels(study)).items():
        lines: dict[str, pd.DataFrame] = {}
        for name in study.compared:
            runs = [run for run in study.of(name) if metric in run.metrics.columns]
            if runs:
                series = {run.seed: run.metrics[metric].astype("float64") for run in runs}
                table = pd.DataFrame(series).replace([np.inf, -np.inf], np.nan)
                lines[name] = _thin(table)
        if lines:
            drawings.append(_panel(study, metric, label, lines))
    return drawings


def _family_panels(study: Study) -> dict[str, str]:
    """Panels of each family, where a run has several."""
    logged = {name for run in study.runs for name in run.metrics.columns}
    found = {name.split("/")[1] for name in logged if name.startswith("family/")}
    return {
        f"family/{family}/{name}": f"{family}: {label}"
        for family in sorted(found)
        for name, label in FAMILY_PANELS.items()
    }


def _panel(study: Study, metric: str, label: str, lines: dict[str, pd.DataFrame]) -> Drawing:
    looks = styles(study.config)
    with rc_context({**RC, "font.size": 10.0}):
        figure = Figure(figsize=(3.4, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for name, table in lines.items():
            _line(axes, name, looks[name], table.index.to_numpy(float), table, markers=False)
            _alarm_marks(axes, looks[name], alarm_steps(study, name, metric))
        axes.set_title(label, fontsize=10.5, loc="left")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.01)
        for step in sorted({run.config.switch_step for run in study.switching}):
            _switch_line(axes, step, "")
        ends = ", ".join(f"{name} {_end(table):.3g}" for name, table in lines.items())
        title = f"{label} over training steps. At the last step, mean over seeds: {ends}."
        return drawn(figure, metric.replace("/", "-"), title)


def _line(
    axes: Axes, name: str, style: Style, x: FloatArray, table: pd.DataFrame, *, markers: bool
) -> None:
    """Mean over the columns (seeds) with a min-max band."""
    mean = table.mean(axis=1).to_numpy(float)
    if table.shape[1] > 1:
        low, high = table.min(axis=1).to_numpy(float), table.max(axis=1).to_numpy(float)
        axes.fill_between(x, low, high, color=style.color, alpha=0.16, linewidth=0)
    marker = style.marker if markers else ""
    (line,) = axes.plot(
        x, mean, color=style.color, linewidth=1.7 if markers else 1.4, marker=marker, label=name
    )
    line.set_markersize(4.5)
    if style.dashes:
        line.set_dashes(style.dashes)


def _reference_lines(axes: Axes, study: Study, benchmark: str) -> None:
    values = {}
    for name in REFERENCES:
        run = study.references.get(name)
        scored = run.scored(benchmark) if run else []
        if scored and scored[-1].average is not None:
            values[name] = 100 * float(scored[-1].average.mean())
    for name, value in values.items():
        axes.axhline(
            value, color=SOFT, linewidth=1.0, dashes=(1, 2) if name == "student" else (7, 2)
        )
        upper = value == max(values.values()) and len(values) > 1
        axes.annotate(
            f"{name} {value:.1f} %",
            (1.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3 if upper else -3),
            textcoords="offset points",
            ha="right",
            va="bottom" if upper else "top",
            color=SOFT,
            fontsize=7.5,
        )
    axes.margins(y=0.1)


def _published_lines(axes: Axes, benchmark: str) -> None:
    """What others have printed, marked as such: no result of this study. The table has them all."""
    for score in one_a_method(published_on([benchmark])):
        axes.axhline(score.value, color=SOFT, linewidth=0.7, dashes=(3, 3, 1, 3))
        axes.annotate(
            f"published: {score.method} {score.value:.1f} %",
            (0.0, score.value),
            xycoords=("axes fraction", "data"),
            xytext=(2, 1),
            textcoords="offset points",
            color=SOFT,
            fontsize=6,
        )


def _alarm_marks(axes: Axes, style: Style, steps: list[int]) -> None:
    """Carets on the axis where alarms began."""
    axes.plot(
        steps,
        [0.0] * len(steps),
        linestyle="none",
        marker=CARETUPBASE,
        markersize=6,
        color=style.color,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
        zorder=5,
    )


def _switch_line(axes: Axes, x: float, text: str) -> None:
    axes.axvline(x, color=SOFT, linewidth=1.0, dashes=(2, 2))
    if text:
        axes.annotate(
            text,
            (x, 0.02),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            color=SOFT,
            fontsize=7.5,
        )


def _k(study: Study, benchmark: str) -> int:
    return max(item.results.k for run in study.everyone for item in run.on(benchmark))


def _last(table: pd.DataFrame, method: str) -> float:
    own = table[table["method"] == method]
    return float(100 * own.groupby("seed")["value"].last().mean())


def _end(table: pd.DataFrame) -> float:
    """Mean over seeds at the last step that has a value."""
    means = table.mean(axis=1).dropna()
    return float(means.iloc[-1]) if len(means) else float("nan")


def _thin(table: pd.DataFrame) -> pd.DataFrame:
    """At most MAX_POINTS rows: means over equal stretches of steps, at their middle."""
    if len(table) <= MAX_POINTS:
        return table
    width = -(-len(table) // MAX_POINTS)
    stretch = np.arange(len(table)) // width
    steps = pd.Series(table.index, index=table.index, dtype="float64").groupby(stretch).mean()
    return table.groupby(stretch).mean().set_axis(pd.Index(steps), axis=0)
