"""From a study folder to report/: everything is a function of the files, byte for byte."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evals.report.alarms import alarm_rows, alarm_table, alarm_words
from evals.report.analysis import Analysis, analyse, curve_table, score_table
from evals.report.figures import STYLES, Drawing, learning_curves, training_panels
from evals.report.provenance import RunFacts, provenance_table, run_facts, shared_facts
from evals.report.study import Study, load_study
from evals.report.tables import (
    NOTHING,
    Table,
    efficiency_cell,
    efficiency_table,
    final_table,
    seed_table,
)
from evals.report.tokens import rollout_page
from evals.report.words import WHAT_THIS_IS, reading
from reopold.run_dir import write_atomic

SCHEMA = 1
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """One benchmark in the report."""

    analysis: Analysis
    reading: list[str]
    tables: list[Table]
    curves: Drawing | None


@dataclass(frozen=True)
class Comparison:
    """`table` to print (strings, method first); `summary` as in report.json; both in study order.

    `reading` says in sentences what the table allows to be said, `notes` what is missing.
    """

    table: pd.DataFrame
    summary: dict[str, Any]
    reading: list[str]
    notes: list[str]


def build_report(study_dir: Path) -> Path:
    """Write `study_dir`/report/{index.html, report.md, report.json, scores.csv, curves.csv}.

    The same run directories give the same bytes. A study with missing pieces is rendered with a
    list of what is missing.

    Returns:
        The path of index.html.

    Raises:
        ConfigError: `study_dir` holds no readable study.json.
        OSError: the report cannot be written.
    """
    study = load_study(study_dir)
    sections = [_section(study, name) for name in study.benchmarks]
    facts = [run_facts(run) for run in study.everyone]
    page = _page(study, sections, facts)
    report = study_dir / "report"
    report.mkdir(exist_ok=True)
    write_atomic(report / "scores.csv", _csv(score_table(study)))
    write_atomic(report / "curves.csv", _csv(curve_table(study)))
    write_atomic(report / "report.json", _json(_summary(study, sections, facts)))
    write_atomic(report / "report.md", _templates().get_template("report.md.j2").render(page))
    index = report / "index.html"
    write_atomic(index, _templates().get_template("index.html.j2").render(page))
    return index


def compare(study_dir: Path) -> Comparison:
    """The final scores on the study's own benchmark, for a terminal; writes nothing.

    Raises:
        ConfigError: `study_dir` holds no readable study.json.
    """
    study = load_study(study_dir)
    section = _section(study, study.benchmarks[0], figures=False)
    facts = [run_facts(run) for run in study.everyone]
    printed = final_table(section.analysis)
    efficiencies = {
        row.method: efficiency_cell(row.units["samples"], "samples")
        for row in section.analysis.efficiency
        if "samples" in row.units
    }
    rows = [[*map(str, row), str(efficiencies.get(row[0].text, NOTHING))] for row in printed.rows]
    columns = [*printed.columns, f"samples, against {section.analysis.baseline}"]
    return Comparison(
        table=pd.DataFrame(rows, columns=columns),
        summary=finite(_summary(study, [section], facts)),
        reading=section.reading,
        notes=[*study.notes, *section.analysis.notes],
    )


def _section(study: Study, benchmark: str, *, figures: bool = True) -> Section:
    analysis = analyse(study, benchmark)
    tables: list[Table | None] = []
    if analysis.methods:
        tables = [final_table(analysis), efficiency_table(analysis), seed_table(analysis)]
    return Section(
        analysis=analysis,
        reading=reading(analysis),
        tables=[table for table in tables if table is not None],
        curves=learning_curves(study, benchmark) if figures else None,
    )


def _page(study: Study, sections: list[Section], facts: list[RunFacts]) -> dict[str, Any]:
    """What both templates see."""
    alarms = alarm_rows(study)
    return {
        "study": study.config,
        "what_this_is": WHAT_THIS_IS,
        "sections": sections,
        "notes": [*study.notes, *(note for part in sections for note in part.analysis.notes)],
        "panels": training_panels(study),
        "alarms": alarm_table(alarms),
        "alarm_words": alarm_words(study, alarms),
        "styles": {name: STYLES[name] for name in study.config.methods},
        "all_styles": STYLES,
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
        "what_this_is": WHAT_THIS_IS,
        "notes": study.notes,
        "alarms": [asdict(row) for row in alarm_rows(study)],
        "benchmarks": [{**asdict(part.analysis), "reading": part.reading} for part in sections],
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
