"""What answers a model between its turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Observation:
    """What an environment says to one message of the model."""

    text: str
    """Shown to the model; empty where the dialogue is over."""
    done: bool
    """The message was an answer, not a call: nothing more is asked of the model."""
    calls: int = 0
    """Tool calls that the message held."""
    failed: int = 0
    """Those among them that were the model's mistake: malformed, raised, timed out."""


class Environment(Protocol):
    """One dialogue's world. Every dialogue has one of its own."""

    def act(self, message: str) -> Observation:
        """Carry out what a message of the model asks for.

        Raises:
            SandboxFailure: the environment itself broke; it says nothing about the model.
        """
        ...

    def close(self) -> None:
        """End every process and remove every file; a second call does nothing."""
        ...
