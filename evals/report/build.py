"""From a study folder to report/: everything is a function of the files, byte for byte."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evals.report.alarms import alarm_rows, alarm_table, alarm_words
from evals.report.analysis import Analysis, analyse, curve_table, score_table
from evals.report.budgets import budget_csv
from evals.report.evidence import evidence_files, write_evidence
from evals.report.families import Gallery, dialogue_table, gallery, kind_table
from evals.report.figures import cost_curves, learning_curves, training_panels
from evals.report.microscope import microscope_page
from evals.report.provenance import RunFacts, provenance_table, run_facts, shared_facts
from evals.report.rewards import (
    entropy_figures,
    entropy_table,
    reward_figures,
    reward_table,
    stretches,
)
from evals.report.scaling import Scaling, scaling, scaling_table
from evals.report.scaling_view import scaling_figure, scaling_reading, scaling_view_table
from evals.report.scopes import groups
from evals.report.study import Study, load_study
from evals.report.styles import SPARE, STYLES, Drawing, standalone, styles
from evals.report.sweeps import sweep_csv, sweep_figures, sweep_tables
from evals.report.tables import (
    NOTHING,
    Table,
    arm_table,
    budget_table,
    efficiency_cell,
    efficiency_table,
    final_table,
    published_table,
    seed_table,
)
from evals.report.tokens import rollout_page
from evals.report.words import WHAT_THIS_IS, reading

SCHEMA = 1
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class ScalingSection:
    """What more samples a question buy, on one benchmark."""

    found: Scaling
    reading: list[str]
    table: Table
    figure: Drawing | None


@dataclass(frozen=True)
class Section:
    """One benchmark in the report."""

    analysis: Analysis
    reading: list[str]
    tables: list[Table]
    curves: Drawing | None = None
    costs: list[Drawing] = field(default_factory=list)
    sweeps: list[Drawing] = field(default_factory=list)
    sweep_tables: list[Table] = field(default_factory=list)
    scaling: ScalingSection | None = None
    gallery: Gallery | None = None

    @property
    def notes(self) -> list[str]:
        return [*self.analysis.notes, *(self.scaling.found.notes if self.scaling else [])]

    @property
    def drawings(self) -> list[Drawing]:
        single = [self.curves, self.scaling.figure if self.scaling else None]
        return [*(each for each in single if each), *self.costs, *self.sweeps]

    def summary(self) -> dict[str, Any]:
        """The section in report.json."""
        whole = {**asdict(self.analysis), "reading": self.reading, "scaling": None}
        if self.scaling:
            whole["scaling"] = {**asdict(self.scaling.found), "reading": self.scaling.reading}
        return whole


@dataclass(frozen=True)
class Part:
    """One benchmark's final scores to print (strings, method first), and in sentences what they
    allow to be said."""

    benchmark: str
    table: pd.DataFrame
    reading: list[str]


@dataclass(frozen=True)
class Comparison:
    """A part a benchmark, the main one first; `summary` as in report.json; `notes` on what is
    missing."""

    parts: list[Part]
    summary: dict[str, Any]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rendered:
    """A report before it is written: its files by name, and the pictures of the study in them."""

    files: dict[str, bytes]
    pictures: set[Path]


def build_report(study_dir: Path) -> Path:
    """Write `study_dir`/report: index.html, report.md, report.json, the tables as CSV, the figures
    as SVG, and the evidence with its manifest (:mod:`evals.report.evidence`).

    The same run directories give the same bytes. A study with missing pieces is rendered with a
    list of what is missing.

    Returns:
        The path of index.html.

    Raises:
        ConfigError: `study_dir` holds no readable study.json.
        OSError: the report cannot be written.
    """
    study, report = load_study(study_dir), study_dir / "report"
    rendered = render(study)
    temporary = study_dir / f".report.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    for name, content in rendered.files.items():
        file = temporary / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    write_evidence(temporary, rendered.files, evidence_files(study, rendered.pictures))
    shutil.rmtree(report, ignore_errors=True)
    temporary.rename(report)
    return report / "index.html"


def render(study: Study) -> Rendered:
    """Every file of the report but the evidence: a function of the study's files alone."""
    sections = [_section(study, name) for name in study.benchmarks]
    facts = [run_facts(run) for run in study.everyone]
    found = stretches(study)
    tables = {
        "scores": score_table(study),
        "curves": curve_table(study),
        "budgets": budget_csv(
            {part.analysis.benchmark: part.analysis.budgets for part in sections}
        ),
        "sweeps": sweep_csv([part.analysis for part in sections]),
        "rewards": reward_table(found),
        "entropy": entropy_table(found),
        "scaling": scaling_table([part.scaling.found for part in sections if part.scaling]),
    }
    always = ("scores", "curves")
    kept = {name: each for name, each in tables.items() if len(each) or name in always}
    files = {f"{name}.csv": _csv(each) for name, each in kept.items()}
    general = {
        "panels": training_panels(study),
        "rewards": reward_figures(found),
        "entropy": entropy_figures(study, found),
    }
    if scopes := groups(study):
        title = study.config.title or study.config.name
        files["microscope.html"] = microscope_page(title, scopes)
    page = _page(study, sections, facts) | general
    page |= {"csv_files": sorted(f"{name}.csv" for name in kept)}
    page |= {"microscope": "microscope.html" if scopes else ""}
    drawings = [*general.values(), *(part.drawings for part in sections)]
    for drawing in itertools.chain.from_iterable(drawings):
        files[f"figures/{drawing.name}.svg"] = standalone(drawing)
    files["report.json"] = _json(_summary(study, sections, facts))
    files["report.md"] = _templates().get_template("report.md.j2").render(page)
    files["index.html"] = _templates().get_template("index.html.j2").render(page)
    encoded = {name: text.encode("utf-8") for name, text in files.items()}
    return Rendered(encoded, set(study.pictures))


