"""Scaling curves as SVG files that are the same byte for byte, and readable without colour."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from reopold.config import ConfigError

Axis = Literal["k", "tokens", "flops", "seconds"]

_LABELS: dict[Axis, str] = {
    "k": "samples a question, k",
    "tokens": "tokens a question, prompt included",
    "flops": "FLOPs a question (2 × parameters × tokens)",
    "seconds": "seconds a question (samples one after another)",
}

#: Grey, dashes and marker of each curve in turn: every one tells them apart by itself.
_STYLES: tuple[tuple[str, tuple[float, ...], str], ...] = (
    ("0.0", (), "o"),
    ("0.35", (5, 2), "s"),
    ("0.55", (1.5, 1.5), "^"),
    ("0.2", (5, 2, 1.5, 2), "D"),
    ("0.45", (3, 1), "v"),
    ("0.65", (8, 2), "P"),
)

_RC: dict[Any, Any] = {
    "svg.hashsalt": "reopold",  # ids that matplotlib would otherwise draw at random
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Plot:
    """An SVG and, in words, what it shows."""

    svg: str
    caption: str


def scaling_plot(
    curves: Mapping[str, pd.DataFrame],
    metric: str,
    x: Axis = "k",
    *,
    targets: Mapping[str, float] | None = None,
) -> Plot:
    """`metric` of each model against `x`, on a logarithmic axis, with bands.

    Args:
        curves: name of a model -> its table (:func:`evals.scaling.curves.scaling_curve`).
        targets: name -> a score in [0, 1] drawn as a level line (a teacher's, at k = 1).

    Raises:
        ConfigError: no curve, more than can be told apart, or one that has not the metric.
    """
    if not 1 <= len(curves) <= len(_STYLES):
        raise ConfigError(f"a figure shows 1 to {len(_STYLES)} curves, not {len(curves)}")
    with rc_context(_RC):
        figure = Figure(figsize=(5.4, 3.5), layout="constrained")
        axes = figure.add_subplot()
        own = {name: _of(table, metric, name) for name, table in curves.items()}
        for (name, table), style in zip(own.items(), _STYLES, strict=False):
            _curve(axes, name, table, x, style)
        for name, target in (targets or {}).items():
            axes.axhline(100 * target, color="0.3", linewidth=0.8, linestyle=(0, (1, 3)))
            axes.annotate(
                name, (1.0, 100 * target), xycoords=("axes fraction", "data"), ha="right",
                va="bottom", color="0.3",
            )  # fmt: skip
        axes.set_xscale("log")
        if x == "k":
            axes.set_xticks(sorted({int(k) for table in own.values() for k in table["k"]}))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(_LABELS[x])
        axes.set_ylabel(f"{metric}, %")
        axes.legend(handlelength=3.5)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return Plot(file.getvalue(), _caption(own, metric, x))


def _of(table: pd.DataFrame, metric: str, name: str) -> pd.DataFrame:
    rows = table[table["metric"] == metric].sort_values("k")
    if rows.empty:
        raise ConfigError(f"the curve of {name} has no {metric}")
    return rows


def _curve(
    axes: Axes, name: str, table: pd.DataFrame, x: Axis, style: tuple[str, tuple[float, ...], str]
) -> None:
    grey, dashes, marker = style
    line = "-" if not dashes else (0, dashes)
    at = table[x].to_numpy(float)
    low, high = (100 * table[bound].to_numpy(float) for bound in ("low", "high"))
    axes.fill_between(at, low, high, color=grey, alpha=0.12, linewidth=0)
    for bound in (low, high):
        axes.plot(at, bound, color=grey, linewidth=0.5, linestyle=line)
    axes.plot(
        at, 100 * table["value"].to_numpy(float), color=grey, linestyle=line, marker=marker,
        markersize=4, markerfacecolor="white", label=name,
    )  # fmt: skip


def _caption(curves: Mapping[str, pd.DataFrame], metric: str, x: Axis) -> str:
    sizes = sorted({int(n) for table in curves.values() for n in table["n"]})
    counts = " and ".join(str(n) for n in sizes)
    ks = sorted({int(k) for table in curves.values() for k in table["k"]})
    against = "" if x == "k" else f", at the cost of k samples ({_LABELS[x]})"
    last = "; ".join(
        f"{name}: {100 * float(table['value'].iloc[0]):.1f} % at k = {table['k'].iloc[0]}, "
        f"{100 * float(table['value'].iloc[-1]):.1f} % at k = {table['k'].iloc[-1]}"
        for name, table in curves.items()
    )
    plural = "" if sizes == [1] else "s"
    return (
        f"{metric} over n = {counts} question{plural} for k = "
        f"{', '.join(map(str, ks))}{against}. All k are expectations over subsets of the same "
        "samples. Band: 95 % interval over questions (Wilson at the effective number of "
        f"clusters), for each k by itself. {last}."
    )
