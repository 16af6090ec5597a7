"""What benchmarks there are and where their items are found: `reopold evaluate --list`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.benchmarks import BENCHMARKS
from evals.benchmarks.base import Benchmark
from evals.benchmarks.places import default_folders, find_files
from evals.grading import GRADERS
from reopold.config import Family


@dataclass(frozen=True)
class Entry:
    name: str
    family: Family
    title: str
    items: tuple[int, ...]
    """Of the whole benchmark, then of subsets that may be loaded; empty: any number."""
    metric: str
    samples: int
    """A question, unless told otherwise."""
    grader: str
    rules: tuple[str, ...]
    """The default first."""
    found: str
    """The local file or folder; else "hub", or "absent" where the hub has none."""
    revision: str | None
    """Pinned commit on the hub; None: the newest, recorded when it is fetched."""
    licence: str
    note: str


def catalogue(folders: Sequence[Path] | None = None) -> list[Entry]:
    """Every benchmark. Files are looked for, not read.

    Args:
        folders: of benchmarks; None is those that evaluations search by default.

    Raises:
        ConfigError: REOPOLD_BENCHMARKS names no folder.
    """
    places = default_folders() if folders is None else [folder.absolute() for folder in folders]
    return [_entry(benchmark, places) for benchmark in BENCHMARKS.values()]


def _entry(benchmark: Benchmark, folders: Sequence[Path]) -> Entry:
    source = benchmark.source
    files = find_files(source, folders)
    grader = GRADERS[benchmark.grader]
    return Entry(
        name=benchmark.name,
        family=benchmark.family,
        title=benchmark.title,
        items=benchmark.items,
        metric=benchmark.metric,
        samples=benchmark.sampling.samples,
        grader=benchmark.grader,
        rules=grader.rules,
        found=str(files[0]) if files else "hub" if source.hub else "absent",
        revision=source.revision,
        licence=benchmark.licence,
        note=benchmark.note,
    )
