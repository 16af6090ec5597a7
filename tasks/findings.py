"""What `reopold doctor` finds: a fault, where it is, and what would mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

CheckName = Literal[
    "process", "slot", "flow run", "run directory", "checkpoint", "MLflow", "disk", "Prefect"
]


class Finding(BaseModel):
    """One thing that is not as it should be."""

    model_config = ConfigDict(frozen=True)

    check: CheckName
    where: str
    found: str
    mend: str
    """What --fix does, or what a person has to do where `fix` is None."""
    fault: bool = True
    """False: worth knowing, but nothing is broken by it."""
    fixed: bool | None = None
    """None: nobody tried."""
    fix: Callable[[], None] | None = Field(default=None, exclude=True, repr=False)

    @property
    def left(self) -> bool:
        return self.fault and not self.fixed

    @property
    def outcome(self) -> Literal["note", "mended", "failed", "--fix", "by hand"]:
        """Where the matter stands, in a word."""
        if self.fixed is not None:
            return "mended" if self.fixed else "failed"
        if not self.fault:
            return "note"
        return "--fix" if self.fix else "by hand"

    def mended(self) -> Finding:
        """The finding after its fix was tried; a fix that fails says why and hurts no other."""
        if self.fix is None:
            return self
        try:
            self.fix()
        except Exception as error:
            why = f"{self.found}; that failed: {error}"
            return self.model_copy(update={"fixed": False, "found": why})
        return self.model_copy(update={"fixed": True})


def guarded(
    check: CheckName, stage: Callable[[], Iterable[Finding]], *, fix: bool
) -> Iterator[Finding]:
    """The findings of a stage, mended one by one; a stage that raises is a finding itself."""
    try:
        for finding in stage():
            yield finding.mended() if fix else finding
    except Exception as error:
        found = f"this could not be checked: {type(error).__name__}: {error}"
        yield Finding(check=check, where="", found=found, mend="see the message")
