"""The benchmarks, one file a family."""

from __future__ import annotations

import difflib

from evals.benchmarks.base import Benchmark
from evals.benchmarks.code import CODE
from evals.benchmarks.maths import MATHS
from evals.benchmarks.micro import MICRO
from evals.benchmarks.tools import TOOLS
from evals.benchmarks.visual import VISUAL
from reopold.config import ConfigError

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark for benchmark in (*MATHS, *VISUAL, *TOOLS, *CODE, *MICRO)
}

__all__ = ["BENCHMARKS", "Benchmark", "find"]


def find(name: str) -> Benchmark:
    """The benchmark of that name or alias; case, `-` and `_` do not matter.

    Raises:
        ConfigError: there is none; the nearest valid name is given.
    """
    wanted = _plain(name)
    for benchmark in BENCHMARKS.values():
        if wanted in {_plain(known) for known in (benchmark.name, *benchmark.aliases)}:
            return benchmark
    near = difflib.get_close_matches(name, BENCHMARKS, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"valid names: {', '.join(BENCHMARKS)}"
    raise ConfigError(f"unknown benchmark '{name}': {hint}")


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")
