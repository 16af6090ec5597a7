"""What a benchmark is to the rest of the platform.

A *row* is an item as the benchmark's authors publish it; graders and prompts read it by its own
field names. A *problem* is a row made ready to sample from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reopold.config import ConfigError, Family

if TYPE_CHECKING:
    from evals.grading.verdict import Verdict

Row = dict[str, Any]

#: Of one cluster: metric -> (numerator, denominator). A score is the ratio of their sums.
Tally = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Source:
    """Where the rows are, on the hub and in a local folder."""

    hub: str = ""
    """Hub id of the data set; empty if it is not there."""
    config: str | None = None
    split: str = "test"
    revision: str | None = None
    """Commit of the data set; None where nobody could look it up: then it is resolved when the
    data are fetched, shown and recorded."""
    files: tuple[str, ...] = ()
    """Paths in a folder of benchmarks; the first that is there is read. A pattern (`*`) reads
    every file that fits."""


@dataclass(frozen=True)
class Sampling:
    """The customary settings of a benchmark, which `evaluate` uses unless it is told otherwise."""

    temperature: float = 0.6
    top_p: float = 0.95
    max_new_tokens: int = 8192
    samples: int = 1


@dataclass(frozen=True)
class Problem:
    """An item to sample from."""

    id: str
    messages: list[dict[str, str]]
    """Chat up to where the model answers; `<image>` stands where an image belongs."""
    row: Row
    gold: str
    """The right answer for people to read; graders read the row."""
    images: list[str] = field(default_factory=list)
    """Paths or the hub's own references, in the order of their placeholders."""
    cluster: str = ""
    """Problems of one cluster (five versions of one figure) are no independent evidence."""


@dataclass(frozen=True)
class Graded:
    """A problem with the verdicts on its samples, in order."""

    problem: Problem
    verdicts: Sequence[Verdict]


@dataclass(frozen=True)
class Benchmark:
    name: str
    family: Family
    title: str
    """As papers call it."""
    source: Source
    items: tuple[int, ...]
    """Numbers of items that the published files have; loading any other number is an error.
    Empty: any number (the micro suite)."""
    identify: Callable[[Row], str]
    messages: Callable[[Row], list[dict[str, str]]]
    gold: Callable[[Row], str]
    grader: str
    """Name in :data:`evals.grading.GRADERS`."""
    licence: str
    version: int = 1
    """Raised when prompt, grader or metric would score otherwise: older results are made anew."""
    metric: str = "avg@k"
    """The one that papers report."""
    sampling: Sampling = Sampling()
    images: Callable[[Row], list[str]] = lambda row: []
    cluster: Callable[[Row], str] | None = None
    """None: every item by itself."""
    tally: Callable[[Sequence[Graded]], Tally] | None = None
    """Further metrics than avg@k, pass@k and maj@k, from the graded problems of one cluster."""
    composites: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Weighted means of tallied metrics, by name."""
    aliases: tuple[str, ...] = ()
    environment: str = ""
    """What answers the model between its turns ("python", "tau2_mock"); empty: one turn."""
    note: str = ""
    """What a reader of a score must know: a variant, a window, a known fault."""


def pick(row: Mapping[str, Any], *names: str) -> Any:
    """The first of these fields that the row has: copies of a data set name them differently.

    Raises:
        ConfigError: it has none of them.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    wanted = " or ".join(f"'{name}'" for name in names)
    raise ConfigError(f"a record has no field {wanted} (it has: {', '.join(sorted(row)) or 'none'})")


def user(text: str) -> list[dict[str, str]]:
    """A chat of one user message."""
    return [{"role": "user", "content": text}]
