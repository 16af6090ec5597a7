"""Code benchmarks."""

from __future__ import annotations

from evals.benchmarks.base import Benchmark

CODE: tuple[Benchmark, ...] = ()
