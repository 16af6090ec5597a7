"""Visual benchmarks."""

from __future__ import annotations

from evals.benchmarks.base import Benchmark

VISUAL: tuple[Benchmark, ...] = ()
