"""Running programs that a model wrote."""

from reopold.sandbox.limits import Limits, Outcome, SandboxFailure, Status
from reopold.sandbox.program import run_program

__all__ = ["Limits", "Outcome", "SandboxFailure", "Status", "run_program"]
