"""Published numbers as reference lines and rows: each with its source, its origin and its caveat.

None of them is reproduced here: that needs GPUs and the weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

#: Beside every published number, until it is made again here.
STATUS = "not reproduced here: needs GPU and weights"

#: Origin of a number that those who trained the model have printed.
OWN = "its authors"


class Provenance(BaseModel):
    """What the scores of one table share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    teacher: str = ""
    """Empty: no teacher."""
    metric: str
    source: str
    origin: str
    """Who ran it."""
    caveat: str


class PublishedScore(Provenance):
    benchmark: str
    title: str
    method: str
    k: int
    """0: not said."""
    value: float
    """In %, as printed."""


class _Table(Provenance):
    k: dict[str, int] = {}
    rows: dict[str, dict[str, float]]

    def scores(self, titles: dict[str, str]) -> list[PublishedScore]:
        shared = self.model_dump(include=set(Provenance.model_fields))
        return [
            PublishedScore(
                **shared,
                method=method,
                benchmark=benchmark,
                title=titles[benchmark],
                k=self.k.get(benchmark, 0),
                value=value,
            )
            for method, row in self.rows.items()
            for benchmark, value in row.items()
        ]


@cache
def published() -> tuple[PublishedScore, ...]:
    """All of them, in the order of the file."""
    raw = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    tables = [_Table.model_validate(each) for each in raw["tables"]]
    return tuple(score for table in tables for score in table.scores(raw["titles"]))


def published_on(benchmarks: Collection[str]) -> list[PublishedScore]:
    return [score for score in published() if score.benchmark in benchmarks]


def one_a_method(scores: Iterable[PublishedScore]) -> list[PublishedScore]:
    """The authors' own number where there is one, else the first: what a figure has room for."""
    own_first = sorted(scores, key=lambda score: score.origin != OWN)
    chosen: dict[str, PublishedScore] = {}
    for score in own_first:
        chosen.setdefault(score.method, score)
    return list(chosen.values())
