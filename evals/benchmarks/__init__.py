"""The benchmarks, one file a family."""

from __future__ import annotations

import difflib

from evals.benchmarks.base import Benchmark
from evals.benchmarks.maths import MATHS
from reopold.config import ConfigError

BENCHMARKS = {benchmark.name: benchmark for benchmark in MATHS}

__all__ = ["BENCHMARKS", "Benchmark", "find"]


def find(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        ConfigError: there is none; the nearest valid name is given.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = difflib.get_close_matches(name, BENCHMARKS, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"valid names: {', '.join(BENCHMARKS)}"
    raise ConfigError(f"unknown benchmark '{name}': {hint}")
