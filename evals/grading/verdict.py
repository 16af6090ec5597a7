"""What a grader says about one response."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

#: ok and wrong are the model's; no_answer too (unclosed thinking among it). The rest says why an
#: answer could not be taken further; all of them score as wrong but `sandbox_failure`, which is
#: our own fault: it is tried again and never scored.
Status = Literal[
    "ok",
    "wrong",
    "no_answer",
    "runtime_error",
    "timeout",
    "memory",
    "output_limit",
    "forbidden",
    "sandbox_failure",
]

#: `sound` is the default of every benchmark. `official` is what its authors' code does today, with
#: its looseness; `current` is another name of it where the rule has changed; `legacy` is the rule
#: before that; `percent` accepts x for x/100 and 100x.
Rule = Literal["sound", "official", "current", "legacy", "percent"]


@dataclass(frozen=True)
class Verdict:
    correct: bool
    extracted: str | None
    """The response's answer, which majority votes count; None if it gave none."""
    status: Status


@dataclass(frozen=True)
class Context:
    """What a grader may know beyond the response and the row."""

    rule: Rule = "sound"
    rng: random.Random = field(default_factory=lambda: random.Random(42))
    """Shared by the responses of one file in order: official rules that guess draw from it."""


NO_ANSWER = Verdict(correct=False, extracted=None, status="no_answer")
#: Of a dialogue whose tool itself broke.
BROKEN = Verdict(correct=False, extracted=None, status="sandbox_failure")


def verdict(correct: bool, extracted: str | None) -> Verdict:
    """The ordinary verdict on an extracted answer; none at all is `no_answer`."""
    if extracted is None:
        return Verdict(correct, None, "ok" if correct else "no_answer")
    return Verdict(correct, extracted, "ok" if correct else "wrong")
