"""What a benchmark is to the rest of the platform.

A *row* is an item as the benchmark's authors publish it; graders and prompts read it by its own
field names. A *problem* is a row made ready to sample from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
    config: str | tuple[str, ...] | None = None
    """Several are read one after another; their rows say in `source` which one they are of."""
    split: str | tuple[str, ...] = "test"
    """Several as with `config`."""
    hub_files: tuple[str, ...] = ()
    """Files of the data set's repository to read as they are, where the hub's loader cannot (it
    runs no scripts)."""
    revision: str | None = None
    """Commit of the data set; None where nobody could look it up: then it is resolved when the
    data are fetched, shown and recorded."""
    files: tuple[str, ...] = ()
    """Paths in a folder of benchmarks; the first that is there is read. A pattern (`*`) reads
    every file that fits; if they are several, `source` of a row is its file."""
    read: Callable[[Path], list[Row]] | None = None
    """Rows of a folder whose files belong together (questions beside answers), or of one file of
    it. Then `files` names the folder. Raises ConfigError: something is missing or malformed."""
    repeats: bool = False
    """The data set itself repeats ids (or texts, where it has no ids): later ones get a number."""


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
    """Chat up to where the model answers; `<image>` stands where an image belongs. Empty: the file
    has answers without questions, enough to grade but not to sample."""
    row: Row
    gold: str
    """The right answer for people to read; graders read the row."""
    images: list[str] = field(default_factory=list)
    """Paths, in the order of their placeholders. A file that is not there is an error only when
    the item is sampled (see `Problems.check_samplable`)."""
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
    """Numbers of items that the published files have, the whole benchmark first, then subsets;
    loading any other number is an error. Empty: any number (the micro suite)."""
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
    """Paths as the row has them, in the order of their placeholders."""
    cluster: Callable[[Row], str] | None = None
    """None: every item by itself."""
    tally: Callable[[Sequence[Graded]], Tally] | None = None
    """Further metrics than avg@k, pass@k and maj@k, from the graded problems of one cluster."""
    composites: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Weighted means of tallied metrics, by name."""
    aliases: tuple[str, ...] = ()
    """Case, `-` and `_` do not matter and need none."""
    environment: str = ""
    """What answers the model between its turns ("python", "tau2_mock"); empty: one turn."""
    note: str = ""
    """What a reader of a score must know: a variant, a known fault."""
    describe: Callable[[Sequence[Row]], str] | None = None
    """What must stand beside a score on just these rows (a window of dates)."""


def pick(row: Mapping[str, Any], *names: str) -> Any:
    """The first of these fields that the row has: copies of a data set name them differently.

    Raises:
        ConfigError: it has none of them.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    wanted = " or ".join(f"'{name}'" for name in names)
    there = ", ".join(sorted(row)) or "none"
    raise ConfigError(f"a record has no field {wanted} (it has: {there})")


def user(text: str) -> list[dict[str, str]]:
    """A chat of one user message."""
    return [{"role": "user", "content": text}]


def text_id(text: str) -> str:
    """Name of an item that has none: the first 12 hex digits of its text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
