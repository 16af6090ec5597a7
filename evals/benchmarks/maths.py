"""Maths benchmarks."""

from __future__ import annotations

from evals.benchmarks.base import HARNESS, Benchmark

MATHS = (
    Benchmark(
        name="micro_maths",
        family="maths",
        yaml=HARNESS / "micro_maths.yaml",
        grader="final_answer",
        version=1,
    ),
)
