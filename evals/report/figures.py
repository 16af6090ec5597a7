"""Figures as inline SVG that takes its colours from the page, so it is readable in light and dark.

matplotlib draws with fixed hexadecimal colours; `svg_text` then replaces each by a CSS variable
of the page. Lines differ in dash and marker too: nothing is told by colour alone.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import CARETUPBASE, MarkerStyle
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, MaxNLocator

from evals.report.alarms import alarm_steps
from evals.report.analysis import curve_table
from evals.report.statistics import FloatArray
from evals.report.study import Run, Study
from reopold.study_config import REFERENCES

#: CSS variable and the colour that matplotlib is told (each only once, so that it can be found).
INK, SOFT, GRID, GROUND = "#1c2024", "#5b6570", "#dfe3e8", "#fdfdfe"
_VARIABLES = {INK: "ink", SOFT: "soft", GRID: "grid", GROUND: "ground"}

#: Points along a line beyond which neighbouring steps are averaged: keeps the page small.
MAX_POINTS = 100


@dataclass(frozen=True)
class Style:
    """How a method is drawn everywhere. Okabe and Ito's palette: safe for colour-blind eyes."""

    color: str
    dark: str
    """The same hue on a dark page."""
    dashes: tuple[float, ...]
    marker: str

    @property
    def variable(self) -> str:
        return "series-" + self.color.removeprefix("#")

    @property
    def symbol(self) -> str:
        """The marker as an SVG path around (15, 5), for the keys in the tables."""
        style = MarkerStyle(self.marker)
        path = style.get_path().transformed(style.get_transform())
        size = 3.2 / float(np.abs(np.asarray(path.vertices)).max())
        letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}
        parts = []
        for points, code in path.iter_segments(simplify=False, curves=True):
            if code == Path.CLOSEPOLY:
                parts.append("Z")
                continue
            xy = [f"{15 + size * x:.2f} {5 - size * y:.2f}" for x, y in points.reshape(-1, 2)]
            parts.append(letters[code] + " ".join(xy))
        return "".join(parts)


STYLES = {
    "reopold": Style("#0072b2", "#56b4e9", (), "o"),
    "opd": Style("#d55e00", "#f08a3c", (5, 2), "s"),
    "grpo": Style("#00805e", "#2fc79a", (1.5, 1.5), "^"),
    "sft": Style("#a8487f", "#dd8fbb", (5, 2, 1.5, 2), "D"),
    "exopd": Style("#b8860b", "#e6c04d", (7, 2), "v"),
    "iw_opd": Style("#7a5195", "#b48fd0", (3, 1), "P"),
    "entropy_opd": Style("#8b4513", "#c98a5b", (7, 2, 1.5, 2), "<"),
    "trust_region": Style("#4b6a88", "#8fb0cf", (3, 1, 1, 1), "X"),
    "gkd": Style("#c23b5a", "#f08aa0", (9, 3), "p"),
    "dr_grpo": Style("#5f8f00", "#a5cf4a", (1, 2), "h"),
    "dapo": Style("#007f8b", "#4fc3cf", (4, 1, 1, 1, 1, 1), "*"),
}

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

RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Drawing:
    """An inline SVG and, in words, what it shows."""

    title: str
    svg: str


def learning_curves(study: Study, benchmark: str) -> Drawing | None:
    """avg@k against samples; None before anything but references was evaluated."""
    table = curve_table(study)
    table = table[(table["benchmark"] == benchmark) & (table["metric"] == "avg@k")]
    methods = [name for name in study.compared if (table["method"] == name).any()]
    if not (table["checkpoint_step"] > 0).any():
        return None
    with rc_context({**RC, "font.size": 8.5}):
        figure = Figure(figsize=(5.4, 3.5), layout="constrained")
        axes = figure.add_subplot()
        for name in methods:
            own = table[table["method"] == name]
            scores = own.pivot_table(index="samples", columns="seed", values="value").dropna()
            # Only where all seeds were evaluated: a mean whose members change would jump.
            _line(axes, name, scores.index.to_numpy(float), 100 * scores, markers=True)
        axes.set_xlabel("samples (optimiser-visible rollouts)")
        axes.set_ylabel(f"avg@{_k(study, benchmark)}, %")
        axes.set_xlim(0, float(table["samples"].max()) * 1.02)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        _reference_lines(axes, study, benchmark)
        switches = {run.switch_samples for run in _switching(study)}
        for samples in sorted(switches):
            _switch_line(axes, samples, "reopold: refinement")
        figure.legend(
            loc="outside lower center", ncols=min(4, max(1, len(methods))), handlelength=3.2
        )
        means = ", ".join(f"{name} {_last(table, name):.1f} %" for name in methods)
        title = f"Score on {benchmark} against samples. Last checkpoints, mean over seeds: {means}."
        return Drawing(title, svg_text(figure, f"curves-{benchmark}", title))


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
    with rc_context({**RC, "font.size": 10.0}):
        figure = Figure(figsize=(3.4, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for name, table in lines.items():
            _line(axes, name, table.index.to_numpy(float), table, markers=False)
            _alarm_marks(axes, name, alarm_steps(study, name, metric))
        axes.set_title(label, fontsize=10.5, loc="left")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.01)
        for step in sorted({run.config.switch_step for run in _switching(study)}):
            _switch_line(axes, step, "")
        ends = ", ".join(f"{name} {_end(table):.3g}" for name, table in lines.items())
        title = f"{label} over training steps. At the last step, mean over seeds: {ends}."
        return Drawing(title, svg_text(figure, metric.replace("/", "-"), title))


def _line(axes: Axes, name: str, x: FloatArray, table: pd.DataFrame, *, markers: bool) -> None:
    """Mean over the columns (seeds) with a min-max band."""
    style = STYLES[name]
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


def _alarm_marks(axes: Axes, name: str, steps: list[int]) -> None:
    """Carets on the axis where alarms began."""
    axes.plot(
        steps,
        [0.0] * len(steps),
        linestyle="none",
        marker=CARETUPBASE,
        markersize=6,
        color=STYLES[name].color,
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


def _switching(study: Study) -> list[Run]:
    """reopold's runs that have two phases."""
    return [run for run in study.of("reopold") if run.config.switches]


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


def svg_text(figure: Figure, name: str, title: str) -> str:
    """The figure as an `<svg>` element for a page: accessible, its ids its own, no fixed colours.

    The same figure gives the same bytes: no date, and ids salted with `name`.
    """
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg")
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)  # holds the date
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    for color, variable in palette().items():
        svg = svg.replace(color, f"var(--{variable})")
    svg = re.sub(r"font: ([\d.]+px) [^;]*;", r"font-size: \1;", svg)
    label = f'<svg role="img" aria-label="{escape(title)}" '
    return svg.replace("<svg ", label, 1).strip()


def palette() -> dict[str, str]:
    """Colour as drawn -> name of the CSS variable that replaces it."""
    return {**_VARIABLES, **{style.color: style.variable for style in STYLES.values()}}