def compare(study_dir: Path) -> Comparison:
    """The final scores on every benchmark, for a terminal; writes nothing.

    Raises:
        ConfigError: `study_dir` holds no readable study.json.
    """
    study = load_study(study_dir)
    sections = [_section(study, name, figures=False) for name in study.benchmarks]
    facts = [run_facts(run) for run in study.everyone]
    return Comparison(
        parts=[_part(section) for section in sections],
        summary=finite(_summary(study, sections, facts)),
        notes=[*study.notes, *(note for section in sections for note in section.notes)],
    )


def _part(section: Section) -> Part:
    analysis = section.analysis
    printed = final_table(analysis)
    efficiencies = {
        row.method: efficiency_cell(row.units["samples"], "samples")
        for row in analysis.efficiency
        if "samples" in row.units
    }
    rows = [[*map(str, row), str(efficiencies.get(row[0].text, NOTHING))] for row in printed.rows]
    columns = [*printed.columns, f"samples, against {analysis.baseline}"]
    more = section.scaling.reading if section.scaling else []
    table = pd.DataFrame(rows, columns=columns)
    return Part(analysis.benchmark, table, [*section.reading, *more])


def _section(study: Study, benchmark: str, *, figures: bool = True) -> Section:
    analysis = analyse(study, benchmark)
    scaled = _scaling(study, benchmark, figures)
    if not analysis.methods:
        return Section(analysis, reading(analysis), [], scaling=scaled)
    tables = [final_table(analysis), budget_table(analysis), efficiency_table(analysis)]
    tables.append(seed_table(analysis))
    if figures:
        tables += [kind_table(study, benchmark), dialogue_table(study, benchmark)]
    there = [table for table in tables if table is not None]
    if not figures:
        return Section(analysis, reading(analysis), there, scaling=scaled)
    return Section(
        analysis=analysis,
        reading=reading(analysis),
        tables=there,
        curves=learning_curves(study, benchmark),
        costs=cost_curves(study, benchmark),
        sweeps=sweep_figures(analysis),
        sweep_tables=sweep_tables(analysis),
        scaling=scaled,
        gallery=gallery(study, benchmark),
    )


def _scaling(study: Study, benchmark: str, figures: bool) -> ScalingSection | None:
    found = scaling(study, benchmark)
    if found is None:
        return None
    figure = scaling_figure(found, styles(study.config)) if figures else None
    return ScalingSection(found, scaling_reading(found), scaling_view_table(found), figure)


def _page(study: Study, sections: list[Section], facts: list[RunFacts]) -> dict[str, Any]:
    """What both templates see, without the figures of the whole study."""
    alarms = alarm_rows(study)
    return {
        "study": study.config,
        "what_this_is": WHAT_THIS_IS if study.config.embedded else "",
        "arms": arm_table(study.config),
        "published": published_table([*study.benchmarks, *study.config.published]),
        "sections": sections,
        "notes": [*study.notes, *(note for part in sections for note in part.notes)],
        "alarms": alarm_table(alarms),
        "alarm_words": alarm_words(study, alarms),
        "styles": styles(study.config),
        "palette": [*STYLES.values(), *SPARE],
        "rollouts": rollout_page(study),
        "provenance": provenance_table(facts),
        "shared_facts": shared_facts(study, facts),
        "css": (_HERE / "report.css").read_text(encoding="utf-8"),
    }


def _summary(study: Study, sections: list[Section], facts: list[RunFacts]) -> dict[str, Any]:
    """report.json: what the tables show, as numbers (fractions, not percentages)."""
    settings = study.config.model_dump(mode="json", exclude={"evaluation": {"data"}})
    return {
        "schema": SCHEMA,
        "study": settings,
        "what_this_is": WHAT_THIS_IS if study.config.embedded else "",
        "notes": study.notes,
        "alarms": [asdict(row) for row in alarm_rows(study)],
        "benchmarks": [part.summary() for part in sections],
        "runs": [asdict(fact) for fact in facts],
    }


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)


def _json(summary: dict[str, Any]) -> str:
    return json.dumps(finite(summary), indent=2, sort_keys=True, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """JSON has no NaN or infinity: null. Floats keep 6 decimals, more would be noise."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda cell: str(cell).replace("|", "\\|").replace("\n", " ")
    return environment
