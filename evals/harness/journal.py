"""The samples of an evaluation that is under way, so that an interrupted one goes on.

`samples.jsonl` beside the results: a first line that says what is being evaluated, then a line a
sample as soon as it is drawn. It is deleted once results.json is there.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from reopold.run_dir import write_atomic

JOURNAL_FILE = "samples.jsonl"


class SampleKey(NamedTuple):
    question: str
    repeat: int
    """From 0."""


@dataclass(frozen=True)
class Generation:
    """One sample as it was drawn."""

    text: str
    ids: list[int]
    """Response tokens, a closing EOS included; in a dialogue the observations too."""
    finish_reason: str
    """stop or length; of a dialogue also turns or seconds: which budget was used up."""
    tokens: int
    """Sampled by the model: observations of a dialogue are none."""
    prompt_tokens: int
    seconds: float
    """Wall-clock from the start of its batch to its last token."""
    calls: int = 0
    """Tool calls."""
    failed_calls: int = 0
    """Those that were the model's mistake."""
    answer: str | None = None
    """What is graded of a dialogue (its last message, or a transcript); None: the text."""
    broken: bool = False
    """The tool itself broke: the sample says nothing about the model."""


@dataclass
class Journal:
    """Samples by key; with a folder, on disk too.

    Args:
        identity: digest of everything that decides the samples. A file of another identity is
            started anew.
    """

    folder: Path | None
    identity: str
    samples: dict[SampleKey, Generation] = field(default_factory=dict)
    handle: IO[str] | None = None

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / JOURNAL_FILE
        self.samples = self._read(file)
        head = json.dumps({"identity": self.identity}) + "\n"
        write_atomic(file, head + "".join(_line(*sample) for sample in self.samples.items()))
        self.handle = file.open("a", encoding="utf-8")

    def __contains__(self, key: SampleKey) -> bool:
        return key in self.samples

    def __getitem__(self, key: SampleKey) -> Generation:
        return self.samples[key]

    def add(self, key: SampleKey, generation: Generation) -> None:
        self.samples[key] = generation
        if self.handle is not None and not generation.broken:
            self.handle.write(_line(key, generation))
            self.handle.flush()

    def close(self) -> None:
        if self.handle is not None:
            self.handle.close()

    def _read(self, file: Path) -> dict[SampleKey, Generation]:
        """Whole lines of a journal of this identity; a line that a kill tore ends them."""
        kept: dict[SampleKey, Generation] = {}
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            if not lines or json.loads(lines[0]) != {"identity": self.identity}:
                return {}
            for line in lines[1:]:
                row = json.loads(line)
                key = SampleKey(row.pop("question"), row.pop("repeat"))
                kept[key] = Generation(**row)
        except FileNotFoundError:
            return {}
        except ValueError:
            return kept
        return kept


def _line(key: SampleKey, generation: Generation) -> str:
    row = {"question": key.question, "repeat": key.repeat, **asdict(generation)}
    return json.dumps(row) + "\n"


def discard(folder: Path) -> None:
    """Delete the journal of a finished evaluation."""
    (folder / JOURNAL_FILE).unlink(missing_ok=True)
