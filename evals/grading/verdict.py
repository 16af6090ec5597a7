"""What a grader says about one response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "wrong", "no_answer"]


@dataclass(frozen=True)
class Verdict:
    correct: bool
    extracted: str | None
    """The response's answer, which majority votes count; None if it gave none."""
    status: Status
