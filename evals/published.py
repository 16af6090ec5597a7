"""Published numbers as reference lines and rows: each with its source, its origin and its caveat.

None of them is reproduced here: that needs GPUs and the weights.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

#: Beside every published number, until it is made again here.
STATUS = "not reproduced here: needs GPU and weights"


class PublishedScore(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    benchmark: str
    title: str
    method: str
    model: str
    teacher: str
    """Empty: no teacher."""
    metric: str
    k: int
    """0: not said."""
    value: float
    """In %, as printed."""
    source: str
    origin: str
    """Who ran it."""
    caveat: str


@cache
def published() -> tuple[PublishedScore, ...]:
    """All of them, in the order of the file."""
    raw = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return tuple(PublishedScore.model_validate(each) for each in raw["scores"])


def published_on(benchmarks: Collection[str]) -> list[PublishedScore]:
    return [score for score in published() if score.benchmark in benchmarks]
