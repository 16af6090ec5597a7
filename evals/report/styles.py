"""How methods look, everywhere the same, and figures as inline SVG that takes its colours from the
page, so it is readable in light and dark.

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
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path

from reopold.study_config import StudyConfig

#: CSS variable and the colour that matplotlib is told (each only once, so that it can be found).
INK, SOFT, GRID, GROUND = "#1c2024", "#5b6570", "#dfe3e8", "#fdfdfe"
_VARIABLES = {INK: "ink", SOFT: "soft", GRID: "grid", GROUND: "ground"}


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
#: Of variants, in the order in which a study names them; then those of methods it does not have.
SPARE = (
    Style("#6a3d9a", "#b592e0", (6, 1, 1, 1), "H"),
    Style("#8c6d00", "#d9b830", (2, 1), "d"),
    Style("#4a4f57", "#c3cad3", (8, 1), ">"),
    Style("#2f6f4f", "#7fcfa5", (3, 2, 1, 2), "8"),
)


def styles(study: StudyConfig) -> dict[str, Style]:
    """The style of every compared arm. A method has its own in all studies."""
    found = {name: STYLES[name] for name in study.methods}
    free = [*SPARE, *(style for name, style in STYLES.items() if name not in found)]
    variants = [variant.name for variant in study.variants]
    # With more variants than styles they repeat: a figure of 15 lines tells nothing anyhow.
    return found | {name: free[i % len(free)] for i, name in enumerate(variants)}


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
    """An inline SVG and, in words, what it shows. `name` is unique in the report."""

    name: str
    title: str
    svg: str


def drawn(figure: Figure, name: str, title: str) -> Drawing:
    return Drawing(name, title, svg_text(figure, name, title))


def standalone(drawing: Drawing) -> str:
    """The figure as an SVG file of its own, in the colours of a light page."""
    svg = drawing.svg
    for color, variable in palette().items():
        svg = svg.replace(f"var(--{variable})", color)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg}\n'


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
    svg = re.sub(r"(\.\d\d)\d+", r"\1", svg)  # hundredths of a point: half the bytes
    svg = re.sub(r"font: ([\d.]+px) [^;]*;", r"font-size: \1;", svg)
    label = f'<svg role="img" aria-label="{escape(title)}" '
    return svg.replace("<svg ", label, 1).strip()


def palette() -> dict[str, str]:
    """Colour as drawn -> name of the CSS variable that replaces it."""
    every = (*STYLES.values(), *SPARE)
    return {**_VARIABLES, **{style.color: style.variable for style in every}}
