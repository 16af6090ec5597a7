"""Running programs that a model wrote."""

from reopold.sandbox.limits import Limits, Outcome, SandboxFailure, Status
from reopold.sandbox.modes import Isolation, isolation
from reopold.sandbox.program import run_program

__all__ = [
    "Isolation",
    "Limits",
    "Outcome",
    "SandboxFailure",
    "Status",
    "isolation",
    "run_program",
]
