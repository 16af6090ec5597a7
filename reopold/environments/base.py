"""What answers a model between its turns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


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
    """Those among them that were the model's mistake: malformed, raised, timed out. The text names
    what was wrong; a mistake of the model is never an exception."""


class Environment(ABC):
    """One dialogue's world. Every dialogue has one of its own, in one thread from first to last."""

    schemas: Sequence[dict[str, Any]] = ()
    """Functions that may be called, for the chat template to show."""

    def observe(self) -> str:
        """What it says before the model's first word, the same in every world of one task."""
        return ""

    @abstractmethod
    def act(self, message: str) -> Observation:
        """Carry out what a message of the model asks for.

        Raises:
            SandboxFailure: the environment itself broke; it says nothing about the model.
        """

    def outcome(self) -> float | None:
        """Its own verdict on the dialogue, asked at its end; None: the model's answer decides.

        Raises:
            SandboxFailure: as :meth:`act`.
        """
        return None

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """End every process and remove every file; a second call does nothing."""
