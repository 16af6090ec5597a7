"""Where the reward R of a token lies, and at which entropies (method.md section 9, c and e).

From diagnostics.jsonl of the runs with a teacher, over three stretches of the training, seeds
pooled. Axes: E bins of R and one more at either end, D parts of the tokens by entropy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evals.report.statistics import FloatArray
from evals.report.study import Run, Study
from evals.report.styles import INK, RC, SOFT, Drawing, drawn, styles
from reopold.reward_bins import ENTROPY_PARTS, EPS, REWARD_EDGES
from reopold.run_dir import Record, read_lines

#: Share of the steps in a stretch, and how it is drawn.
STRETCH = 0.1
_DASHES: dict[str, tuple[float, ...]] = {"first": (1.5, 1.5), "middle": (5, 2), "last": ()}


@dataclass(frozen=True)
class Stretch:
    """Some steps of an arm, over its seeds."""

    arm: str
    when: str
    """"first", "middle" or "last" tenth of the steps."""
    steps: tuple[int, int]
    """First and last, from 0."""
    tokens: int
    floor: float | None
    share_E: FloatArray
    clipped: float
    """Share of the tokens with R below the floor, as the trainer counted; NaN: not logged."""
    small: float
    """Share of the tokens with |R| below :data:`reopold.reward_bins.EPS`."""
    abs_D: FloatArray
    """Mean |R| of each tenth of the tokens by entropy; empty: too few tokens."""
    abs_share_D: FloatArray
    """Its share of the total |R|."""


def stretches(study: Study) -> list[Stretch]:
    """Of every compared arm that has a teacher."""
    found = []
    for name in study.compared:
        runs = [(run, lines) for run in study.of(name) if (lines := _diagnostics(run))]
        if runs:
            found += [each for when in _DASHES if (each := _stretch(name, when, runs))]
    return found


def _diagnostics(run: Run) -> list[Record]:
    file = run.directory.diagnostics_file
    try:
        lines = read_lines(file) if file.exists() else []
    except (json.JSONDecodeError, UnicodeDecodeError):
        return []
    return [line for line in lines if "step" in line and "reward_counts" in line]


def _stretch(arm: str, when: str, runs: Sequence[tuple[Run, list[Record]]]) -> Stretch | None:
    steps = runs[0][0].config.train.steps
    width = max(1, round(STRETCH * steps))
    first = {"first": 0, "middle": (steps - width) // 2, "last": steps - width}[when]
    within = range(first, first + width)
    lines = [line for _, each in runs for line in each if line["step"] in within]
    if not lines:
        return None
    counts_E = np.sum([line["reward_counts"] for line in lines], axis=0)
    tokens = [sum(line["reward_counts"]) for line in lines]
    cut = [line for line in lines if line["abs_reward_by_entropy"]]
    clipped = [
        run.metrics.loc[run.metrics.index.isin(within), "train/clip_fraction"]
        for run, _ in runs
        if "train/clip_fraction" in run.metrics.columns
    ]
    return Stretch(
        arm=arm,
        when=when,
        steps=(first, first + width - 1),
        tokens=int(sum(tokens)),
        floor=lines[0]["floor"],
        share_E=counts_E / max(1, counts_E.sum()),
        clipped=float(pd.concat(clipped).mean()) if clipped else float("nan"),
        small=float(np.average([line["small_fraction"] for line in lines], weights=tokens)),
        abs_D=_means(cut, "abs_reward_by_entropy"),
        abs_share_D=_means(cut, "abs_share_by_entropy"),
    )


def _means(lines: Sequence[Record], name: str) -> FloatArray:
    if not lines:
        return np.array([])
    means: FloatArray = np.mean([line[name] for line in lines], axis=0)
    return means


def reward_table(found: Sequence[Stretch]) -> pd.DataFrame:
    """rewards.csv: share of the tokens in each bin of R (low inclusive) that has any."""
    low = [-np.inf, *REWARD_EDGES]
    rows = [
        (s.arm, s.when, *s.steps, s.tokens, s.floor, s.clipped, s.small, low[i], share)
        for s in found
        for i, share in enumerate(s.share_E)
        if share > 0
    ]
    columns = ["method", "stretch", "first_step", "last_step", "tokens", "floor", "clip_fraction"]
    return pd.DataFrame(rows, columns=[*columns, "small_fraction", "bin_low", "share"])


def entropy_table(found: Sequence[Stretch]) -> pd.DataFrame:
    """entropy.csv: |R| of each tenth of the tokens, from lowest entropy to highest."""
    rows = [
        (s.arm, s.when, *s.steps, part + 1, s.abs_D[part], s.abs_share_D[part])
        for s in found
        for part in range(len(s.abs_D))
    ]
    columns = ["method", "stretch", "first_step", "last_step", "entropy_tenth", "mean_abs_reward"]
    return pd.DataFrame(rows, columns=[*columns, "share_of_abs_reward"])


def reward_figures(found: Sequence[Stretch]) -> list[Drawing]:
    """A histogram of R for each arm, the floor drawn."""
    arms = list(dict.fromkeys(each.arm for each in found))
    return [_histogram(arm, [each for each in found if each.arm == arm]) for arm in arms]


def _histogram(arm: str, found: Sequence[Stretch]) -> Drawing:
    with rc_context({**RC, "font.size": 10.0}):
        figure = Figure(figsize=(3.4, 2.5), layout="constrained")
        axes = figure.add_subplot()
        width = REWARD_EDGES[1] - REWARD_EDGES[0]
        x = np.array([REWARD_EDGES[0] - width / 2, *(np.array(REWARD_EDGES) + width / 2)])
        for each in found:
            share = np.where(each.share_E > 0, 100 * each.share_E, np.nan)
            (line,) = axes.plot(x, share, color=INK, linewidth=1.2, drawstyle="steps-mid")
            if _DASHES[each.when]:
                line.set_dashes(_DASHES[each.when])
        last = found[-1]
        if last.floor is not None:
            axes.axvline(last.floor, color=SOFT, linewidth=1.2)
            axes.annotate(
                f"floor {last.floor:.2f}", (last.floor, 0.97), xytext=(-3, 0), ha="right", va="top",
                xycoords=("data", "axes fraction"), textcoords="offset points", color=SOFT,
                fontsize=8.5,
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_title(arm, fontsize=10.5, loc="left")
        axes.set_xlabel("R, nats")
        axes.set_ylabel("% of tokens")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        clip = "" if np.isnan(last.clipped) else f", {100 * last.clipped:.2f} % below the floor"
        title = (
            f"Reward R of {arm}, histogram. In the last tenth of the steps "
            f"{100 * last.small:.0f} % of the tokens have |R| below {EPS}{clip}."
        )
        return drawn(figure, f"reward-{arm}", title)


def entropy_figures(study: Study, found: Sequence[Stretch]) -> list[Drawing]:
    """Mean |R| and share of the total |R| by entropy in the last steps, a line an arm."""
    last = {each.arm: each for each in found if each.when == "last" and len(each.abs_D)}
    if not last:
        return []
    share = {arm: 100 * each.abs_share_D for arm, each in last.items()}
    mean = {arm: each.abs_D for arm, each in last.items()}
    return [
        _by_entropy(study, "mean-abs", "mean |R|, nats", mean),
        _by_entropy(study, "share-abs", "share of the total |R|, %", share),
    ]


def _by_entropy(study: Study, name: str, label: str, lines: Mapping[str, FloatArray]) -> Drawing:
    looks, x = styles(study.config), np.arange(1, ENTROPY_PARTS + 1)
    with rc_context({**RC, "font.size": 10.0}):
        figure = Figure(figsize=(3.4, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for arm, values in lines.items():
            look = looks[arm]
            (line,) = axes.plot(
                x, values, color=look.color, linewidth=1.4, marker=look.marker, markersize=4
            )
            if look.dashes:
                line.set_dashes(look.dashes)
        axes.set_title(label, fontsize=10.5, loc="left")
        axes.set_xlabel("tenth of the tokens by entropy, lowest first")
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.set_ylim(bottom=0)
        ends = ", ".join(f"{arm} {values[-1]:.3g}" for arm, values in lines.items())
        title = f"{label} by entropy. In the tenth of highest entropy: {ends}."
        return drawn(figure, f"entropy-{name}", title)
