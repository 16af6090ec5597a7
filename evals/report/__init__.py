"""A study's report: tables with intervals, figures, an honest reading, and where it comes from."""

from __future__ import annotations

from evals.report.build import Comparison, build_report, compare

__all__ = ["Comparison", "build_report", "compare"]
