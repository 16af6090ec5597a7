"""Tools benchmarks."""

from __future__ import annotations

from evals.benchmarks.base import Benchmark

TOOLS: tuple[Benchmark, ...] = ()
