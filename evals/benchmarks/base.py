"""What a benchmark is to the rest of the platform."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reopold.config import Family

HARNESS = Path(__file__).parents[1] / "harness"


@dataclass(frozen=True)
class Benchmark:
    """A test set's rules; its problems are a local file named by the recipe."""

    name: str
    family: Family
    yaml: Path
    """lm-eval task: how a problem becomes a prompt and which metrics come out."""
    grader: str
    """Name in :data:`evals.grading.GRADERS`."""
    version: int
    """Raised when prompt, grader or metric would score otherwise: older results are made anew."""
